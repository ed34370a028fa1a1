# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Phases in the MONAI host: fresh networks, schedules that begin anew, the best network of the last phase, resuming."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import loader, loss, network, record, trainer
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import methods
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import (
    AtomicCheckpointSaver,
    AutoAugTrainer,
    LastPhaseOnly,
    PhaseEvents,
    PhaseSchedule,
    TrainingCheckpoint,
    resume,
    train,
)
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods import Batches, Method, Phase
from monai_autoaug.methods.none import NoAugmentation


class Staged(Method):
    """The plain step in three phases, the last one with a fresh network; soft labels, so that it isn't "none"."""

    name: ClassVar[str] = "staged"
    phases = (Phase("one"), Phase("two"), Phase("three", 2, fresh=True))
    keeps_best = True

    def step(self, batches: Batches) -> dict[str, float]:
        batch = batches.next("train").cropped()
        output = self.task.forward(batch.image, batch.extra)
        self.task.notify("forward", {"batch": batch, "output": output})
        loss = self.task.losses(output, batch.label, batch.valid).mean()
        self.task.notify("loss", {"loss": loss})
        self.descend(loss)
        return {"loss": float(loss.detach()), "phase_number": float(self.phase_number)}


class Resting(Staged):
    """The network isn't trained in the first phase."""

    name: ClassVar[str] = "resting"
    phases = (Phase("one", rests=True), Phase("two"), Phase("three"))

    def descend(self, loss: torch.Tensor) -> None:
        if self.phase.rests:
            self.steps += 1
        else:
            super().descend(loss)


class RestingThenFresh(Resting):
    phases = (Phase("one", rests=True), Phase("two", fresh=True), Phase("three"))


def linear(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, epochs)


def by_function(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Its function, which knows the length, is in no checkpoint."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / (epochs + 1))


def engine(
    epochs: int = 4, *, handlers: Any = (), seed: int = 3, kind: type[Staged] = Staged, make: Any = linear, **given: Any
) -> AutoAugTrainer:
    torch.manual_seed(1)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    schedule = PhaseSchedule(optimizer, make)
    made = AutoAugTrainer(
        "cpu", epochs, loader(batch_size=4), net, optimizer, loss(), method=lambda task: kind(task, seed=seed),
        **({"network_builder": network} | given),
        train_handlers=[schedule, *(h(net, optimizer, schedule) for h in handlers)],
    )  # fmt: skip
    made.schedule = schedule
    return made


def test_the_last_phase_begins_with_the_seeded_fresh_network_and_a_fresh_schedule() -> None:
    made, seen = engine(), []
    made.add_event_handler(PhaseEvents.PHASE_STARTED, lambda e: seen.append((e.state.epoch, e.method.phase.name)))
    rates: list[float] = []
    found: dict[str, Any] = {}

    def note(e: Any) -> None:
        rates.append(e.optimizer.param_groups[0]["lr"])
        if e.state.epoch == 3:
            found.update({k: v.clone() for k, v in e.plain_network.state_dict().items()})
            found["momentum"] = len(e.optimizer.state)

    made.add_event_handler(Events.EPOCH_STARTED, note)
    made.state.best_metric = 0.9
    made.run()
    assert seen == [(2, "two"), (3, "three")]
    # two epochs from 1 to a half of the rate, then anew
    assert rates == pytest.approx([0.1, 0.075, 0.1, 0.075])
    assert found.pop("momentum") == 0
    torch.manual_seed(3 * 1009 + 2)
    assert all(torch.equal(found[k], v) for k, v in network().state_dict().items())
    assert made.state.best_metric == -1  # nothing was measured in the last phase


@pytest.mark.parametrize("kind", [Resting, RestingThenFresh])
def test_the_schedule_stands_still_while_the_network_rests(kind: type[Staged]) -> None:
    """Torch warns of a schedule that is stepped before its optimiser."""
    made, rates = engine(6, kind=kind), []
    made.add_event_handler(Events.EPOCH_STARTED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step")
        made.run()
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.0875, 0.075, 0.0625])


class Uneven(Staged):
    """The last phase is longer than the others together."""

    name: ClassVar[str] = "uneven"
    phases = (Phase("one", 0.5), Phase("two", 0.5), Phase("three", 3, fresh=True))


