# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies that learn while a network trains: what a sample is worth, when who learns, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import Fixed, losses, unet
from torch import Tensor, nn

from monai_autoaug import policies
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods import Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.meta_gradient import meta_gradient
from monai_autoaug.methods.meta_losses import view_losses
from monai_autoaug.optim import LazyAdam
from monai_autoaug.policies import Sampled, TrainingPolicy
from monai_autoaug.precision import Precision


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


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Network, policies, what waits in the pool, and random numbers."""
    streams, options = Streams(shape=(16, 16, 16)), {"pool": 5, "update_every": 2}
    whole = build(steps=8, **options)
    for _ in range(8):
        whole.step(streams)
    half = build(steps=8, **options)
    for _ in range(4):
        half.step(streams)
    half.on_epoch(1)
    rest = build(steps=8, **options)
    rest.task.network.load_state_dict(half.task.network.state_dict())
    rest.task.optimizer.load_state_dict(deepcopy(half.task.optimizer.state_dict()))
    rest.load_state_dict(deepcopy(half.state_dict()))
    half.on_epoch(1)
    for _ in range(4):
        rest.step(streams)
    assert whole.updates == rest.updates == 4
    assert torch.equal(whole.training.logits, rest.training.logits)
    assert whole.test_time is not None
    assert rest.test_time is not None
    assert torch.equal(whole.test_time.logits, rest.test_time.logits)
    for a, b in zip(whole.task.network.parameters(), rest.task.network.parameters(), strict=True):
        assert torch.equal(a, b)


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


def test_policies_by_label_and_for_all() -> None:
    streams = Streams(shape=(16, 16, 16))
    by_label = build(classes="labels", task={"label_names": ("background", "anterior", "posterior")})
    by_label.step(streams)
    assert by_label.training.classes == ("background", "anterior", "posterior")
    assert build(classes="all").training.classes == ("all",)
    with pytest.raises(ConfigError, match="needs the labels' names"):
        build(classes="labels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "set learning_rate"),
        ({"warm_up": 20}, "would never be updated"),
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"classes": "organs"}, "classes must be one of"),
        ({"freeze": 0.0}, "freeze in"),
        ({"look_ahead": "Real"}, "look_ahead must be one of real, virtual, got 'Real'"),
        ({"derivative": "fd"}, "derivative must be one of"),
        ({"meta_loss": "focal"}, "must be one of ce, dice, both"),
        ({"class_of": "corner"}, "class_of must be one of"),
        ({"loss_region": 0.0}, "loss_region must be in"),
        ({"loss_region": 0.5, "class_of": "sampled"}, "leave class_of out"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_an_optimiser_with_other_parameters_is_refused() -> None:
    method = build()
    method.task.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ConfigError, match="parameters that are not the network's"):
        method.step(Streams(shape=(16, 16, 16)))


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


def test_a_frozen_policy_of_a_file_needs_no_meta_validation(tmp_path: Path) -> None:
    """What one training has learned is the augmentation of another."""
    learned = TrainingPolicy.preset("deepmedic", ("all",))
    policies.save(tmp_path / "policy.json", training=learned)
    method = build(policy=str(tmp_path / "policy.json"), learn_training=False, test_time=False)
    streams = Streams(shape=(16, 16, 16))
    method.step(streams)
    assert method.needs == ("train",)
    assert streams.asked == ["train"]
    assert torch.allclose(method.training.logits, learned.logits)
    assert not method.warnings()


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


def test_hardly_any_patch_of_a_class_is_told() -> None:
    """Patches that all have a structure at their centre; and the remedy: a loss around a voxel of either class."""
    streams = Streams(size=10, shape=(16, 16, 16))
    label = torch.zeros(10, 3, 16, 16, 16)
    label[:, 0] = 1
    label[:, 0, 6:10, 6:10, 6:10], label[:, 1, 6:10, 6:10, 6:10] = 0, 1
    streams.batches["train"] = replace(streams.batches["train"], label=label)
    seen: dict[str, Batch] = {}
    task = {"listener": lambda event, v: seen.update(v) if event == "forward" else None}
    for options, told in (({}, True), ({"loss_region": 0.3}, False), ({"classes": "all"}, False)):
        method = build(test_time=False, update_every=10, steps=2000, task=task, **options)
        for _ in range(10):
            method.step(streams)
        figures = method.on_epoch(1)
        assert any("hardly any patch is of class background" in w for w in method.warnings()) == told
        if options:
            assert figures.get("share_background", 0.5) == pytest.approx(0.5, abs=0.2)
        valid = seen["batch"].valid
        assert (valid is not None and float(valid.mean()) < 0.1) == ("loss_region" in options)


def test_views_that_do_harm_again_and_again_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    method, streams = build(steps=2000), Streams(shape=(8, 8, 8))
    assert method.viewing is not None
    monkeypatch.setattr(method.viewing, "_gain", lambda *_: torch.tensor(-0.01))
    for epoch in range(5):
        assert not any("made the predictions" in w for w in method.warnings())
        method.step(streams)
        assert method.on_epoch(epoch)["views_gain"] == pytest.approx(-0.01)
        assert not method.views_help
    assert any("made the predictions" in w for w in method.warnings())
    monkeypatch.setattr(method.viewing, "_gain", lambda *_: torch.tensor(0.01))
    method.step(streams)
    method.on_epoch(5)
    assert method.views_help
    assert not any("made the predictions" in w for w in method.warnings())


def test_what_is_not_finite_does_not_reach_a_policy() -> None:
    """One value would spoil all logits of its class, for ever; it is left out and told."""

    class Spoilt(JointPolicy):
        def _improve(self, drawn: Sampled) -> None:
            values = drawn.values.clone()
            values[0] = torch.nan
            super()._improve(replace(drawn, values=values))

    streams = Streams(size=6, shape=(16, 16, 16))
    method = build(method=Spoilt, pool=2)
    start = method.training.logits.detach().clone()
    for _ in range(3):
        method.step(streams)
    assert torch.isfinite(method.training.logits).all()
    assert not torch.equal(method.training.logits, start)
    assert any("was not finite" in w for w in method.warnings())
    meta = streams.batches["meta"]
    streams.batches["meta"] = replace(meta, image=torch.full_like(meta.image, torch.nan))
    method.step(streams)
    assert method.test_time is not None
    assert torch.isfinite(method.test_time.logits).all()
    assert torch.isfinite(method.training.logits).all()


def test_views_know_the_sides_of_a_policy_that_was_given() -> None:
    given = TrainingPolicy.preset("nnunet", laterality=[[1, 2]])
    method = build(policy=given)
    assert method.test_time is not None
    assert method.test_time.laterality == given.laterality is not None
    with pytest.raises(ConfigError, match="its laterality is None"):
        build(policy=TrainingPolicy.preset("nnunet"), laterality=[[1, 2]])


@pytest.mark.parametrize(
    ("classes", "dims", "message"),
    [(("background", "liver"), 3, "its classes are background, liver, the"), (("all",), 2, "it is of 2D")],
)
def test_a_policy_that_does_not_fit_is_refused(classes: tuple[str, ...], dims: int, message: str) -> None:
    """Other labels, or other axes."""
    given = TrainingPolicy.preset("nnunet", classes, spatial_dims=dims)
    with pytest.raises(ConfigError, match=message):
        build(policy=given, task={"label_names": ("background", "anterior", "posterior")})
    fitting = TrainingPolicy.preset("nnunet", ("background", "anterior", "posterior"))
    build(policy=fitting, task={"label_names": ("background", "anterior", "posterior")})


def test_checkpoints_of_other_policies_are_refused() -> None:
    """Other classes, operations or learners than those of the run."""
    state = build().state_dict()
    for options in ({"classes": "all"}, {"without": ["gamma"]}, {"test_time": False}, {"learn_training": False}):
        with pytest.raises(CheckpointError, match="is of other policies"):
            build(**options).load_state_dict(state)  # type: ignore[arg-type]


def test_a_checkpoint_loads_onto_another_device() -> None:
    """Moments and counts of the logits' optimiser go where its parameters are."""
    source = torch.nn.Parameter(torch.zeros(3))
    optimizer = LazyAdam([source], 0.1)
    source.grad = torch.ones(3)
    optimizer.step()
    elsewhere = torch.nn.Parameter(torch.zeros(3, device="meta"))
    resumed = LazyAdam([elsewhere], 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert {t.device.type for t in resumed.state[elsewhere].values()} == {"meta"}
