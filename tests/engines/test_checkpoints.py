# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run that is stopped at the end of an epoch and resumed in a new process is the run that was never stopped."""

from __future__ import annotations

import logging
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import SIZE, items, loader, loss, network, record, trainer
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset, SmartCacheDataset
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, LrScheduleHandler, ValidationHandler
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandSpatialCropd, Transform

from monai_autoaug import methods
from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines import AtomicCheckpointSaver, AutoAugTrainer, TrainingCheckpoint
from monai_autoaug.engines.checkpoints import inexact
from monai_autoaug.engines.random_states import random_states, restore_random_states, transform_states
from monai_autoaug.errors import CheckpointError, ConfigError


def whole_run(
    folder: Path, epochs: int, method: str, data: Any, *, resume: bool = False, seed: int = 0, **options: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], AutoAugTrainer]:
    """Train as a script would: everything made anew, validation and checkpoints each epoch, perhaps resumed."""
    torch.manual_seed(seed)  # a resumed process may start with any random state
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    net = methods.prepare(method, network())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    evaluator = SupervisedEvaluator("cpu", DataLoader(Dataset(items(2)), batch_size=1), net,
                                    inferer=SlidingWindowInferer(SIZE))  # fmt: skip
    engine = AutoAugTrainer("cpu", epochs, data(), net, optimizer, loss(), method=method, seed=3, **options)
    saved = {"model": net, "optimizer": optimizer, "schedule": schedule, "autoaug": engine.autoaug_state,
             "trainer": engine}  # fmt: skip
    if resume:
        CheckpointLoader(str(folder / "checkpoint_epoch=2.pt"), saved).attach(engine)
    LrScheduleHandler(schedule, print_lr=False).attach(engine)
    ValidationHandler(1, evaluator).attach(engine)
    AtomicCheckpointSaver(str(folder), saved, save_interval=1).attach(engine)
    rows = record(engine)
    engine.run()
    return rows, {k: v.clone() for k, v in net.state_dict().items()}, engine


def cached() -> DataLoader:
    return loader(batch_size=4)


def workers() -> DataLoader:
    return loader(batch_size=4, num_workers=1)


def random_crops() -> DataLoader:
    transform = Compose([RandFlipd(["image", "label"], prob=0.5), RandSpatialCropd(["image", "label"], (8, 8, 8))])
    return DataLoader(Dataset(items(), transform), batch_size=4, shuffle=True)


def own_patches() -> Any:
    return patch_loader(PatchBatches(items(), patch_size=(8, 8, 8), batch_size=4, seed=1, num_classes=3, length=30))


