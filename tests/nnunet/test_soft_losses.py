# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The losses for soft labels against nnU-Net's own: value and gradient on hard labels, in every combination."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.losses import linearised, soft_losses, soft_term
from monai_autoaug.nnunet.patches import PatchLayout

SCALES = ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.25, 0.5, 0.25])
SHAPE = (8, 6, 12)


def layout(classes: int, regions: bool, ignore: int | None) -> PatchLayout:
    return PatchLayout(classes, 1, regions, ignore, (1.0, 1.0, 1.0), (False,), (0, 0, 0), SCALES)


def logits(batch: int, classes: int, deep: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [[round(n * s) for n, s in zip(SHAPE, scale, strict=True)] for scale in SCALES] if deep else [SHAPE]
    return [
        (3 * torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)).requires_grad_(True)
        for size in sizes
    ]


def targets(full: Tensor, deep: bool) -> Any:
    """nnU-Net's own targets, made sample by sample as its workers do."""
    if not deep:
        return full
    transform = DownsampleSegForDSTransform(SCALES)
    samples = [transform(segmentation=sample.clone())["segmentation"] for sample in full]
    return [torch.stack(level) for level in zip(*samples, strict=True)]


def compare(host: nn.Module, outputs: list[Tensor], full: Tensor, read: PatchLayout, deep: bool) -> None:
    output: Any = outputs if deep else outputs[0]
    expected = host(output, targets(full, deep))
    wanted = torch.autograd.grad(expected, outputs, allow_unused=True)
    label, valid = read.soft_label(full)
    losses = soft_losses(host)(output, label.double(), None if valid is None else valid.double())
    assert losses.shape == (len(full),)
    got = torch.autograd.grad(losses.mean(), outputs, allow_unused=True)
    # nnU-Net sums in float32, so a float64 comparison ends there
    assert losses.mean().item() == pytest.approx(float(expected), rel=2e-5, abs=2e-6)
    for a, b in zip(got, wanted, strict=True):
        if b is None:
            assert a is None
            continue
        assert a is not None
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5 * max(scale, 1e-6))


def label_map(batch: int, classes: int, ignore: bool) -> Tensor:
    full = torch.randint(0, classes, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(5), dtype=torch.int16)
    full[0, :, 4:] = 0  # the samples differ much, so that batch Dice and sample Dice do too
    if ignore:
        full[:, :, :, 4:] = classes
        full[-1, :, :3] = classes
    return full


def in_pyramid(loss: nn.Module, deep: bool) -> nn.Module:
    weights = np.array([1.0, 0.5, 0.0])
    return DeepSupervisionWrapper(loss, weights / weights.sum()) if deep else loss


ALL = list(itertools.product((1, 2, 3), (False, True), (False, True), (False, True)))


@pytest.mark.parametrize(("batch", "batch_dice", "ignore", "deep"), ALL)
def test_dice_and_cross_entropy(batch: int, batch_dice: bool, ignore: bool, deep: bool) -> None:
    host = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, weight_ce=1, weight_dice=1,
        ignore_label=3 if ignore else None, dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    full = label_map(batch, 3, ignore)
    compare(in_pyramid(host, deep), logits(batch, 3, deep), full, layout(3, False, 3 if ignore else None), deep)


