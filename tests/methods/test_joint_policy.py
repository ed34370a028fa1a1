# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies that learn while a network trains: what a sample is worth, when who learns, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import Fixed, losses, unet
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task, training_learner
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.meta_gradient import meta_gradient
from monai_autoaug.methods.meta_losses import view_losses
from monai_autoaug.policies import Sampled
from monai_autoaug.precision import Precision
from monai_autoaug.reading import check_content


class Streams(Fixed):
    """Fixed batches; the second one is for meta-validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches["meta"] = self.batches.pop("real")


def build(
    network: nn.Module | None = None, *, steps: int | None = 20, method: type[JointPolicy] = JointPolicy,
    precision: str = "float32", task: Mapping[str, Any] | None = None, **options: Any,
) -> JointPolicy:  # fmt: skip
    torch.manual_seed(0)
    network = unet() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    host = Task(network, optimizer, losses, Precision("cpu", precision), steps=steps, **(task or {}))
    settings: dict[str, Any] = {"warm_up": 0, "update_every": 1, "pool": 2, "views": 3} | options
    return method(host, **settings)


class Worth(JointPolicy):
    """Keeps what its samples were worth."""

    def _improve(self, drawn: Sampled) -> None:
        self.worth = drawn.values.clone()
        super()._improve(drawn)


@pytest.mark.parametrize("clip", [None, 1e-2])
@pytest.mark.parametrize("derivative", ["jvp", "double_backward", "finite_difference"])
def test_a_sample_is_worth_what_its_weight_changes(derivative: str, clip: float | None) -> None:
    """The loss on meta-validation patches after a real step, by central differences of each sample's weight."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Tanh(), nn.Conv3d(4, 3, 1)).double()
    seen: dict[str, Batch] = {}
    method = build(
        network, method=Worth, derivative=derivative, test_time=False,
        task={"clip": clip, "listener": lambda event, v: seen.update(v) if event == "forward" else None},
    )  # fmt: skip
    streams = Streams(shape=(8, 8, 8), dtype=torch.float64)
    method.step(streams)  # the momentum buffers are there from now on
    before = deepcopy((network, method.task.optimizer.state_dict()))
    method.step(streams)
    batch, meta = seen["batch"], streams.batches["meta"]

    def after(weights: Tensor) -> float:
        net = deepcopy(before[0])
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        optimizer.load_state_dict(deepcopy(before[1]))
        (losses(net(batch.image), batch.label, None) * weights).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip or torch.inf)
        optimizer.step()
        return float(_exact(net(meta.image).softmax(1), meta.label))

    ones = torch.eye(len(batch.image), dtype=torch.float64)
    step = 1e-4
    expected = [(after(1 + step * e) - after(1 - step * e)) / (2 * step) for e in ones]
    tolerance = 2e-2 if derivative == "finite_difference" else 1e-3
    assert method.worth.tolist() == pytest.approx(expected, rel=tolerance, abs=1e-7)
    assert max(abs(e) for e in expected) > 1e-5


def _exact(p: Tensor, y: Tensor) -> Tensor:
    """The default loss on meta-validation patches; the method's own is in float32, too coarse for differences."""
    entropy = -(y * p.log()).sum(1).mean()
    both, size = ((p * y)[:, 1:].sum((0, 2, 3, 4)), (p + y)[:, 1:].sum((0, 2, 3, 4)))
    return entropy + 1 - ((2 * both + 1e-5) / (size + 1e-5)).mean()


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, (True, True)),
        ({"warm_up": 3}, (False, False)),
        ({"freeze": 0.1, "warm_up": 1}, (True, True)),
        ({"learn_training": False}, (False, True)),
        ({"test_time": False}, (True, None)),
    ],
)
def test_who_learns_when(options: dict[str, Any], changes: tuple[bool, bool | None]) -> None:
    method = build(**options)
    start = {name: p.logits.detach().clone() for name, p in method.policies().items()}  # type: ignore[operator,union-attr]
    streams = Streams(shape=(16, 16, 16))
    for _ in range(3):
        method.step(streams)
    moved = {name: not torch.equal(p.logits, start[name]) for name, p in method.policies().items()}  # type: ignore[arg-type]
    assert (moved["training"], moved.get("test_time")) == changes
    expected = {"warm_up": 0, "freeze": 1}.get(next(iter(options), ""), 3)
    assert method.updates == expected
    assert streams.asked.count("meta") == expected