@pytest.mark.parametrize("make", [linear, by_function])
def test_a_run_resumed_in_any_phase_goes_on_bit_for_bit(make: Any, tmp_path: Path) -> None:
    def run(epochs: int, file: str, again: bool) -> tuple[list[dict[str, float]], AutoAugTrainer]:
        def saved(net: Any, optimizer: Any, schedule: Any) -> TrainingCheckpoint:
            objects = {"model": net, "optimizer": optimizer, "schedule": schedule}
            return TrainingCheckpoint(tmp_path / file, objects, resume=again)

        made = engine(5, handlers=[saved], make=make, kind=Uneven)
        figures = record(made)
        made.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), lambda e: e.terminate())
        made.run()
        return figures, made

    whole, reference = run(5, "whole.pt", False)
    length = len(whole) // 5
    assert [row["phase_number"] for row in whole[::length]] == [0, 1, 2, 2, 2]
    for stop in (1, 2, 3):
        before, _ = run(stop, f"{stop}.pt", False)
        after, resumed = run(5, f"{stop}.pt", True)
        assert before + after == whole
        pairs = zip(resumed.plain_network.parameters(), reference.plain_network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_cannot_work_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="give the trainer network_builder"):
        engine(network_builder=None)
    with pytest.raises(ConfigError, match="makes another one than the one that trains"):
        engine(network_builder=lambda: torch.nn.Conv3d(1, 3, 1))
    with pytest.raises(ConfigError, match=r"3 phases \(one, two, three\).*got 2 epochs"):
        engine(2).run()
    with pytest.raises(ConfigError, match="PhaseSchedule belongs to an AutoAugTrainer"):
        PhaseSchedule(torch.optim.SGD([torch.zeros(1)], 0.1), torch.optim.lr_scheduler.StepLR).attach(Engine(print))


def test_another_number_of_epochs_does_not_turn_phases_back() -> None:
    made = engine(4)
    made.method.begin_phase(2)
    made.state.max_epochs = 40
    with pytest.raises(CheckpointError, match="in its phase 'three' already.*belongs to 'one'"):
        made.run()


def test_the_best_network_is_one_of_the_last_phase(tmp_path: Path) -> None:
    made, net = engine(), torch.nn.Linear(1, 1)
    evaluator = Engine(lambda e, b: None)
    saver = AtomicCheckpointSaver(
        str(tmp_path), {"model": net}, save_key_metric=True, key_metric_name="dice", key_metric_filename="model.pt",
    )  # fmt: skip
    saver.attach(evaluator)
    LastPhaseOnly(evaluator, saver).attach(made)
    scores = iter([0.9, 0.8, 0.3, 0.2])

    def validate() -> None:
        evaluator.state.metrics = {"dice": next(scores)}
        with torch.no_grad():
            net.weight.fill_(evaluator.state.metrics["dice"])
        evaluator.fire_event(Events.EPOCH_COMPLETED)

    made.add_event_handler(Events.EPOCH_COMPLETED, validate)
    made.run()
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert float(kept["weight"]) == pytest.approx(0.3)


def test_a_metric_that_is_not_defined_is_never_the_best(tmp_path: Path) -> None:
    net, nan = torch.nn.Linear(1, 1), float("nan")
    metric = {"dice": Scores(iter([nan, 0.3, nan, 0.2, 0.4]))}
    evaluator = SupervisedEvaluator("cpu", [{"image": torch.ones(1, 1)}], net, key_val_metric=metric)
    given = {"save_key_metric": True, "key_metric_filename": "model.pt"}
    saver = AtomicCheckpointSaver(str(tmp_path), {"model": net}, **given)
    saver.attach(evaluator)
    kept, best = [], []
    for number in range(5):
        with torch.no_grad():
            net.weight.fill_(float(number))
        evaluator.run()
        model = tmp_path / "model.pt"
        kept.append(int(torch.load(model, weights_only=True)["weight"]) if model.exists() else None)
        best.append(evaluator.state.best_metric)
    assert kept == [None, 1, 1, 1, 4]
    assert best == [-1, 0.3, 0.3, 0.3, 0.4]
    old = saver.state_dict() | {"_saved": [(nan, "model.pt")]}  # what an earlier version may have written
    again = AtomicCheckpointSaver(str(tmp_path), {"model": net}, **given)
    again.load_state_dict(old)
    assert again.state_dict()["_saved"] == []


class Scores(Metric):
    """A key metric with given values, one a validation."""

    def __init__(self, values: Iterator[float]) -> None:
        self.values = values
        super().__init__()

    def reset(self) -> None: ...
    def update(self, output: Any) -> None: ...
    def compute(self) -> float:
        return next(self.values)


