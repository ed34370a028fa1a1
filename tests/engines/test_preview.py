# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training foreseen: what is measured, what follows from it, and that it is the training that comes."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from run_helpers import options
from torch import Tensor

from monai_autoaug.data import PatchBatches, write_phantom
from monai_autoaug.engines import pace, preview
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.pace import Pace, windows
from monai_autoaug.engines.random_states import random_states
from monai_autoaug.engines.run import train
from monai_autoaug.memory import peak_memory
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.task_driven import TaskDriven
from monai_autoaug.policies import TestTimePolicy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("preview") / "data", cases=6, size=16, test=2)


class Clock:
    """A clock that goes on only where a test lets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.perf_counter = lambda: self.now

    def around(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def slow(own: Any, *given: Any, **named: Any) -> Any:
            if getattr(own, "stream", "train") == "train":
                self.now += seconds
            return original(own, *given, **named)

        monkeypatch.setattr(owner, name, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (pace, preview):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=found.perf_counter))
    return found


def test_the_time_of_a_policy_is_that_of_its_steps_and_its_updates(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out by hand from parts whose times are set."""
    given = options(
        data, tmp_path / "run", method="joint_policy", epochs=4, iterations=5, validation_interval=3,
        method_options={"warm_up": 4, "update_every": 3, "views": 2, "meta_batch": 2, "pool": 2},
    )  # fmt: skip
    clock.around(monkeypatch, PatchBatches, "__getitem__", 0.5)
    clock.around(monkeypatch, JointPolicy, "step", 2.0)
    clock.around(monkeypatch, JointPolicy, "_learn", 7.0)
    clock.around(monkeypatch, JointPolicy, "on_epoch", 1.5)
    monkeypatch.setattr(preview, "measure_window", lambda *given: 0.25)
    found = preview.preview(given)
    assert found.pace.steps == {"train": (2.0, 9.0)}
    assert found.pace.fetching == 0.5
    assert found.pace.ending == {"train": 1.5}
    # 20 steps; updates in steps 4, 7, 10, 13, 16 and 19
    assert found.seconds["training"] == pytest.approx(20 * 2.5 + 6 * 7 + 4 * 1.5)
    per_volume = windows(found.preprocessing.median_shape, found.plan.patch_size, 0.25)
    validated = len(found.plan.split.validation)
    assert found.seconds["validating"] == pytest.approx(0.25 * per_volume * validated * 2)  # epochs 3 and 4
    last = windows(found.preprocessing.median_shape, found.plan.patch_size, 0.5)
    passes = TestTimePolicy.preset("nnunet").z + 1  # with the views, and once without them
    assert found.seconds["predicting"] == pytest.approx(0.25 * last * passes * validated)


@pytest.mark.parametrize(
    ("method", "method_options", "attribute"),
    [
        ("joint_policy", {"warm_up": 3, "update_every": 4, "views": 2, "meta_batch": 4, "pool": 2}, JointPolicy),
        ("joint_policy", {"learn_training": False, "learn_test_time": False}, JointPolicy),
        ("bilevel", {"update_every": 3, "warm_up": 2}, Bilevel),
        ("bilevel", {"augmentation": "predefined"}, Bilevel),
    ],
)
def test_as_many_steps_learn_as_are_foreseen(
    data: Path, tmp_path: Path, method: str, method_options: dict[str, Any], attribute: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made: list[Any] = []
    original = attribute.__init__

    @functools.wraps(original)
    def remember(own: Any, *given: Any, **named: Any) -> None:
        original(own, *given, **named)
        made.append(own)

    monkeypatch.setattr(attribute, "__init__", remember)
    train(options(data, tmp_path / "run", method=method, epochs=4, iterations=5, method_options=method_options))
    assert made[-1].updates == made[-1].learning_steps(20)


def test_phases_have_their_own_pace_and_only_what_is_left_counts(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TaskDriven.step

    def slow(own: Any, batches: Any) -> Any:
        # measured well under way, not in what comes before learning
        clock.now += 1.0 + own.phase_number if own.phase_steps >= own.warm_up else 100.0
        return original(own, batches)

    monkeypatch.setattr(TaskDriven, "step", slow)
    given = options(
        data, tmp_path / "run", method="task_driven", epochs=6, iterations=10, unlabelled=data / "imagesTs"
    )  # fmt: skip
    whole = preview.preview(given)
    assert whole.phases == {"deformation": 2, "appearance": 2, "network": 2}
    assert {name: steps[0] for name, steps in whole.pace.steps.items()} == {
        "deformation": 1.0, "appearance": 2.0, "network": 3.0,
    }  # fmt: skip
    assert whole.seconds["training"] == pytest.approx(20 * (1 + 2 + 3))
    left = preview.preview(given, done=3)
    assert left.phases == {"deformation": 0, "appearance": 1, "network": 2}
    assert left.seconds["training"] == pytest.approx(10 * 2 + 20 * 3)


def test_workers_cut_patches_side_by_side() -> None:
    found = Pace({"train": (1.0, 1.0)}, 6.0, {"train": 0.0}, 1.0, 0.0)
    seconds = [found.epoch("train", TrainOptions("data", "run", iterations=10, workers=n)) for n in (0, 2, 6, 8)]
    assert seconds == [70.0, 30.0, 10.0, 10.0]


@pytest.mark.parametrize("shape", [(20, 20, 20), (33, 20, 64), (40, 41, 17)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_are_counted_as_monai_makes_them(shape: tuple[int, ...], overlap: float) -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    SlidingWindowInferer((20, 20, 16), 2, overlap)(torch.zeros(1, 1, *shape), network)
    assert sum(seen) == windows(shape, (20, 20, 16), overlap)


def test_the_plan_is_that_of_the_training_and_random_numbers_stay(data: Path, tmp_path: Path) -> None:
    given = options(data, tmp_path / "run", method="bilevel", epochs=2, iterations=10)
    before = random_states()
    found = preview.preview(given)
    after = random_states()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["keys"], after["numpy"]["keys"])
    assert list(tmp_path.iterdir()) == []
    run = train(given)
    assert read_json(run.config) == found.plan.to_dict()
    summary = read_json(run.summary)
    assert (summary["parameters"], summary["device"], summary["precision"]) == (
        found.parameters, found.device, found.precision,
    )  # fmt: skip
    assert found.said == ("The augmenter is updated every 10 updates of the network, 2 times in all, through the last 1"
                          " of them",)  # fmt: skip


def test_volumes_count_where_they_stay(data: Path, tmp_path: Path) -> None:
    given = {"method": "none", "epochs": 1, "iterations": 1}
    kept = preview.preview(options(data, tmp_path / "run", **given))
    cached = preview.preview(options(data, tmp_path / "run", cache=tmp_path / "cache", **given))
    voxels = torch.tensor(kept.preprocessing.median_shape).prod().item()
    assert kept.volumes_mib == pytest.approx(6 * 5 * voxels / 1024**2, rel=0.3)  # float32 and a label of a byte
    assert kept.volumes_mib == cached.volumes_mib
    assert kept.host_mib is not None
    assert kept.host_mib >= (peak_memory(torch.device("cpu"))["host_mib"] or 0) * 0.5
    assert not (tmp_path / "cache").exists()
    assert not Run(tmp_path / "run").folder.exists()