def test_two_samples_of_different_class_wait_for_others() -> None:
    """nnU-Net's batch of two: compared with itself, a sample says nothing; pooled it does."""
    streams = Streams(size=2, shape=(16, 16, 16))
    streams.batches["train"] = replace(streams.batches["train"], classes=torch.tensor([0, 1]))
    method = build(pool=4, test_time=False, class_of="sampled")
    start = method.training.logits.detach().clone()
    for _ in range(3):
        method.step(streams)
        assert torch.equal(method.training.logits, start)
    method.step(streams)
    assert not torch.equal(method.training.logits, start)


@pytest.mark.parametrize(("options", "asked"), [({"pool": 4}, True), ({"pool": 2}, False), ({"paired": True}, True),
                                                  ({"pool": 4, "paired": False}, False)])  # fmt: skip
def test_pooled_samples_are_compared_with_their_patches_as_they_were(options: dict[str, Any], asked: bool) -> None:
    """What the patch would be worth unaugmented, in the same step; if the policy leaves it alone, it is the same."""
    found: list[Sampled] = []

    class Kept(JointPolicy):
        def _improve(self, drawn: Sampled) -> None:
            found.append(drawn)

    streams = Streams(size=4, shape=(16, 16, 16))
    method = build(method=Kept, test_time=False, **options)
    method.step(streams)
    assert bool(torch.isfinite(found[0].plain).all()) == asked
    assert not torch.equal(found[0].plain, found[0].values)
    with torch.no_grad():
        method.training.logits.fill_(-30)  # the identity, which comes first, and nothing else
        start = 0
        for cascade in method.training.cascades:
            method.training.logits[:, start] = 30
            start += len(cascade)
    method.step(streams)
    assert torch.allclose(found[1].plain, found[1].values, rtol=1e-3) == asked