@pytest.mark.parametrize(("batch", "batch_dice", "ignore", "deep"), ALL)
def test_dice_and_binary_cross_entropy(batch: int, batch_dice: bool, ignore: bool, deep: bool) -> None:
    host = DC_and_BCE_loss(
        {}, {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False}, use_ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    values = label_map(batch, 3, ignore)
    parts = [values > 0, values == 2, *([values == 3] if ignore else [])]
    if ignore:
        parts[0] = parts[0] & (values != 3)
    full = torch.cat(parts, dim=1)
    compare(in_pyramid(host, deep), logits(batch, 2, deep), full, layout(2, True, 3 if ignore else None), deep)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda d, i: RobustCrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.3], dtype=torch.float64), **i),
        lambda d, i: RobustCrossEntropyLoss(label_smoothing=0.2, **i),
        lambda d, i: TopKLoss(k=10, label_smoothing=0.1, **i),
        lambda d, i: DC_and_topk_loss(d, {"k": 10}, ignore_label=i.get("ignore_index")),
        lambda d, i: MemoryEfficientSoftDiceLoss(softmax_helper_dim1, **(d | {"smooth": 0.0})),
        lambda d, i: SoftDiceLoss(softmax_helper_dim1, clip_tp=1.0, **d),
    ],
    ids=["weighted", "smoothed", "topk", "dice_topk", "dice_no_smooth", "clipped"],
)
def test_the_losses_of_nnunets_other_trainers(make: Any, batch_dice: bool, ignore: bool) -> None:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    host = make(dice, {"ignore_index": 3} if ignore else {})
    if ignore and isinstance(host, SoftDiceLoss | MemoryEfficientSoftDiceLoss):
        ignore = False  # these take no ignore label in nnU-Net
    compare(host, logits(3, 3, False), label_map(3, 3, ignore), layout(3, False, 3 if ignore else None), False)


def test_nothing_known_gives_no_loss_and_no_gradient() -> None:
    host = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, ignore_label=3,
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    output = torch.randn(2, 3, *SHAPE, requires_grad=True)
    full = torch.full((2, 1, *SHAPE), 3)
    label, valid = layout(3, False, 3).soft_label(full)
    loss = soft_losses(host)(output, label, valid).mean()
    loss.backward()
    assert loss.item() == pytest.approx(host(output, full).item())
    assert output.grad is not None
    assert output.grad.abs().max() == 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_reaches_the_soft_label(batch_dice: bool) -> None:
    """Against a central difference of the mean loss, in float64."""
    host = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    label = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64).softmax(1).requires_grad_(True)
    direction = torch.randn(label.shape, generator=generator, dtype=torch.float64)
    soft = soft_losses(in_pyramid(host, False))

    def mean(y: Tensor) -> Tensor:
        # logits stay float64: soft_losses itself turns them into float32
        return soft.term(output, y, None).mean()  # type: ignore[attr-defined]

    (gradient,) = torch.autograd.grad(mean(label), label)
    step = 1e-5
    difference = (mean(label + step * direction) - mean(label - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


def test_deep_supervision_has_the_gradient_of_every_level_in_the_label() -> None:
    host = in_pyramid(DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}), True)
    label = torch.rand(2, 3, *SHAPE).softmax(1).requires_grad_(True)
    outputs = [o.float() for o in logits(2, 3, True)]
    soft_losses(host)(outputs, label, None).sum().backward()
    assert label.grad is not None
    assert bool((label.grad != 0).any())


def test_linearised_totals_are_those_of_the_function() -> None:
    sums = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.2, 1.0]], dtype=torch.float64, requires_grad=True)

    def function(total: Tensor) -> Tensor:
        return (total[0] ** 2 / total[1]).log()

    values = linearised(function, sums)
    assert values.mean().item() == pytest.approx(function(sums.sum(0)).item())
    (got,) = torch.autograd.grad(values.mean(), sums)
    (wanted,) = torch.autograd.grad(function(sums.sum(0)), sums)
    torch.testing.assert_close(got, wanted)
    assert len(values.unique()) == 3  # and the samples differ
    direction = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
    curved = [
        torch.autograd.grad((torch.autograd.grad(of(sums), sums, create_graph=True)[0] * direction).sum(), sums)[0]
        for of in (lambda s: linearised(function, s).mean(), lambda s: function(s.sum(0)))
    ]
    torch.testing.assert_close(*curved)  # the second derivatives, too


def test_an_unknown_loss_is_refused_and_can_be_registered() -> None:
    class Squared(nn.Module):
        pass

    with pytest.raises(ConfigError, match="Squared"):
        soft_losses(Squared())

    @soft_term.register(Squared)
    def _(loss: Squared) -> Any:
        return lambda output, label, valid: (output - label).square().flatten(1).mean(1)

    assert soft_losses(Squared())(torch.zeros(2, 1, 4), torch.ones(2, 1, 4), None).tolist() == [1.0, 1.0]
