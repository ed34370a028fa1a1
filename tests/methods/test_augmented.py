# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What random and adversarial share: parts, warm-up, networks, what moves together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from method_helpers import NETWORKS, Fixed, build, losses, moved, unet
from monai.networks.nets import UNet
from torch import nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.augmented import AugmentedMethod
from monai_autoaug.methods.base import Task
from monai_autoaug.methods.parts import transform
from monai_autoaug.networks.auxiliary_norm import norm_groups
from monai_autoaug.precision import Precision


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("mode", ["combined", "affine", "deformation", "appearance"])
def test_every_mode_trains_every_network(make: Callable[[], nn.Module], mode: str) -> None:
    method = build(make(), mode=mode, warm_up=0)
    batches = Fixed(shape=(16, 24, 16))
    before = {n: copy.deepcopy(p.module.state_dict()) for n, p in method.players.items()}
    weights = copy.deepcopy(method.task.network.state_dict())
    figures = [method.step(batches) for _ in range(3)][-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
    kinds = {"affine", "deformation", "appearance"} if mode == "combined" else {mode}
    assert {n.removeprefix("loss_") for n in figures if n.startswith("loss_")} == kinds | (
        {"clean"} if mode == "combined" else set()
    )
    for name, player in method.players.items():
        changed = [k for k, v in player.module.state_dict().items() if not torch.equal(v, before[name][k])]
        assert changed, f"{name} did not learn"
    assert any(not torch.equal(v, weights[k]) for k, v in method.task.network.state_dict().items())
    epoch = method.on_epoch(1)
    assert {f"{k}_noise_share" for k in kinds} <= set(epoch)
    assert set(method.augmenters()) == kinds


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_parts_rotate_evenly(size: int) -> None:
    method = build()
    assert isinstance(method, AugmentedMethod)
    seen = torch.cat([method.partition(size) for _ in range(40)])
    counts = torch.bincount(seen, minlength=4)
    assert int(counts.max() - counts.min()) <= 1
    if size >= 4:
        assert all(set(method.partition(size).tolist()) == {0, 1, 2, 3} for _ in range(50))
        method = build()
        assert isinstance(method, AugmentedMethod)
    again = build()
    assert isinstance(again, AugmentedMethod)
    assert torch.equal(torch.cat([again.partition(size) for _ in range(40)]), seen)


@pytest.mark.parametrize("size", [1, 2])
def test_batches_smaller_than_four_train(size: int) -> None:
    method = build()
    batches = Fixed(size=size)
    kinds = {name for _ in range(8) for name in method.step(batches) if name.startswith("loss_")}
    assert kinds == {"loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}


def test_warm_up_starts_from_the_identity() -> None:
    method = build(warm_up=10)
    assert isinstance(method, AugmentedMethod)
    batches = Fixed()
    fresh = method.generators["affine"](batches.next("train").image).apply(batches.next("train").image)
    assert torch.allclose(fresh, batches.next("train").image, atol=1e-4)
    strengths = []
    for _ in range(12):
        method.step(batches)
        strengths.append(float(method.generators["affine"].strength))
    assert strengths == pytest.approx([min(1.0, (i + 1) / 10) for i in range(12)])


def test_random_is_the_same_arrangement_with_nothing_learned() -> None:
    method = build(name="random", warm_up=0)
    assert isinstance(method, AugmentedMethod)
    assert not method.players
    batches = Fixed()
    before = copy.deepcopy(method.generators.state_dict())
    figures = method.step(batches)
    assert set(figures) == {"loss", "loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}
    assert all(torch.equal(v, before[k]) for k, v in method.generators.state_dict().items() if "strength" not in k)
    affine = method.generate(batches.next("train"))[1].transformation
    assert affine is not None
    assert float(affine.magnitude()["displacement_mean"]) > 0.1


@pytest.mark.parametrize("mode", ["combined", "deformation"])
def test_two_dimensions_and_two_channels(mode: str) -> None:
    torch.manual_seed(0)
    network = UNet(2, 2, 3, (4, 8), (2,), num_res_units=1)
    method = build(network, spatial_dims=2, image_channels=2, mode=mode)
    figures = method.step(Fixed(shape=(24, 20), channels=2))
    assert torch.isfinite(torch.tensor(figures["loss"]))


def test_transform_moves_everything_that_belongs_together() -> None:
    method = moved(build())
    assert isinstance(method, AugmentedMethod)
    base = Fixed(margin=(2, 2, 2)).batches["train"]
    valid = torch.ones(4, 1, 16, 20, 16)
    valid[:, :, :8] = 0
    batch = Batch(base.image, base.label, valid=valid, extra=base.label[:, 1:], mask=(base.image > -1).float(),
                  case=base.case, margin=base.margin)  # fmt: skip
    noise = method.generators["affine"].sample_noise(4)
    t = method.generators["affine"](batch.image, noise)
    out = transform(batch, t)
    assert out.image.shape == (4, 1, 12, 16, 12)
    known = batch.valid * batch.label
    expected = t.apply_label(known, margin=(2, 2, 2), regions=True) / out.valid.clamp(min=1e-3)
    inside = t.apply_label(torch.ones_like(valid), margin=(2, 2, 2), regions=True) > 0.999
    assert torch.allclose((out.label * inside)[:, 1:], (expected * inside)[:, 1:], atol=1e-4)
    sums = out.label.sum(1, keepdim=True)
    assert torch.allclose(sums[out.valid > 0.01], torch.ones(()), atol=1e-4)  # of known voxels alone, however few
    assert bool(((out.valid > 0.01) & (out.valid < 0.99)).any())
    everywhere = transform(replace(batch, valid=None), t)
    assert torch.allclose(everywhere.label[:, 1:], out.extra, atol=1e-5)  # further channels follow like a label
    assert torch.allclose(out.valid, t.apply_label(valid, margin=(2, 2, 2)), atol=1e-6)
    assert bool((out.image[out.mask < 0.5] == 0).all())
    plain = transform(replace(batch, mask=None), t).image
    assert torch.equal(out.image[out.mask >= 0.5], plain[out.mask >= 0.5])  # the edge is not darkened twice
    shade = method.generators["appearance"](batch.image)
    kept = transform(batch, shade)
    assert torch.equal(kept.extra, batch.cropped().extra)
    assert not torch.equal(kept.image, batch.cropped().image)


def test_building_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    network = methods.prepare("adversarial", unet())
    task = Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"))
    torch.manual_seed(5)
    methods.build("adversarial", task, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_groups_are_back_at_rest_after_a_step() -> None:
    method = build()
    method.step(Fixed())
    layers = [m for m in method.task.network.modules() if hasattr(m, "auxiliary_weight")]
    assert layers
    assert all(m.group is None for m in layers)
    with norm_groups(method.task.network, torch.tensor([0])):
        assert all(m.group is not None for m in layers)
