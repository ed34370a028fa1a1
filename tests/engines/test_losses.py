# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The per-sample soft-label form of a loss has the value and gradient of the loss itself on hard labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai import losses as monai_losses
from torch import Tensor, nn
from torch.nn import functional

from monai_autoaug.engines.losses import PerSampleLoss, hard_target, ignored_value, per_sample
from monai_autoaug.errors import ConfigError

SOFTMAX = {"to_onehot_y": True, "softmax": True}
WEIGHT = torch.tensor([0.2, 1.0, 3.0])
# name -> loss, form of the labels, channels, expected rule
LOSSES: dict[str, tuple[Callable[[], Any], str, int, str]] = {
    "dice": (lambda: monai_losses.DiceLoss(**SOFTMAX), "index", 3, "mean"),
    "dice_squared_jaccard": (
        lambda: monai_losses.DiceLoss(**SOFTMAX, squared_pred=True, jaccard=True), "index", 3, "mean",
    ),
    "dice_without_background": (
        lambda: monai_losses.DiceLoss(**SOFTMAX, include_background=False, weight=[1.0, 2.0]), "index", 3, "mean",
    ),
    "dice_none": (lambda: monai_losses.DiceLoss(**SOFTMAX, reduction="none"), "index", 3, "mean"),
    "dice_sum": (lambda: monai_losses.DiceLoss(**SOFTMAX, reduction="sum"), "index", 3, "sum"),
    "dice_batch": (lambda: monai_losses.DiceLoss(**SOFTMAX, batch=True), "index", 3, "linear"),
    "dice_ce": (lambda: monai_losses.DiceCELoss(**SOFTMAX), "index", 3, "mean"),
    "dice_ce_smoothed": (lambda: monai_losses.DiceCELoss(**SOFTMAX, label_smoothing=0.1), "index", 3, "mean"),
    "dice_ce_weighted": (lambda: monai_losses.DiceCELoss(**SOFTMAX, weight=WEIGHT), "index", 3, "linear"),
    "dice_ce_weighted_one_hot": (lambda: monai_losses.DiceCELoss(softmax=True, weight=WEIGHT), "channels", 3, "mean"),
    "dice_ce_batch": (lambda: monai_losses.DiceCELoss(**SOFTMAX, batch=True), "index", 3, "linear"),
    "dice_ce_regions": (lambda: monai_losses.DiceCELoss(sigmoid=True), "channels", 3, "mean"),
    "dice_ce_binary": (lambda: monai_losses.DiceCELoss(sigmoid=True), "channels", 1, "mean"),
    "dice_focal": (lambda: monai_losses.DiceFocalLoss(**SOFTMAX), "index", 3, "mean"),
    "focal_none": (lambda: monai_losses.FocalLoss(to_onehot_y=True, reduction="none"), "index", 3, "mean"),
    "focal_softmax": (lambda: monai_losses.FocalLoss(to_onehot_y=True, use_softmax=True), "index", 3, "mean"),
    "generalized_dice": (lambda: monai_losses.GeneralizedDiceLoss(**SOFTMAX), "index", 3, "mean"),
    "generalized_dice_batch": (lambda: monai_losses.GeneralizedDiceLoss(**SOFTMAX, batch=True), "index", 3, "linear"),
    "generalized_dice_focal": (lambda: monai_losses.GeneralizedDiceFocalLoss(**SOFTMAX), "index", 3, "mean"),
    "tversky": (lambda: monai_losses.TverskyLoss(**SOFTMAX), "index", 3, "mean"),
    "deep_supervision": (
        lambda: monai_losses.DeepSupervisionLoss(monai_losses.DiceCELoss(**SOFTMAX)), "index", 3, "mean",
    ),
    "deep_supervision_batch": (
        lambda: monai_losses.DeepSupervisionLoss(monai_losses.DiceLoss(**SOFTMAX, batch=True)), "index", 3, "linear",
    ),
    "cross_entropy": (nn.CrossEntropyLoss, "bare_index", 3, "mean"),
    "cross_entropy_sum": (lambda: nn.CrossEntropyLoss(reduction="sum"), "bare_index", 3, "sum"),
    "cross_entropy_weighted": (
        lambda: nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2), "bare_index", 3, "linear",
    ),
    "binary_cross_entropy": (nn.BCEWithLogitsLoss, "channels", 2, "mean"),
    "function": (lambda: lambda output, target: (output - target).square().mean(), "channels", 2, "mean"),
}  # fmt: skip