def test_a_comparison_that_is_not_finite_leaves_its_sample_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncorrected among corrected ones, it would drown them."""
    original, asked = training_learner.per_sample_hypergradient, []

    def spoilt(*given: Any, **options: Any) -> Tensor:
        values = original(*given, **options)
        asked.append(values)
        return values if len(asked) % 2 else values.index_fill(0, torch.tensor([1]), torch.inf)  # the patch as it was

    monkeypatch.setattr(training_learner, "per_sample_hypergradient", spoilt)
    method = build(paired=True, pool=40, test_time=False, classes="all")
    assert method.learning is not None
    method.step(Streams(size=4, shape=(16, 16, 16)))
    assert len(asked) == 2
    assert method.learning.dropped == 1
    assert len(method.state_dict()["learning"]["pool"]["values"]) == 3
    check_content(method.state_dict())
    assert any("worth of some samples was not finite" in w for w in method.warnings())


@pytest.mark.parametrize("loss_region", [1.0, 0.5])
def test_what_a_hosts_workers_have_augmented_teaches_the_same(loss_region: float) -> None:
    """Also by the comparison with the patches as they were, which are in the batch where the step needs them."""
    learned, streams = [], Streams(size=4, shape=(16, 16, 16), margin=(2, 2, 2))
    source = streams.batches["train"]
    for host in (False, True):
        method = build(test_time=False, pool=2, classes="all", paired=True, update_every=2, loss_region=loss_region)
        for step in range(3):
            if host:
                streams.batches["train"] = drawn = method.drawing()(source, method.generator, step)
                assert (drawn.plain is None) == (step == 1)
                assert drawn.plain is None or drawn.plain.image.shape == drawn.image.shape
            method.step(streams)
        learned.append(method.training.logits.detach().clone())
    assert torch.equal(*learned)
    assert not torch.equal(learned[0], build(classes="all").training.logits)


def test_patches_as_they_were_are_made_for_the_micro_batch_that_is_judged() -> None:
    """Of an accumulated update the last one; the others would make and carry them for nothing."""
    seen: list[bool] = []
    task = {"accumulation_steps": 3, "listener": lambda event, v: seen.append(v["batch"].plain is not None)
            if event == "forward" else None}  # fmt: skip
    method, streams = build(test_time=False, paired=True, task=task), Streams(size=2, shape=(8, 8, 8))
    for step in range(6):
        method.task.first_micro_batch, method.task.last_micro_batch = step % 3 == 0, step % 3 == 2
        method.step(streams)
    assert method.updates == method.steps == 2
    assert seen == [False, False, True] * 2


@pytest.mark.parametrize("dims", [2, 3])
def test_everything_that_belongs_to_a_patch_is_taken_along(dims: int) -> None:
    """Margin, a partly unknown label, further channels, a non-zero mask, regions; in 2D and 3D, in bfloat16."""
    from monai.networks.nets import UNet

    network = UNet(dims, 2, 3, (4, 8), (2,), norm="INSTANCE")
    streams = Streams(shape=(20,) * dims, margin=(2,) * dims, everything=True)
    for name, batch in streams.batches.items():
        streams.batches[name] = replace(batch, mask=(batch.image > -1).float())
    method = build(
        network, precision="bfloat16", task={"spatial_dims": dims, "regions": True, "patch_size": (16,) * dims},
        views=6,
    )  # fmt: skip
    method.views_help = True
    for _ in range(3):
        figures = method.step(streams)
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
    assert {"loss", "meta_loss", "view_loss", "identity_loss"} == set(figures)
    epoch = method.on_epoch(1)
    assert method.views_help == (epoch["views_gain"] > 0)
    assert all(p.grad is None for policy in method.policies().values() for p in policy.parameters())


def test_a_meta_batch_larger_than_memory_gives_the_same_gradient() -> None:
    """Dice is over all samples, however many are predicted at once; regions and unknown labels too."""
    streams = Streams(size=5, shape=(8, 8, 8), everything=True, dtype=torch.float64)
    batch = streams.batches["meta"]
    for regions in (False, True):
        network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Tanh(), nn.Conv3d(4, 3, 1))
        method = build(network.double(), test_time=False, task={"regions": regions})
        own = dict(network.named_parameters())
        found = [meta_gradient(method.task, own, batch, "both", at_once=k) for k in (5, 2)]
        assert torch.allclose(found[0][0], found[1][0])
        for a, b in zip(found[0][1], found[1][1], strict=True):
            assert torch.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_gain_of_views_is_that_of_the_deployed_average(average: Any) -> None:
    """Against the prediction that the policy itself makes."""
    streams = Streams(size=3, shape=(16, 16, 16))
    method = build(meta_batch=2, test_time_preset="uniform")
    policy, viewing = method.test_time, method.viewing
    assert policy is not None
    assert viewing is not None
    policy.average, policy.z = average, 5
    with torch.no_grad():
        policy.logits[[0, 29, 31, 34, 40]] += torch.tensor([2.0, 3.0, 1.5, 1.0, 2.5])  # mirrorings and quarter turns
    assert viewing.gain() is None
    method.step(streams)
    meta, random = streams.batches["meta"], method.generator.get_state()
    found = viewing.gain()
    assert torch.equal(method.generator.get_state(), random)
    network = method.task.network.eval()
    with torch.no_grad():
        plain, together = network(meta.image), policy.apply(network, meta.image)
    together = together if average == "probabilities" else together.softmax(1)
    expected = view_losses(plain.softmax(1), meta.label, None) - view_losses(together, meta.label, None)
    assert found is not None
    assert float(found) == pytest.approx(float(expected.mean()), abs=1e-6)
    assert abs(float(found)) > 1e-6
    assert viewing.gain() is None