CASES = {
    "none": ("none", cached, {}),
    "none_accumulating": ("none", cached, {"accumulation_steps": 2}),
    "random_workers": ("random", workers, {}),
    "random_bfloat16": ("random", cached, {"amp": True, "amp_kwargs": {"dtype": torch.bfloat16}}),
    "adversarial": ("adversarial", cached, {}),
    "adversarial_accumulating": ("adversarial", random_crops, {"accumulation_steps": 2}),
    "adversarial_own_loader": ("adversarial", own_patches, {"epoch_length": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(case: str, tmp_path: Path) -> None:
    method, data, options = CASES[case]
    rows, weights, engine = whole_run(tmp_path / "whole", 4, method, data, **options)
    whole_run(tmp_path / "parts", 2, method, data, **options)
    after, resumed_weights, resumed = whole_run(tmp_path / "parts", 4, method, data, resume=True, seed=99, **options)
    assert len(after) == len(rows) / 2
    assert after == rows[len(after) :]
    assert all(torch.equal(weights[k], resumed_weights[k]) for k in weights)
    assert engine.method.steps == resumed.method.steps
    for name, player in engine.method.players.items():
        other = resumed.method.players[name].module.state_dict()
        assert all(torch.equal(v, other[k]) for k, v in player.module.state_dict().items())


def test_checkpoint_holds_tensors_numbers_and_strings_only(tmp_path: Path) -> None:
    _, _, engine = whole_run(tmp_path, 1, "adversarial", cached)
    content = torch.load(tmp_path / "checkpoint_epoch=1.pt", weights_only=True)
    assert set(content) == {"model", "optimizer", "schedule", "autoaug", "trainer"}
    assert set(content["autoaug"]["method"]["players"]) == {"generators", "discriminator"}
    plain = UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm="batch", dropout=0.1)
    plain.load_state_dict(content["model"])  # strictly: auxiliary norms are not in it
    engine.autoaug_state.load_state_dict(content["autoaug"])


def test_random_states_come_back() -> None:
    states = random_states()

    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002, S311

    first = draw()
    restore_random_states(states)
    assert draw() == first


class Mine(Transform):
    """A transform that is not MONAI's and holds one that is."""

    def __init__(self) -> None:
        self.inner = RandFlipd("image", prob=0.5)

    def __call__(self, data: Any) -> Any:
        return self.inner(data)


def test_random_states_of_all_transforms_are_found() -> None:
    inner = Compose([Mine(), RandFlipd("image"), Compose([RandSpatialCropd("image", (4, 4, 4))])])
    inner.set_random_state(0)
    inner.transforms[0].inner.set_random_state(1)
    dataset = torch.utils.data.Subset(Dataset(items(), inner), [0, 1])
    # each dictionary transform and the Compose own a RandomState, and so does each array transform within
    assert len(transform_states(DataLoader(dataset))) >= 4


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = AtomicCheckpointSaver(str(tmp_path), {"model": network()}, save_final=True, final_filename="model.pt")
    engine = trainer("none", train_handlers=[saver])
    engine.run()
    whole = (tmp_path / "model.pt").read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(whole[: len(whole) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        saver.completed(engine)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == whole


def test_old_checkpoint_goes_only_after_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = AtomicCheckpointSaver(str(tmp_path), {"net": network()}, save_interval=1, n_saved=1)
    engine = trainer("none", max_epochs=3, train_handlers=[saver])
    before: list[int] = []
    write = torch.save

    def counted(*args: Any) -> None:
        before.append(len(list(tmp_path.glob("*.pt"))))
        write(*args)

    monkeypatch.setattr(torch, "save", counted)
    engine.run()
    assert before == [0, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["net_epoch=3.pt"]


def test_one_handler_writes_and_resumes_a_run(tmp_path: Path) -> None:
    def handlers(net: Any, optimizer: Any, resume: bool) -> list[Any]:
        best = AtomicCheckpointSaver(str(tmp_path), {"net": net}, save_key_metric=True, key_metric_filename="best.pt")
        objects = {"model": net, "optimizer": optimizer, "best": best}
        return [best, TrainingCheckpoint(tmp_path / "run.pt", objects, resume=resume)]

    runs = []
    for epochs, resume in ((4, False), (2, False), (4, True)):
        torch.manual_seed(99 if resume else 0)
        net = methods.prepare("adversarial", network())
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        engine = AutoAugTrainer(
            "cpu", epochs, loader(batch_size=4), net, optimizer, loss(), key_train_metric={"number": Countdown()},
            train_handlers=handlers(net, optimizer, resume),
        )  # fmt: skip
        rows = record(engine)
        engine.run()
        runs.append(rows)
    whole, first, second = runs
    assert first + second == whole
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["best"]["_saved"][0][0] == 10.0  # of the first epoch: the resumed run knew of it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "run.pt"]


class Countdown(Metric):
    """A key metric that gets worse every epoch."""

    epochs = 0

    def attach(self, engine: Any, name: str, *args: Any) -> None:
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update({name: 11.0 - e.state.epoch})
        )

    def reset(self) -> None: ...
    def update(self, output: Any) -> None: ...
    def compute(self) -> None: ...


def test_checkpoint_handler_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interval"):
        TrainingCheckpoint("x.pt", {}, interval=0)
    with pytest.raises(ConfigError, match="taken"):
        TrainingCheckpoint("x.pt", {"trainer": None})
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        trainer("none", train_handlers=[TrainingCheckpoint(tmp_path / "x.pt", {"model": network()}, resume=True)])
    evaluator = SupervisedEvaluator("cpu", [], network())
    with pytest.raises(ConfigError, match="SupervisedEvaluator"):
        TrainingCheckpoint("x.pt", {"model": network()}).attach(evaluator)


def test_a_name_for_interval_checkpoints_needs_an_interval(tmp_path: Path) -> None:
    objects = {"model": network()}
    with pytest.raises(ConfigError, match=r"interval_filename 'run.pt' is never written: give save_interval"):
        AtomicCheckpointSaver(str(tmp_path), objects, interval_filename="run.pt")
    with pytest.raises(ConfigError, match="n_saved=3 files can't all be named"):
        AtomicCheckpointSaver(str(tmp_path), objects, save_interval=1, n_saved=3, interval_filename="run.pt")


def test_files_do_not_tell_which_machine_wrote_them(tmp_path: Path) -> None:
    saver = AtomicCheckpointSaver(str(tmp_path), {"model": network()}, save_final=True, final_filename="model.pt")
    trainer("none", train_handlers=[saver]).run()
    assert platform.node().encode() not in (tmp_path / "model.pt").read_bytes()


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    saver = AtomicCheckpointSaver(str(tmp_path), {"model": network()}, save_interval=1)
    trainer("none", train_handlers=[saver]).run()
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "model_epoch=1.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_resume_that_can_only_be_near_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert inexact(cached(), 2) == inexact(own_patches(), 3) == inexact([], 3) == []
    persistent = loader(num_workers=1, persistent_workers=True)
    assert "persistent workers" in inexact(persistent, len(persistent))[0]
    smart = DataLoader(SmartCacheDataset(items(), lambda x: x, 0.5, 2, progress=False), batch_size=1)
    assert "SmartCacheDataset" in inexact(smart, len(smart))[0]
    engine = trainer("none", epoch_length=1)
    engine.autoaug_state.load_state_dict(engine.autoaug_state.state_dict())
    engine.logger.propagate = True
    with caplog.at_level(logging.WARNING, logger=engine.logger.name):
        engine.run()
    assert "epoch_length 1 is not the loader's length 2" in caplog.text


def test_best_metric_goes_on() -> None:
    engine = trainer("none")
    engine.state.best_metric, engine.state.best_metric_epoch = 0.5, 3
    other = trainer("none")
    other.autoaug_state.load_state_dict(engine.autoaug_state.state_dict())
    assert (other.state.best_metric, other.state.best_metric_epoch) == (0.5, 3)
    engine.state.best_metric = float("nan")
    other.autoaug_state.load_state_dict(engine.autoaug_state.state_dict())
    assert (other.state.best_metric, other.state.best_metric_epoch) == (-1, -1)


def test_checkpoint_of_another_run_is_refused() -> None:
    state = trainer("random").autoaug_state.state_dict()
    with pytest.raises(CheckpointError, match="'random'"):
        trainer("none").autoaug_state.load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 7"):
        trainer("random").autoaug_state.load_state_dict(state | {"version": 7})
    with pytest.raises(CheckpointError, match="2 processes"):
        trainer("random").autoaug_state.load_state_dict(state | {"ranks": [None, None]})
    other = trainer("random", data=random_crops())
    other.autoaug_state.load_state_dict(state | {"ranks": [state["ranks"][0] | {"transforms": []}]})
    with pytest.raises(CheckpointError, match="0 random transforms"):
        other.run()


def test_state_waits_for_the_first_epoch() -> None:
    engine = trainer("none")
    state = engine.autoaug_state.state_dict()
    expected = float(torch.rand(1))
    engine.autoaug_state.load_state_dict(state)
    drawn: list[float] = []
    engine.add_event_handler(Events.STARTED, lambda: torch.rand(100))  # whatever draws before the first epoch
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: drawn.append(float(torch.rand(1))))
    engine.run()
    assert drawn == [expected]
