# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a person sees of a training: sentences in nnU-Net's log, each once, and the policies in its progress.png."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from test_joint_trainer import joint

from monai_autoaug.nnunet.journal import in_short
from monai_autoaug.nnunet.progress import Panel, entropy_panels, panels_below
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.policies import TrainingPolicy


def write(log: Path, classes: tuple[str, ...], epochs: int = 3, views: bool = True) -> Path:
    """Class number n becomes more decided by 0.1 n an epoch."""
    rows = []
    for epoch in range(epochs):
        row: dict[str, Any] = {"epoch": epoch, "train_loss": 0.5}
        for number, name in enumerate(classes):
            row[f"entropy_{name}"] = 1 - 0.1 * number * epoch
            row |= {f"entropy_{name}_{c}": 1 - 0.1 * number * epoch for c in ("gamma", "rotF")}
        rows.append(row | ({"entropy_views": 0.9} if views else {}))
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return log


def test_curves_of_classes_views_and_cascades(tmp_path: Path) -> None:
    log = write(tmp_path / "autoaug.jsonl", ("background", "left_kidney"))
    policies, background, kidney = entropy_panels(log, ("background", "left_kidney"), ("gamma", "rotF"))
    assert policies.title == "Policies"
    assert policies.curves == {
        "background": [1, 1, 1],
        "left_kidney": [1, 0.9, 0.8],
        "views": [0.9, 0.9, 0.9],
    }
    assert (background.title, kidney.title) == ("Cascades, class background", "Cascades, class left_kidney")
    assert kidney.curves == {"gamma": [1, 0.9, 0.8], "rotF": [1, 0.9, 0.8]}
    assert list(kidney.epochs) == [0, 1, 2]


def test_a_line_of_the_log_stays_short_with_a_policy_for_each_label() -> None:
    """The rest is in the file beside it."""
    classes = tuple(f"organ_{number}" for number in range(10))
    policy = TrainingPolicy.preset("nnunet", classes)
    figures = {"loss": 0.123456, "entropy_views": 0.5, "policy_updates": 3.0}
    for name in classes:
        figures |= {f"entropy_{name}": 0.9, f"share_{name}": 0.1}
        figures |= {f"entropy_{name}_{c.name}": 0.9 for c in policy.cascades}
    line = in_short(figures, policy)
    assert line.startswith("loss 0.1235, entropy_views 0.5, policy_updates 3, entropy_organ_0 0.9, entropy_organ_1 0.9")
    assert line.endswith("(and 160 more in autoaug.jsonl)")
    assert len(line) < 300
    assert in_short({"a": 1.0, "entropy_x": 2.0}) == "a 1, entropy_x 2"


def test_of_many_classes_the_most_decided_are_drawn(tmp_path: Path) -> None:
    names = tuple("abcdef")
    panels = entropy_panels(write(tmp_path / "autoaug.jsonl", names, views=False), names, ("gamma",))
    assert [panel.title for panel in panels[1:]] == [f"Cascades, class {name}" for name in "cdef"]
    assert "the most decided 4 of 6 classes" in panels[0].title
    assert "views" not in panels[0].curves


def size(png: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


def test_nnunets_picture_has_them_below_its_own(tmp_path: Path) -> None:
    logger = LocalLogger()
    for name, values in logger.my_fantastic_logging.items():
        values.extend([[0.5, 0.6]] * 2 if name == "dice_per_class_or_region" else [0.5, 0.4])
    own = nnunet_logger.plt
    with mpl.rc_context({"savefig.dpi": 10}):
        logger.plot_progress_png(str(tmp_path))
        plain = size(tmp_path / "progress.png")
        panels = [Panel("a", {"x": [0.5, None], "y": [0.1, 0.2]}, [0, 1]), Panel("b", {"x": [1.0]}, [0])]
        with panels_below(panels):
            assert nnunet_logger.plt is not own
            logger.plot_progress_png(str(tmp_path))
        assert size(tmp_path / "progress.png") == (plain[0], plain[1] * 5 // 3)
        with panels_below([]):
            assert nnunet_logger.plt is own
            logger.plot_progress_png(str(tmp_path))
        assert size(tmp_path / "progress.png") == plain
    assert nnunet_logger.plt is own


def test_a_training_says_everything_once_and_draws_its_policies(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Any] = []

    def plot(self: Any, folder: str) -> None:
        drawn.append(getattr(nnunet_logger.plt, "_panels", ()))

    monkeypatch.setattr(MetaLogger, "plot_progress_png", plot)
    trainer = joint(tiny, epochs=2, iterations_per_epoch=2, fold=3)
    trainer.fold = 0
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert log.count("U = 4 times in all") == 1
    assert log.count("Expected movement of the training policy's logits") == 1
    assert log.count("WARNING: the policy is updated") == 1  # in two epochs
    assert log.count("entropy_background ") == 2
    assert log.count("(memory at most ") == log.count("Pseudo dice") == log.count("Epoch time") == 2
    assert "entropy_background_gamma" not in log  # the line stays short; the file beside it has all
    assert (Path(trainer.output_folder) / "autoaug.jsonl").read_text().count("entropy_background_gamma") == 2
    assert [[len(panel.epochs) for panel in panels] for panels in drawn] == [[1, 1, 1], [2, 2, 2]]
    assert set(drawn[1][2].curves) == {c.name for c in trainer.method.training.cascades}
    drawn.clear()
    tiny.trainer(Adversarial, iterations_per_epoch=1).run_training()
    assert drawn == [()]