def test_a_trainer_has_no_best_metric_that_is_not_defined() -> None:
    made = trainer("none", max_epochs=2, key_train_metric={"dice": Scores(iter([float("nan"), 0.2]))})
    seen: list[float] = []
    made.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.best_metric))
    made.run()
    assert seen == [-1, 0.2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=5, size=20)


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "staged", f"{__name__}:Staged")


@pytest.mark.usefixtures("staged")
def test_a_whole_run_goes_through_its_phases_and_resumes_in_each(data: Path, tmp_path: Path) -> None:
    given = {"method": "staged", "epochs": 4, "iterations": 2, "validation_interval": 1}
    whole = train(options(data, tmp_path / "whole", **given))
    assert [row["phase"] for row in rows(whole)] == ["one", "two", "three", "three"]
    rates = [row["learning_rate"] for row in rows(whole)]
    assert rates[1] == rates[3] == 0
    assert rates[0] == rates[2] > 0
    dice = {row["epoch"]: row["dice"] for row in rows(whole) if row["phase"] == "three"}
    assert json.loads(whole.summary.read_text())["best_epoch"] == max(dice, key=lambda e: (dice[e], -e))
    for step in (3, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            train(options(data, tmp_path / str(step), **given), listener=stop_at(step))
        stopped = Run(tmp_path / str(step))
        resume(stopped.folder)
        assert rows(stopped) == rows(whole)
        assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize(("third", "fourth", "best"), [("nan", 0.2, 4), (0.2, "nan", 3), ("nan", "nan", None)])
def test_a_dice_that_is_not_defined_is_never_the_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: Any, fourth: Any, best: int | None
) -> None:
    """No validation case has a structure."""
    scores = iter([0.9, 0.8, float(third), float(fourth)])
    monkeypatch.setattr("monai_autoaug.engines.fit.validate", lambda *_: {"dice": next(scores)})
    given = {"method": "staged", "epochs": 4, "iterations": 1, "validation_interval": 1}
    run = train(options(data, tmp_path / "run", **given))
    summary = json.loads(run.summary.read_text())
    assert summary.get("best_epoch") == best
    assert any("no validation of the last phase has a Dice" in w for w in summary["warnings"]) == (best is None)


@pytest.mark.usefixtures("staged")
def test_a_best_network_without_a_dice_is_forgotten_by_a_resumed_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version took it."""
    monkeypatch.setattr("monai_autoaug.engines.fit.validate", lambda *_: {"dice": 0.2})
    given = {"method": "staged", "epochs": 4, "iterations": 2, "validation_interval": 1}
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "run", **given), listener=stop_at(7))
    run = Run(tmp_path / "run")
    content = run.load_checkpoint()
    assert content["best"]["epoch"] == 3
    run.save_checkpoint(content | {"best": content["best"] | {"dice": {"dice": float("nan")}}})
    assert json.loads(resume(run.folder).summary.read_text())["best_epoch"] == 4


@pytest.mark.usefixtures("staged")
def test_too_few_epochs_are_refused_before_any_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=16)
    monkeypatch.setattr("monai_autoaug.data.audit_views.read_nifti", lambda path: pytest.fail("a file was read"))
    with pytest.raises(ConfigError, match=r"3 phases \(one, two, three\).*got 2 epochs"):
        train(options(data, tmp_path / "run", method="staged", epochs=2))


def test_the_best_network_is_deployed_where_the_method_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first validation is the best one: that network is left, and not the last."""
    scores = {}
    for best in (True, False):
        monkeypatch.setattr(NoAugmentation, "keeps_best", best)
        values = iter([0.9, 0.5, 0.4])
        kept: list[dict[str, torch.Tensor]] = []

        def validate(net: torch.nn.Module, *_: Any, values: Any = values, kept: Any = kept) -> dict[str, float]:
            kept.append({k: v.clone() for k, v in net.state_dict().items()})
            return {"dice": next(values)}

        monkeypatch.setattr("monai_autoaug.engines.fit.validate", validate)
        run = train(options(data, tmp_path / str(best), method="none", validation_interval=1))
        summary = json.loads(run.summary.read_text())
        assert summary["validation_on_preprocessed_grid"]["dice"] == (0.9 if best else 0.4)
        scores[best] = [all(torch.equal(state[k], v) for k, v in weights(run).items()) for state in kept]
    assert scores == {True: [True, False, False], False: [False, False, True]}
