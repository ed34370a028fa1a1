# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A loss or gradient that is not finite: the player's update is skipped and counted, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import Fixed, losses
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import AutoAugError, CheckpointError
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.precision import Precision

SMALL: dict[str, Any] = {"width": 2, "noise_size": 4, "warm_up": 0}
# with options by which every player learns from the first step on
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {"warm_up": 0},
    "adversarial": SMALL,
    "task_driven": {"width": 2, "warm_up": 0},
    "general_adversarial": {"width": 2, "noise_size": 4, "width_discriminator": 2},
    "joint_policy": {"warm_up": 0, "update_every": 1, "pool": 2, "views": 3},
    "bilevel": {"update_every": 1},
}


# players with batch norm, whose running statistics a forward changes at once
PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    "adversarial": ("adversarial", {"discriminator_resamples": False, "warm_up": 0}),
    "task_driven": ("task_driven", {}),
    "general": ("general_adversarial", {}),
    "decoder": ("general_adversarial", {"augmentation": "decoder"}),
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Streams(Fixed):
    """Fixed batches of all streams, which can be spoilt."""

    def __init__(self) -> None:
        super().__init__(shape=(16, 16, 16))
        self.batches |= {"meta": self.batches["real"], "unlabelled": self.batches["real"]}
        self.whole = dict(self.batches)

    def spoil(self, *streams: str) -> None:
        for name in streams:
            image = self.whole[name].image.clone()
            image[0, 0, 3] = torch.nan
            self.batches[name] = replace(self.whole[name], image=image)

    def mend(self) -> None:
        self.batches = dict(self.whole)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Tanh(), nn.Conv3d(4, 3, 1))


def build(name: str, *, precision: Precision | None = None, **options: Any) -> Method:
    torch.manual_seed(0)
    given = METHODS[name] | options
    net = methods.prepare(name, network(), **given)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    task = Task(
        net, optimizer, losses, precision or Precision("cpu"), steps=20, patch_size=(16, 16, 16),
        build=lambda: methods.prepare(name, network(), **given),
    )  # fmt: skip
    return methods.build(name, task, **given)


def learned(method: Method) -> dict[str, Tensor]:
    """All weights and running statistics that a checkpoint would hold."""
    modules: dict[str, nn.Module] = {"network": method.task.network}
    modules |= {n: p.module for n, p in method.players.items()} | dict(method.policies())
    found = {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}
    return found | {f"norms.{k}": v for k, v in method.state_dict()["auxiliary"].items()}


