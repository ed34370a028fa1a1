# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loss, patch size, margin, inference and validation masks of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn

from monai_autoaug.engines.losses import per_sample
from monai_autoaug.engines.segmentation import (
    IGNORED,
    NETWORKS,
    SegmentationLoss,
    build_network,
    choose_margin,
    choose_patch_size,
    downsampling,
    infer,
)
from monai_autoaug.engines.validation import masks
from monai_autoaug.precision import Precision


def test_the_loss_is_monais_dice_and_cross_entropy() -> None:
    logits, label = torch.randn(2, 3, 4, 5, 6), torch.randint(3, (2, 1, 4, 5, 6))
    expected = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, label)
    torch.testing.assert_close(SegmentationLoss()(logits, label), expected)


def test_unknown_voxels_count_for_nothing() -> None:
    logits, label = torch.randn(2, 3, 4, 4, 4, requires_grad=True), torch.randint(3, (2, 1, 4, 4, 4))
    label[:, :, 2] = IGNORED
    loss = SegmentationLoss(ignore=True)
    loss(logits, label).backward()
    assert bool((logits.grad[:, :, 2] == 0).all())
    assert bool((logits.grad[:, :, :2] != 0).any())
    elsewhere = torch.cat([logits[:, :, :2], 100 * logits[:, :, 2:3], logits[:, :, 3:]], dim=2)
    torch.testing.assert_close(loss(elsewhere, label), loss(logits, label))


def test_regions_are_learned_one_by_one() -> None:
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(2, (2, 3, 4, 4, 4)).float()
    loss = SegmentationLoss(regions=True)
    p = logits.sigmoid()
    entropy = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    axes = (2, 3, 4)
    dice = 1 - (2 * (p * label).sum(axes) + 1e-5) / (p.sum(axes) + label.sum(axes) + 1e-5)
    torch.testing.assert_close(loss(logits, label), dice.mean() + entropy)


def known_regions(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, overlapping regions, and where they are known: another share of each sample."""
    logits = torch.randn(3, channels, 4, 5, 6, requires_grad=True)
    label = torch.randint(2, (3, channels, 4, 5, 6)).float()
    valid = (torch.rand(3, 1, 4, 5, 6) < torch.tensor([0.3, 0.6, 0.9]).view(3, 1, 1, 1, 1)).float()
    return logits, label, valid


def reference(logits: torch.Tensor, label: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Sigmoid Dice a sample and region, and binary cross-entropy, on the known voxels alone, taken out one by one."""
    dice, entropy = [], []
    for x, y, v in zip(logits, label, valid[:, 0] > 0, strict=True):
        p, t = x[:, v].sigmoid(), y[:, v]
        dice.append(1 - (2 * (p * t).sum(1) + 1e-5) / (p.sum(1) + t.sum(1) + 1e-5))
        entropy.append(-(t * p.log() + (1 - t) * (1 - p).log()))
    return torch.stack(dice).mean() + torch.cat([e.flatten() for e in entropy]).mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_with_unknown_voxels_are_learned_on_the_others(channels: int) -> None:
    logits, label, valid = known_regions(channels)
    expected = reference(logits, label, valid)
    (gradient,) = torch.autograd.grad(expected, logits)
    loss = SegmentationLoss(regions=True, ignore=True)
    marked = torch.where(valid > 0, label, IGNORED)
    losses = per_sample(loss, "channels")
    for found in (loss(logits, marked), loss.masked(logits, label, valid), losses(logits, label, valid).mean()):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient, rtol=1e-4, atol=1e-8)
    assert losses(logits, label, valid).shape == (3,)
    whole = SegmentationLoss(regions=True)
    torch.testing.assert_close(loss(logits, label), whole(logits, label))  # nothing unknown
    torch.testing.assert_close(losses(logits, label, None).mean(), whole(logits, label))


