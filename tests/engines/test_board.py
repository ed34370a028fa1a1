# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Samples and TensorBoard while training: they are there, and the training is the one without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import shown_steps, trainer
from ignite.engine import Engine
from monai.utils import set_determinism
from run_helpers import options

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import SampleSaver, TrainOptions, fit, resume, train
from monai_autoaug.engines.board import write_scalars
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.sample_file import read_samples
from monai_autoaug.report.curves import read_log


class Writer:
    """TensorBoard's writer, in memory."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.images: dict[tuple[str, int], torch.Tensor] = {}
        self.closed = False

    def add_scalar(self, name: str, value: float, epoch: int) -> None:
        self.scalars[name, epoch] = value

    def add_image(self, name: str, pixels: torch.Tensor, epoch: int) -> None:
        self.images[name, epoch] = pixels

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def run(method: str, epochs: int = 3, **more: Any) -> Any:
    """An engine that has trained."""
    set_determinism(seed=5)
    engine = trainer(method=method, max_epochs=epochs, **more)
    engine.run()
    set_determinism(seed=None)
    return engine


def test_a_handler_keeps_samples_and_shows_them(tmp_path: Path) -> None:
    writer = Writer()
    path = tmp_path / "kept" / "samples.pt"
    saver = SampleSaver(path, summary_writer=writer, orientation="RAS", structures=("a", "b"))
    run("adversarial", train_handlers=[saver])
    kept = read_samples(path)
    assert kept.patch.structures == ("a", "b")
    assert kept.patch.spacing == (1.0, 2.0, 3.0)
    assert {s.epoch for s in kept.shots} == {1, 2, 3}
    assert {s.kind for s in kept.shots} == {"affine", "deformation", "appearance"}
    assert {name for name, _ in writer.images} == {"samples/affine", "samples/deformation", "samples/appearance"}
    assert {epoch for _, epoch in writer.images} == {1, 2, 3}


def test_the_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    with_samples = run("adversarial", train_handlers=[SampleSaver(tmp_path / "samples.pt")])
    without = run("adversarial")
    for (name, one), other in zip(
        with_samples.network.state_dict().items(), without.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_nothing_is_kept_where_nothing_learns(tmp_path: Path) -> None:
    run("none", epochs=1, train_handlers=[SampleSaver(tmp_path / "samples.pt")])
    assert list(tmp_path.iterdir()) == []


def test_it_belongs_to_an_engine_with_a_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SampleSaver belongs to an AutoAugTrainer"):
        SampleSaver(tmp_path / "samples.pt").attach(Engine(lambda engine, batch: None))
    with pytest.raises(ConfigError, match="summary_writer or log_dir"):
        SampleSaver(tmp_path / "samples.pt", summary_writer=Writer(), log_dir=tmp_path)


def test_scalars_are_the_numbers_of_the_log() -> None:
    writer = Writer()
    row = {"epoch": 4, "loss": 0.5, "phase": "train", "warnings": ["x"], "missing": None, "flag": True, "count": 2}
    write_scalars(writer, row)
    assert writer.scalars == {("training/loss", 4): 0.5, ("training/count", 4): 2}


def test_a_run_writes_for_tensorboard_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=16)
    writer, asked = Writer(), []
    monkeypatch.setattr("monai_autoaug.engines.options.check_board", lambda: None)
    monkeypatch.setattr(fit, "board_writer", lambda *given: asked.append(given) or writer)
    quick = {"update_every": 1, "warm_up": 0}
    train(options(data, tmp_path / "run", method="joint_policy", epochs=2, tensorboard=True, method_options=quick))
    found = Run(tmp_path / "run")
    assert asked == [(found.board, 1)]
    assert writer.closed
    rows = read_log(found.log)
    assert writer.scalars["training/loss", 2] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert writer.scalars["training/dice", 2] == pytest.approx(rows[1]["dice"], rel=1e-5)
    course = read_log(found.course)
    assert [row["epoch"] for row in course] == [1, 2]
    last = course[1]["training"]["foreground"]["gamma"]["probabilities"]["identity"]
    assert writer.scalars["policy/foreground/gamma/identity", 2] == last
    assert {name for name, _ in writer.images} == {"samples/background", "samples/foreground"}
    assert read_samples(found.samples).patch.orientation == "RAS"


def test_tensorboard_is_refused_before_anything_is_read_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TrainOptions("data", "run", tensorboard=True)
    assert TrainOptions("data", "run").tensorboard is False


def test_tensorboards_own_writer(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    saver = SampleSaver(tmp_path / "samples.pt", log_dir=tmp_path / "board")
    run("adversarial", epochs=1, train_handlers=[saver])
    assert list((tmp_path / "board").iterdir())


def test_an_epoch_that_is_trained_again_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped when the second epoch had been shown and its checkpoint had not been written."""
    pytest.importorskip("tensorboard")
    data, found = write_phantom(tmp_path / "data", cases=4, size=16), Run(tmp_path / "run")
    save, saved = Run.save_checkpoint, []

    def stopped(run: Run, content: Any) -> None:
        saved.append(content)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(run, content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(options(data, found.folder, method="none", tensorboard=True))
    assert shown_steps(found.board, "training/loss") == [1, 2]
    resume(found.folder)
    assert shown_steps(found.board, "training/loss") == [1, 2, 3]


def test_a_writer_of_ones_own_stays_open(tmp_path: Path) -> None:
    writer = Writer()
    run("adversarial", epochs=1, train_handlers=[SampleSaver(tmp_path / "samples.pt", summary_writer=writer)])
    assert not writer.closed
    assert writer.images