def changed(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> set[str]:
    """Names of the modules whose weights are others; samples that are well may have moved statistics of their own."""
    buffers = ("num_batches_tracked", "strength", "running_mean", "running_var")
    return {k.split(".")[0] for k, v in a.items() if not k.endswith(buffers) and not torch.equal(v, b[k])}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_that_is_not_finite_leaves_no_trace(name: str) -> None:
    method, streams = build(name), Streams()
    method.step(streams)
    method.step(streams)
    assert not method.task.precision.skipped
    before = learned(method)
    streams.spoil("train", "real", "unlabelled", "meta")
    for _ in range(2):
        method.step(streams)
    assert method.task.precision.skipped["network"] == 2 or name in ("task_driven", "general_adversarial")
    assert sum(method.task.precision.skipped.values()) >= 2
    assert set(method.task.precision.skipped) <= {"network", *method.players}
    method.on_epoch(1)  # which looks at the last patches
    method.warnings()
    after = learned(method)
    assert all(bool(torch.isfinite(v).all()) for v in after.values())
    skipped = {player for player, count in method.task.precision.skipped.items() if count == 2}
    assert skipped
    assert not skipped & changed(before, after)
    streams.mend()
    method.step(streams)
    assert skipped <= changed(after, learned(method))


def norms(method: Method) -> list[tuple[str, Any]]:
    """Batch norms of the players."""
    return [(n, m) for n, p in method.players.items() for m in p.module.modules() if isinstance(m, NORMS)]


@pytest.mark.parametrize("case", PAPER)
def test_running_statistics_of_players_come_back(case: str) -> None:
    """One batch would make them NaN for good: those of the last good step stay, and training goes on from there."""
    name, options = PAPER[case]
    method, streams = build(name, fidelity="paper", **options), Streams()
    assert norms(method)
    method.step(streams)
    before = [layer.running_var.clone() for _, layer in norms(method)]
    streams.spoil("train", "real", "unlabelled", "meta")
    method.step(streams)
    assert sum(method.task.precision.skipped.values()) >= 2
    method.state_dict()
    for former, (player, layer) in zip(before, norms(method), strict=True):
        assert bool(torch.isfinite(layer.running_var).all()), player
        if method.task.precision.skipped[player]:
            torch.testing.assert_close(layer.running_var, former, rtol=1.0, atol=1.0)
    skipped = dict(method.task.precision.skipped)
    streams.mend()
    method.step(streams)
    assert dict(method.task.precision.skipped) == skipped
    assert all(bool(torch.isfinite(v).all()) for v in learned(method).values())
    assert any(not torch.equal(v, layer.running_var) for v, (_, layer) in zip(before, norms(method), strict=True))


def test_statistics_of_a_restored_player_are_those_of_the_checkpoint() -> None:
    method, streams = build("task_driven", fidelity="paper"), Streams()
    for _ in range(2):
        method.step(streams)
    resumed = build("task_driven", fidelity="paper")
    resumed.load_state_dict(method.state_dict())
    for _, layer in norms(resumed):
        layer.running_mean.fill_(torch.nan)
    for player in resumed.players.values():
        player.statistics.settle()
    for (_, own), (_, other) in zip(norms(method), norms(resumed), strict=True):
        assert bool(own.running_mean.any())
        assert torch.equal(own.running_mean, other.running_mean)


@pytest.mark.parametrize("name", METHODS)
def test_training_stops_with_an_explanation(name: str) -> None:
    method, streams = build(name, precision=Precision("cpu", max_skipped=3)), Streams()
    streams.spoil("train", "real", "unlabelled", "meta")
    for _ in range(3):
        method.step(streams)
    with pytest.raises(AutoAugError, match=r"gradient of \w+ was not finite in 4 updates in a row; the last"):
        method.step(streams)
    assert Precision("cpu").max_skipped == 50


class Barred(methods.find("none")):  # type: ignore[misc]  # a class found by its name
    """Its loss is infinite in the second step, its gradient is not."""

    def step(self, batches: Any) -> dict[str, float]:
        batch: Batch = batches.next("train")
        output = self.task.forward(batch.image)
        loss = self.task.losses(output, batch.label, None).mean()
        if self.steps == 1:
            loss = loss + torch.tensor(torch.inf)
        self.tell_loss(loss)
        self.descend(loss)
        return {}


def test_a_loss_that_is_not_finite_is_enough() -> None:
    net = network()
    method = Barred(Task(net, torch.optim.SGD(net.parameters(), 0.1), losses, Precision("cpu")))
    streams = Streams()
    method.step(streams)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    method.step(streams)
    assert dict(method.task.precision.skipped) == {"network": 1}
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    method.step(streams)
    assert dict(method.task.precision.skipped) == {"network": 1}
    assert not torch.equal(net[0].weight, before["0.weight"])  # type: ignore[arg-type]  # of a Sequential


def test_micro_batches_before_the_last_count() -> None:
    net = network()
    task = Task(net, torch.optim.SGD(net.parameters(), 0.1), losses, Precision("cpu"), accumulation_steps=2)
    method, streams = methods.build("none", task), Streams()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    for last in (False, True):
        task.first_micro_batch, task.last_micro_batch = not last, last
        (streams.mend if last else lambda: streams.spoil("train"))()
        method.step(streams)
    assert dict(task.precision.skipped) == {"network": 1}
    assert not changed(before, net.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_infinite_does_not_get_into_a_checkpoint(name: str) -> None:
    """An update can be finite and too large."""
    method, streams = build(name), Streams()
    method.step(streams)
    method.state_dict()
    for player, (optimizer, _) in method._optimizers().items():
        parameter = optimizer.param_groups[0]["params"][0]
        former = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = torch.inf
        with pytest.raises(CheckpointError, match=f"the weights of {player} are not finite .* last good state stays"):
            method.state_dict()
        with torch.no_grad():
            parameter.copy_(former)
    norm: Any = method.task.network[1]  # type: ignore[index]  # of a Sequential
    norm.running_var[0] = torch.inf
    with pytest.raises(CheckpointError, match="the running statistics of network are not finite"):
        method.state_dict()


@pytest.mark.parametrize("case", PAPER)
def test_infinite_statistics_of_a_player_do_not_get_into_a_checkpoint(case: str) -> None:
    name, options = PAPER[case]
    method = build(name, fidelity="paper", **options)
    for player, layer in norms(method):
        layer.running_mean[0] = torch.nan
        with pytest.raises(CheckpointError, match=f"the running statistics of {player} are not finite"):
            method.state_dict()
        layer.running_mean[0] = 0
    method.state_dict()


def test_a_generator_that_learns_no_more_is_looked_at_too() -> None:
    method = build("task_driven", fidelity="paper")
    for number, phase in enumerate(method.phases):
        if number:
            method.begin_phase(number)
        for kind, generator in method.generators.items():  # type: ignore[union-attr]  # a ModuleDict
            what = "generator" if kind == phase.name else f"the {kind} generator"
            for tensors, says in ((generator.parameters(), "weights"), (generator.buffers(), "running statistics")):
                tensor = next(t for t in tensors if t.is_floating_point() and t.numel() > 1)
                former = tensor.detach().clone()
                with torch.no_grad():
                    tensor.view(-1)[0] = torch.inf
                with pytest.raises(CheckpointError, match=f"the {says} of {what} are not finite"):
                    method.state_dict()
                with torch.no_grad():
                    tensor.copy_(former)
    assert len(method.phases) == 3


@pytest.mark.parametrize("name", ["training", "test_time"])
def test_a_policys_update_is_skipped_on_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"training": "training_learner.training_gradient", "test_time": "view_learner.view_gradient"}[name]
    method, streams = build("joint_policy"), Streams()
    assert isinstance(method, JointPolicy)
    method.step(streams)
    original = getattr(getattr(methods, module.split(".")[0]), module.split(".")[1])

    def spoilt(*given: Any) -> Any:
        found = original(*given)
        gradient = found[0] if name == "training" else found
        gradient[..., 0] = torch.nan
        return found

    monkeypatch.setattr(f"monai_autoaug.methods.{module}", spoilt)
    before = {n: p.module.logits.detach().clone() for n, p in method.learners.items()}  # type: ignore[union-attr]
    weights = method.task.network[0].weight.detach().clone()  # type: ignore[index]
    method.step(streams)
    assert dict(method.task.precision.skipped) == {f"{name}_policy": 1}
    for n, player in method.learners.items():
        assert torch.equal(before[n], player.module.logits) == (n == name)  # type: ignore[arg-type]
    assert not torch.equal(weights, method.task.network[0].weight)  # type: ignore[index]
    with torch.no_grad():
        method.learners[name].module.logits[...] = torch.nan  # type: ignore[index]
    with pytest.raises(CheckpointError, match=f"the weights of {name}_policy are not finite"):
        method.state_dict()


def test_a_collapsed_policy_is_told() -> None:
    method = build("joint_policy")
    assert isinstance(method, JointPolicy)
    assert method.test_time is not None
    assert not any("collapsed" in w for w in method.warnings())
    gamma = [c.name for c in method.training.cascades].index("gamma")
    start = sum(len(c) for c in method.training.cascades[:gamma])
    with torch.no_grad():
        method.training.logits[1, start + 1] += 12.0
    told = [w for w in method.warnings() if "collapsed" in w]
    assert len(told) == 1
    assert "the policy of class foreground has collapsed onto one operation of gamma, which nothing shows" in told[0]
    assert method.learning is not None
    method.learning.evidence.moments[:, 1, start + 1] = torch.tensor([100.0, -80.0, 100.0]).double()
    method.learning.evidence.moments[:, 1, start] = torch.tensor([100.0, 80.0, 100.0]).double()
    assert not any("collapsed" in w for w in method.warnings())  # it is better beyond doubt
    with torch.no_grad():
        method.test_time.logits[7] += 20.0
    view = method.test_time.operations[7].name
    assert f"the test-time policy has collapsed onto one view, {view}" in method.warnings()
