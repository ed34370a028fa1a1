# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What nnU-Net's trainers keep for people: facts without names, samples, the policies' course; also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_joint_trainer import joint
from test_resume import stop_after

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.sample_file import read_samples
from monai_autoaug.nnunet import showing
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugNone as Plain
from monai_autoaug.report import write_report

TINY: dict[str, Any] = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "batch_size": 2}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_policies_leave_their_course_and_samples(tiny: Any) -> None:
    trainer = joint(tiny, fold=0, **TINY)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    course = rows(folder / showing.COURSE)
    assert [row["epoch"] for row in course] == [1, 2]
    last = course[1]["training"]["foreground"]["gamma"]["probabilities"]["identity"]
    kept = dict(zip([c.name for c in trainer.method.training.cascades],
                    trainer.method.training.probabilities("foreground"), strict=True))  # fmt: skip
    assert last == pytest.approx(float(kept["gamma"][0]))
    samples = read_samples(folder / showing.SAMPLES)
    assert {(s.epoch, s.kind) for s in samples.shots} == {
        (e, kind) for e in (1, 2) for kind in ("background", "foreground")
    }
    assert samples.patch.foreground.any()
    assert samples.patch.structures == ("shell", "core")
    # as nibabel says of the files, whose axes nnU-Net reverses
    assert samples.patch.orientation == "SAR"
    log = rows(folder / "autoaug.jsonl")
    assert [row["epoch"] for row in log] == [0, 1]
    assert 0 <= log[1]["dice"] <= 1
    assert {"dice_shell", "dice_core"} <= set(log[1]) or log[1]["dice"] == 0
    facts = json.loads((folder / showing.FACTS).read_text())
    cases = facts["cases"]
    assert cases["train"] + cases["meta"] + cases["validation"] == 5
    assert (facts["trainer"], facts["fold"], facts["iterations"]) == ("nnUNetTrainerAutoAug", "0", 4)
    assert facts["seconds"] > 0
    text = (folder / showing.FACTS).read_text()
    assert "case_" not in text
    assert str(tiny.results) not in text
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Samples across epochs" in page
    assert "case_" not in page


def test_generators_leave_samples_and_plain_training_none(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, fold=0, method_options={"warm_up": 0}, **TINY)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    samples = read_samples(folder / showing.SAMPLES)
    assert {s.kind for s in samples.shots} == set(trainer.method.augmenters())
    # nnU-Net's own augmentation, which it comes on top of, has mirrored the patch or not
    assert samples.patch.orientation == ""
    assert not (folder / showing.COURSE).exists()
    plain = tiny.trainer(Plain, fold=0, **TINY)
    plain.run_training()
    left = {file.name for file in Path(plain.output_folder).iterdir()}
    assert showing.FACTS in left
    assert not {showing.SAMPLES, showing.COURSE} & left


def test_a_resumed_training_goes_on_and_a_fresh_one_begins_anew(tiny: Any) -> None:
    options = TINY | {"epochs": 3, "save_every": 1}
    first = joint(tiny, fold=1, **options)
    first.fold = 0
    stop_after(first, 2)
    folder = Path(first.output_folder)
    patch = read_samples(folder / showing.SAMPLES).patch
    extra = rows(folder / showing.COURSE)[-1] | {"epoch": 3}  # of an epoch whose checkpoint was not reached
    with (folder / showing.COURSE).open("a") as file:
        file.write(json.dumps(extra) + "\n")
    second = joint(tiny, fold=1, resume=True, **options)
    second.fold = 0
    second.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    second.run_training()
    assert [row["epoch"] for row in rows(folder / showing.COURSE)] == [1, 2, 3]
    kept = read_samples(folder / showing.SAMPLES)
    assert sorted({s.epoch for s in kept.shots}) == [1, 2, 3]
    assert kept.patch.image.equal(patch.image)
    again = joint(tiny, fold=1, **TINY)
    again.fold = 0
    again.run_training()
    assert sorted({s.epoch for s in read_samples(folder / showing.SAMPLES).shots}) == [1, 2]
    assert [row["epoch"] for row in rows(folder / showing.COURSE)] == [1, 2]


def test_tensorboard_is_written_if_asked_for(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {"scalars": {}, "images": set()}

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            seen.update(folder=folder, purged=purge_step)

        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            seen["scalars"][name, epoch] = value

        def add_image(self, name: str, pixels: Any, epoch: int) -> None:
            seen["images"].add((name, epoch))

        def close(self) -> None:
            seen["closed"] = True

    class Module:
        SummaryWriter = Writer

    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", Module)
    trainer = joint(tiny, fold=0, tensorboard=True, **TINY)
    trainer.run_training()
    assert seen["folder"] == str(Path(trainer.output_folder) / "tensorboard")
    assert seen["closed"]
    log = rows(Path(trainer.output_folder) / "autoaug.jsonl")
    assert seen["scalars"]["training/loss", 2] == log[1]["loss"]
    assert ("policy/foreground/gamma/identity", 2) in seen["scalars"]
    assert ("samples/foreground", 1) in seen["images"]


def test_the_option_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tensorboard must be true or false"):
        Options(tensorboard="yes")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Options(tensorboard=True)
