# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every row of the paper's tables as options of one method: what learns, from what, when, and on which cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from method_helpers import Fixed, losses
from torch import Tensor, nn

from monai_autoaug import methods, policies
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Task
from monai_autoaug.methods.comparisons import COMPARISONS, comparison
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.precision import Precision

STEPS = 10


class Streams(Fixed):
    """Training patches, and as many again of cases that are set apart."""

    def __init__(self) -> None:
        super().__init__(shape=(8, 8, 8))
        self.batches["meta"] = self.batches.pop("real")
        for name, batch in self.batches.items():
            self.batches[name] = replace(batch, case=tuple(f"{name} {c}" for c in batch.case))


def make(steps: int | None = STEPS, seen: list[Batch] | None = None, **options: Any) -> JointPolicy:
    """The method on a tiny network; ``seen`` collects what the network is trained on."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward" and seen is not None:
            seen.append(values["batch"])

    task = Task(network, optimizer, losses, Precision("cpu"), steps=steps, patch_size=(8, 8, 8), listener=listen)
    method = methods.build("joint_policy", task, **({"pool": 2, "views": 3} | options))
    assert isinstance(method, JointPolicy)
    return method


def parameters(method: JointPolicy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.task.network.parameters()])


@dataclass(frozen=True)
class Expected:
    """What is to be seen of a row."""

    training: Literal["none", "fixed", "learned"]
    views: Literal["none", "fixed", "along", "late"] = "none"
    classes: tuple[str, ...] = ("background", "foreground")
    apart: bool = True  # hosts set cases apart
    tuned: int = 0  # steps on them


ROWS = {
    "no_augmentation": Expected("none"),
    "heuristic": Expected("fixed"),
    "heuristic_all_cases": Expected("fixed", apart=False),
    "fine_tuning": Expected("fixed", tuned=2),
    "learned": Expected("learned", classes=("all",)),
    "class_specific": Expected("learned"),
    "randaugment_s": Expected("fixed"),
    "randaugment_m": Expected("fixed"),
    "randaugment_l": Expected("fixed"),
    "heuristic_tea": Expected("fixed", "fixed"),
    "class_specific_heuristic_tea": Expected("learned", "fixed"),
    "learned_tea": Expected("learned", "late"),
    "joint_all": Expected("learned", "along", ("all",)),
    "joint": Expected("learned", "along"),
}


def test_the_table_is_whole() -> None:
    assert set(COMPARISONS) == set(ROWS)
    assert all(row.what.endswith(".") for row in COMPARISONS.values())
    assert len({str(sorted(row.options.items(), key=str)) for row in COMPARISONS.values()}) == len(ROWS)
    with pytest.raises(ConfigError, match="there is no comparison 'oracle'; choose one of no_augmentation, "):
        comparison("oracle")


@pytest.mark.parametrize("name", ROWS)
def test_a_row(name: str, tmp_path: Path) -> None:
    expected, seen, streams = ROWS[name], [], Streams()  # type: ignore[var-annotated]
    options = comparison(name) | ({"views_after": 3} if name == "learned_tea" else {})
    method = make(seen=seen, **options)
    start = method.training.logits.detach().clone()
    views = None if method.test_time is None else method.test_time.logits.detach().clone()
    for _ in range(STEPS):
        method.step(streams)
    method.on_epoch(1)
    # which cases it is trained on, which are set apart, and what is done with them
    sources = [batch.case[0].split()[0] for batch in seen]
    assert sources == ["train"] * (STEPS - expected.tuned) + ["meta"] * expected.tuned
    assert method.needs == methods.streams("joint_policy", **options) == ("train", "meta")[: 1 + expected.apart]
    along = "along" in (expected.views, "along" if expected.training == "learned" else "")
    assert streams.asked.count("meta") == (STEPS if along else expected.tuned)
    # what has moved while training ran
    assert method.training.classes == expected.classes
    assert torch.equal(method.training.logits, start) == (expected.training != "learned")
    if views is not None:
        assert method.test_time is not None
        assert torch.equal(method.test_time.logits, views) == (expected.views != "along")
    # and what moves when it is over, of a network that stays as it is
    before, weights = method.training.logits.detach().clone(), parameters(method)
    figures = method.finish(streams)
    assert bool(figures) == (expected.views == "late")
    assert torch.equal(method.training.logits, before)
    assert torch.equal(parameters(method), weights)
    if views is not None:
        assert method.test_time is not None
        assert torch.equal(method.test_time.logits, views) == (expected.views == "fixed")
    # what is kept
    found: dict[str, Any] = method.policies()
    policies.save(tmp_path / "policy.json", **found)
    read = policies.load(tmp_path / "policy.json")
    assert (read.test_time is None) == (expected.views == "none")
    assert not method.learners or expected.training == "learned" or expected.views in ("along", "late")


def test_no_augmentation_is_none() -> None:
    seen: list[Batch] = []
    streams = Streams()
    make(seen=seen, **comparison("no_augmentation")).step(streams)
    assert torch.equal(seen[0].image, streams.batches["train"].image)
    assert torch.equal(seen[0].label, streams.batches["train"].label)
    seen.clear()
    make(seen=seen, **comparison("heuristic")).step(streams)
    assert not torch.equal(seen[0].image, streams.batches["train"].image)


@pytest.mark.parametrize(
    ("size", "zoom"), [("s", "scale_1.00_1.10"), ("m", "scale_1.20_1.30"), ("l", "scale_1.40_1.50")]
)
def test_randaugment_has_one_magnitude(size: str, zoom: str) -> None:
    policy = make(**comparison(f"randaugment_{size}")).training
    assert [o.name for o in policy.cascades[0].operations] == ["identity", zoom]
    assert float(policy.probabilities("foreground")[0][1].detach()) == pytest.approx(0.2)


def test_fixed_views_are_those_of_the_preset() -> None:
    method = make(**comparison("heuristic_tea", preset="deepmedic"))
    assert method.test_time is not None
    assert torch.equal(
        method.test_time.logits, policies.TestTimePolicy.preset("deepmedic", level="patch", patch_size=(8, 8, 8)).logits
    )
    assert method.learns_views(**comparison("heuristic_tea"))
    assert not method.views_learn


def test_fixed_views_can_be_what_the_training_policy_is_judged_on() -> None:
    """With ``joint``, as soon as averaging them helps; they themselves stay."""
    method = make(learn_test_time=False)
    assert method.test_time is not None
    before = method.test_time.logits.detach().clone()
    streams = Streams()
    method.step(streams)
    figures = method.on_epoch(1)
    assert method.views_help == (figures["views_gain"] > 0)
    assert torch.equal(method.test_time.logits, before)
    assert make(learn_test_time=False, joint=False).viewing is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "none", "floor": 0.0, "test_time": False}, "training policy would never learn anything.*set floor"),
        ({"preset": "none", "learn_training": False}, "test-time policy would never learn.*set test_time_preset"),
        ({"test_time_preset": "none"}, "test-time policy would never learn anything"),
        ({"fine_tune": 0.5}, "trains the network on the cases from which policies learn"),
        ({"learn_training": False, "hold_out": True}, "hold_out keeps unused the cases from which policies learn"),
        ({**comparison("heuristic"), "fine_tune": 0.5}, "two uses of the same cases"),
        ({**comparison("fine_tuning"), "fine_tune": 1.0}, r"share of the steps in \[0, 1\), got 1.0"),
        ({**comparison("fine_tuning"), "steps": None}, "share of the planned steps, whose number"),
        ({"test_time": False, "views_after": 5}, "views_after is for a test-time policy that learns"),
        ({"learn_test_time": False, "views_after": 5}, "views_after is for a test-time policy that learns"),
        ({"views_after": -1}, "views_after must be a number of updates"),
        ({"magnitude": "huge"}, "magnitude must be one of small, medium, large"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_none_can_be_where_learning_starts() -> None:
    """At the floor, from where everything can rise."""
    method = make(preset="none", floor=0.02, test_time=False)
    start = method.training.logits.detach().clone()
    for _ in range(3):
        method.step(Streams())
    assert not torch.equal(method.training.logits, start)


def test_short_trainings_that_learn_nothing_need_no_warm_up() -> None:
    make(steps=2, warm_up=20, **comparison("heuristic"))
    with pytest.raises(ConfigError, match="would never be updated"):
        make(steps=2, warm_up=20)