def batch(channels: int, dims: int, levels: int) -> tuple[list[Tensor], Tensor]:
    """Logits of some levels and a one-hot label whose class fractions differ from sample to sample."""
    size = (8, 12, 10)[:dims]
    output = [torch.randn(3, channels, *(n // 2**k for n in size)).requires_grad_() for k in range(levels)]
    share = torch.tensor([0.2, 0.5, 0.9]).view(3, *[1] * dims)
    index = (torch.rand(3, *size) < share).long() * torch.randint(1, max(channels, 2), (3, *size))
    if channels == 1:
        return output, index[:, None].float()
    return output, functional.one_hot(index, channels).movedim(-1, 1).float()


def as_given(output: list[Tensor]) -> Any:
    return output if len(output) > 1 else output[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_mean_has_value_and_gradient_of_the_loss_itself(name: str, dims: int) -> None:
    make, form, channels, rule = LOSSES[name]
    output, label = batch(channels, dims, 3 if "deep" in name else 1)
    expected = make()(as_given(output), hard_target(label, form)).mean()
    gradients = torch.autograd.grad(expected, output)
    losses = per_sample(make(), form)
    found = losses(as_given(output), label, None)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert losses.rule == rule
    torch.testing.assert_close(found.mean(), expected, rtol=1e-5, atol=1e-6)
    for mine, own in zip(torch.autograd.grad(found.mean(), output), gradients, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_into_a_soft_label_is_the_derivative(name: str) -> None:
    make, form, channels, _ = LOSSES[name]
    output, label = batch(channels, 3, 3 if "deep" in name else 1)
    output = [x.detach() for x in output]
    losses = per_sample(make(), form)
    soft = (0.9 * label + 0.1 / channels).requires_grad_()
    direction = torch.randn_like(label)
    (gradient,) = torch.autograd.grad(losses(as_given(output), soft, None).mean(), soft)
    with torch.no_grad():
        step = 1e-3
        up = losses(as_given(output), soft + step * direction, None).mean()
        down = losses(as_given(output), soft - step * direction, None).mean()
    slope = float(up - down) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.03, abs=2e-4)


def test_linear_form_gives_each_sample_its_own_value() -> None:
    output, label = batch(3, 3, 1)
    good = output[0].detach() + 0
    good[1] = 20 * label[1]
    losses = per_sample(monai_losses.DiceLoss(**SOFTMAX, batch=True))
    values = losses(good, label, None)
    assert values[1] < values[0] - 0.3
    assert values[1] < values[2] - 0.3


def test_sample_by_sample_gradients_stay_apart() -> None:
    output, label = batch(3, 3, 1)
    losses = per_sample(monai_losses.DiceCELoss(**SOFTMAX))
    (gradient,) = torch.autograd.grad(losses(output[0], label, None)[1], output[0])
    assert bool(gradient[1].any())
    assert not bool(gradient[0].any())
    assert not bool(gradient[2].any())


@pytest.mark.parametrize(
    ("loss", "form"),
    [
        (monai_losses.DiceLoss(**SOFTMAX, ignore_index=255), "index"),
        (monai_losses.FocalLoss(to_onehot_y=True, ignore_index=255), "index"),
        (monai_losses.TverskyLoss(**SOFTMAX, ignore_index=255), "index"),
        (nn.CrossEntropyLoss(ignore_index=255), "bare_index"),
        (nn.CrossEntropyLoss(ignore_index=255, weight=WEIGHT, label_smoothing=0.1), "bare_index"),
    ],
)
def test_unknown_labels_are_left_out_as_by_the_loss_itself(loss: nn.Module, form: str) -> None:
    output, label = batch(3, 3, 1)
    valid = (torch.rand(3, 1, 8, 12, 10) < torch.tensor([0.3, 0.6, 0.9]).view(3, 1, 1, 1, 1)).float()
    target = hard_target(label * valid, form, 255)
    assert bool((target == 255).any())
    expected = loss(output[0], target)
    (gradient,) = torch.autograd.grad(expected, output)
    found = per_sample(loss, form)(output[0], label, valid).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, output)[0], gradient, rtol=1e-4, atol=1e-8)


def test_class_to_be_ignored_among_the_classes() -> None:
    loss = monai_losses.DiceLoss(**SOFTMAX, ignore_index=2)
    output, label = batch(3, 3, 1)
    found = per_sample(loss)(output[0], label, None).mean()
    torch.testing.assert_close(found, loss(output[0], hard_target(label, "index")))


def test_the_users_loss_is_left_as_it_is() -> None:
    loss = monai_losses.DiceCELoss(**SOFTMAX)
    output, label = batch(3, 3, 1)
    per_sample(loss)(output[0], label, None)
    assert loss.dice.to_onehot_y
    assert type(loss.cross_entropy) is nn.CrossEntropyLoss


def test_half_precision_output_gives_float32_losses() -> None:
    output, label = batch(3, 3, 1)
    losses = per_sample(monai_losses.DiceCELoss(**SOFTMAX))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(output[0].bfloat16(), label, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, losses(output[0], label, None), rtol=0.02, atol=0.02)


def test_absent_class_gives_no_nan_to_the_label() -> None:
    output, label = batch(3, 3, 1)
    label[0, 2], label[0, 0] = 0.0, label[0, 0] + label[0, 2]
    label.requires_grad_()
    found = per_sample(monai_losses.GeneralizedDiceLoss(**SOFTMAX))(output[0], label, None).mean()
    assert bool(torch.isfinite(torch.autograd.grad(found, label)[0]).all())


@pytest.mark.parametrize(
    ("loss", "form", "word"),
    [
        (monai_losses.GeneralizedWassersteinDiceLoss(1 - torch.eye(3)), "bare_index", "GeneralizedWasserstein"),
        (monai_losses.NACLLoss(classes=3, dim=3), "bare_index", "NACLLoss"),
        (lambda output, target: functional.cross_entropy(output, target), "bare_index", "function"),
    ],
)
def test_losses_that_take_no_soft_labels_are_refused_by_name(loss: Any, form: str, word: str) -> None:
    output, label = batch(3, 3, 1)
    if word == "function":  # torch's own cross-entropy takes probabilities, so this one works as it is
        expected = loss(output[0], hard_target(label, form))
        torch.testing.assert_close(per_sample(loss, form)(output[0], label, None).mean(), expected)
        return
    with pytest.raises(ConfigError, match=word):
        per_sample(loss, form)(output[0], label, None)


def test_unknown_labels_without_ignore_index_are_refused() -> None:
    output, label = batch(3, 3, 1)
    losses = per_sample(monai_losses.DiceCELoss(**SOFTMAX))
    with pytest.raises(ConfigError, match="DiceCELoss can't leave voxels out"):
        losses(output[0], label, torch.ones(3, 1, 8, 12, 10))


def test_output_of_a_strange_type_is_refused() -> None:
    _, label = batch(3, 3, 1)
    with pytest.raises(ConfigError, match="dict"):
        PerSampleLoss(nn.MSELoss(), "channels")({"logits": label}, label, None)


def test_parts_that_ignore_different_values_are_refused() -> None:
    both = nn.ModuleList([monai_losses.DiceLoss(ignore_index=255), nn.CrossEntropyLoss(ignore_index=7)])
    with pytest.raises(ConfigError, match="ignore different"):
        ignored_value(both)
