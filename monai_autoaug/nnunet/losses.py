# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's losses for soft labels, one value a sample, made from the trainer's own loss object.

A generator's gradient flows through the warped label, which is soft, and methods weigh samples; nnU-Net's losses
take whole numbers and return one number a batch. `soft_losses` reads a loss object and returns its counterpart,
whose mean over the batch has the value and the gradient (with respect to the logits) of the original on hard labels:

- what divides by the valid voxels of the batch becomes ``B * (sum over sample i) / (valid voxels of the batch)``;
- what is a function of sums over the batch (batch Dice) is linearised around those sums (see `linearised`);
- deep supervision sees the label at each output's size by ``nearest-exact``, as nnU-Net's own targets are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Losses
from monai_autoaug.precision import sum_over_ranks, world_size

__all__ = ["linearised", "soft_losses", "soft_term"]

Term = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def soft_losses(loss: nn.Module) -> Losses:
    """The counterpart of a trainer's loss for soft labels.

    Args:
        loss: what nnU-Net's ``_build_loss`` returns, with or without deep supervision.

    Returns:
        A function of (output, label (B, K, D, H, W), valid (B, 1, D, H, W) or None) that returns (B,) float32 losses.

    Raises:
        ConfigError: a loss class that `soft_term` doesn't know.

    >>> host = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
    ...                       dice_class=MemoryEfficientSoftDiceLoss)
    >>> label = torch.zeros(2, 1, 4, 4); logits = torch.randn(2, 3, 4, 4)
    >>> one_hot = torch.zeros(2, 3, 4, 4).scatter_(1, label.long(), 1)
    >>> bool(torch.isclose(soft_losses(host)(logits, one_hot, None).mean(), host(logits, label)))
    True
    """
    if isinstance(loss, DeepSupervisionWrapper):
        return _Pyramid(soft_term(loss.loss), tuple(float(w) for w in loss.weight_factors))
    return _Single(soft_term(loss))