def test_soft_regions_and_soft_validity_pass_a_gradient() -> None:
    """Central differences in the label and in where it is known, as a warp moves both."""
    logits, label, valid = (x.detach() for x in known_regions())
    label, valid = 0.8 * label + 0.1, 0.8 * valid + 0.1
    losses = per_sample(SegmentationLoss(regions=True, ignore=True), "channels")
    for moving in (label, valid):
        moving.requires_grad_()
        (gradient,) = torch.autograd.grad(losses(logits, label, valid).mean(), moving)
        moving.requires_grad_(False)
        direction = torch.randn_like(moving)
        ends = [losses(logits, *(x + step * direction if x is moving else x for x in (label, valid))).mean()
                for step in (1e-3, -1e-3)]  # fmt: skip
        slope = float(ends[0] - ends[1]) / 2e-3
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.03, abs=2e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_a_sample_without_a_known_voxel_has_a_finite_loss(regions: bool) -> None:
    """A warp can take all known voxels out of a patch."""
    logits, label, valid = known_regions()
    valid[1] = 0
    if not regions:
        label = nn.functional.one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    losses = per_sample(SegmentationLoss(regions=regions, ignore=True), "channels" if regions else "index")
    values = losses(logits, label, valid)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(torch.autograd.grad(values.mean(), logits)[0]).all())


@pytest.mark.parametrize("kind", ["classes", "regions", "ignore"])
def test_the_loss_has_a_per_sample_form(kind: str) -> None:
    loss = SegmentationLoss(regions=kind == "regions", ignore=kind == "ignore")
    logits = torch.randn(2, 3, 6, 6, 6)
    label = nn.functional.one_hot(torch.randint(3, (2, 6, 6, 6)), 3).movedim(-1, 1).float()
    valid = torch.ones(2, 1, 6, 6, 6) if kind == "ignore" else None
    losses = per_sample(loss, "channels" if kind == "regions" else "index")(logits, label, valid)
    host = loss(logits, label if kind == "regions" else label.argmax(1, keepdim=True))
    torch.testing.assert_close(losses.mean(), host)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_what_downsampling_says(name: str) -> None:
    n = downsampling(name, {})
    network = build_network(name, 2, 5)
    assert network(torch.zeros(1, 2, 2 * n, n * 3, 2 * n)).shape == (1, 5, 2 * n, 3 * n, 2 * n)
    assert 0.5e6 < sum(p.numel() for p in network.parameters()) < 2e6


def test_patch_and_margin() -> None:
    assert choose_patch_size((35, 50, 35), 8) == (40, 56, 40)
    assert choose_patch_size((5, 50, 35), 8) == (8, 56, 40)  # never below the factor
    assert choose_patch_size((9, 64, 64), 8) == (8, 64, 64)  # 16 would be more than a third too many
    size = choose_patch_size((400, 500, 60), 16)
    assert all(n % 16 == 0 for n in size)
    assert 0.7 * 96**3 < size[0] * size[1] * size[2] <= 96**3
    assert choose_margin((40, 56, 40), (35, 50, 35)) == (0, 0, 0)
    assert choose_margin((64, 64, 64), (200, 66, 64)) == (8, 1, 0)


def test_inference_sees_every_voxel_once_in_the_mean() -> None:
    network = nn.Conv3d(1, 2, 1)
    image = torch.randn(1, 21, 9, 30)
    with torch.no_grad():
        expected = network(image)
    network.train()
    torch.testing.assert_close(infer(network, image, (16, 16, 16), Precision("cpu")), expected, atol=1e-5, rtol=1e-5)
    assert network.training


def test_inference_pads_by_the_border() -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return x

    infer(Look(), torch.full((1, 4, 8, 8), 7.0), (8, 8, 8), Precision("cpu"))
    assert float(seen[0].min()) == 7.0


def test_validation_masks_of_classes_regions_and_unknown_voxels() -> None:
    label = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1)  # 3: unknown
    logits = torch.eye(3)[torch.tensor([0, 2, 2, 1])].T.view(3, 4, 1, 1)
    classes = SimpleNamespace(num_classes=3, regions=None)
    prediction, reference = masks(logits, label, classes)
    assert prediction.flatten(1).tolist() == [[False] * 4, [False, True, True, False]]
    assert reference.flatten(1).tolist() == [[False, True, False, False], [False, False, True, False]]
    regions = SimpleNamespace(num_classes=3, regions=((1, 2), (2,)), patch_options={"regions": ((1, 2), (2,))})
    prediction, reference = masks(logits[1:] - 0.5, label, regions)
    assert prediction.flatten(1).tolist() == [[False] * 4, [False, True, True, False]]
    assert reference.flatten(1).tolist() == [[False, True, True, False], [False, False, True, False]]