class _Single:
    """One output at full resolution."""

    def __init__(self, term: Term) -> None:
        self.term = term

    def __call__(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        logits = output[0] if isinstance(output, list | tuple) else output
        return self.term(logits.float(), label, valid)


class _Pyramid:
    """Deep supervision: the label at each output's size, weighted as the host weighs its outputs."""

    def __init__(self, term: Term, weights: Sequence[float]) -> None:
        self.term, self.weights = term, weights

    def __call__(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        if isinstance(output, Tensor):  # deep supervision is switched off while the network predicts
            return self.term(output.float(), label, valid)
        total = label.new_zeros(len(label), dtype=torch.float32)
        for logits, weight in zip(output, self.weights, strict=False):
            if weight != 0:
                at_size = _resized(label, logits), None if valid is None else _resized(valid, logits)
                total = total + weight * self.term(logits.float(), *at_size)
        return total


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, like.shape[2:], mode="nearest-exact")


def linearised(
    function: Callable[..., Tensor], *sums: Tensor, share: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Split a function of sums over the batch into one value a sample, by its tangent at the batch's sums.

    With s_i the sums of sample i and S their total over the batch, sample i gets f(S) + B <df/dS, s_i - S/B>; df/dS is
    detached. The mean over the batch is f(S), and its derivatives are those of f(S), the second ones too (over ranks
    those within a rank).

    Args:
        function: of as many (K,) totals as there are ``sums``; returns a scalar.
        sums: (B, K) each, sums over the voxels of each sample.
        share: sums of (K,) totals over ranks; default: this rank only.

    Returns:
        (B,) values.

    >>> s = torch.tensor([[1.0], [3.0]])
    >>> linearised(lambda total: total.square().sum(), s), float(s.sum() ** 2)
    (tensor([ 0., 32.]), 16.0)
    """
    batch = len(sums[0])
    totals = [share(s.detach().sum(0)).requires_grad_(True) for s in sums]
    with torch.enable_grad():
        value = function(*totals)
        slopes = torch.autograd.grad(value, totals, allow_unused=True)
    result = value.detach().expand(batch)
    # a rank's gradient is averaged over ranks afterwards, while the total is a sum over them
    ranks = world_size() if share is sum_over_ranks else 1
    factor = batch * ranks
    for s, slope in zip(sums, slopes, strict=True):
        if slope is not None:
            result = result + factor * ((s - s.detach().mean(0)) * slope.detach()).sum(1)
    if torch.is_grad_enabled() and any(s.requires_grad for s in sums):
        # 0, with the derivative 0: what f bends away from its tangent
        moving = [total.detach() + (s - s.detach()).sum(0) for total, s in zip(totals, sums, strict=True)]
        bent = function(*moving) - value.detach()
        for s, slope in zip(sums, slopes, strict=True):
            if slope is not None:
                bent = bent - ((s - s.detach()).sum(0) * slope.detach()).sum()
        result = result + ranks * bent
    return result


@singledispatch
def soft_term(loss: Any) -> Term:
    """The counterpart of one loss class; register a loss of your own with ``@soft_term.register(MyLoss)``.

    Args:
        loss: the loss object of one output.

    Returns:
        A function of (logits (B, K, D, H, W) float32, label (B, K, D, H, W), valid (B, 1, D, H, W) or None) -> (B,).

    Raises:
        ConfigError: the class is unknown. A loss on whole-number labels can't be evaluated on a soft label from
            outside.

    >>> soft_term(nn.L1Loss())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: there is no soft-label form of the loss L1Loss...
    """
    original = getattr(loss, "_orig_mod", None)
    if original is not None:  # nnU-Net compiles its Dice on the GPU
        return soft_term(original)
    raise ConfigError(
        f"there is no soft-label form of the loss {type(loss).__name__}: a loss on whole-number labels can't be"
        " evaluated on a warped label. Register one with monai_autoaug.nnunet.losses.soft_term.register"
    )


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _voxels(label: Tensor, valid: Tensor | None) -> Tensor:
    """Valid voxels of the batch, detached."""
    if valid is None:
        return label.new_tensor(float(label[:, :1].numel()))
    return valid.detach().sum()


def _cross_entropy_map(loss: nn.CrossEntropyLoss, logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
    """Soft cross-entropy of each voxel (B, D, H, W), 0 where the label is unknown."""
    smoothing = loss.label_smoothing
    wanted = label if smoothing == 0 else (1 - smoothing) * label + smoothing / label.shape[1]
    terms = -wanted * logits.log_softmax(1)
    if loss.weight is not None:
        terms = terms * loss.weight.view(1, -1, *[1] * (logits.ndim - 2))
    voxel = terms.sum(1)
    return voxel if valid is None else voxel * valid[:, 0]


@soft_term.register
def _(loss: RobustCrossEntropyLoss) -> Term:
    if loss.reduction != "mean":
        raise ConfigError(
            f"cross-entropy with reduction {loss.reduction!r} gives no training loss; use reduction='mean'"
        )

    def term(logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        known = label if valid is None else label * valid
        if loss.weight is None:
            divisor = _voxels(label, valid)
        else:
            divisor = (known.detach().transpose(1, -1) * loss.weight).sum()
        voxel = _cross_entropy_map(loss, logits, label, valid)
        return len(label) * _per_sample(voxel) / divisor.clamp_min(1e-8)

    return term


@soft_term.register
def _(loss: TopKLoss) -> Term:
    def term(logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        voxel = _cross_entropy_map(loss, logits, label, valid)
        count = int(voxel.numel() * loss.k / 100)
        chosen = torch.zeros_like(voxel).flatten()
        chosen[voxel.detach().flatten().topk(count, sorted=False).indices] = 1
        return len(label) * _per_sample(voxel * chosen.view_as(voxel)) / count

    return term


@soft_term.register
def _(loss: nn.BCEWithLogitsLoss) -> Term:
    def term(logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        voxel = F.binary_cross_entropy_with_logits(
            logits, label, weight=loss.weight, pos_weight=loss.pos_weight, reduction="none"
        )
        if valid is None:
            return _per_sample(voxel) / voxel[0].numel()
        # nnU-Net sums over the regions and divides by the voxels when there is an ignore label
        return len(label) * _per_sample(voxel * valid) / valid.detach().sum().clamp_min(1e-8)

    return term


def _dice(loss: Any, clip: float | None) -> Term:
    smooth = float(loss.smooth)

    def ratio(intersection: Tensor, volume: Tensor) -> Tensor:
        if clip is not None:  # SoftDiceLoss clips the intersection only, not the false negatives and positives
            volume = volume - 2 * intersection
            intersection = intersection.clamp_min(clip)
            volume = volume + 2 * intersection
        return (2 * intersection + smooth) / (volume + smooth).clamp_min(1e-8)

    def term(logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        p = logits if loss.apply_nonlin is None else loss.apply_nonlin(logits)
        if not loss.do_bg:
            p, label = p[:, 1:], label[:, 1:]
        known = label if valid is None else label * valid
        intersection = (p * known).flatten(2).sum(2)
        volume = (p if valid is None else p * valid).flatten(2).sum(2) + known.flatten(2).sum(2)
        if not loss.batch_dice:
            return -ratio(intersection, volume).mean(1)
        share = sum_over_ranks if loss.ddp else lambda x: x
        return linearised(lambda i, v: -ratio(i, v).mean(), intersection, volume, share=share)

    return term


@soft_term.register
def _(loss: MemoryEfficientSoftDiceLoss) -> Term:
    return _dice(loss, None)


@soft_term.register
def _(loss: SoftDiceLoss) -> Term:
    return _dice(loss, loss.clip_tp)


def _weighted(*parts: tuple[float, nn.Module]) -> Term:
    terms = [(float(weight), soft_term(part)) for weight, part in parts if weight != 0]

    def term(logits: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        total = logits.new_zeros(len(logits))
        for weight, part in terms:
            total = total + weight * part(logits, label, valid)
        return total

    return term


@soft_term.register(DC_and_CE_loss)
@soft_term.register(DC_and_BCE_loss)
@soft_term.register(DC_and_topk_loss)
def _(loss: Any) -> Term:
    return _weighted((loss.weight_ce, loss.ce), (loss.weight_dice, loss.dc))
