# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a policy is judged by: losses of predictions on meta-validation patches, at full resolution.

Source: paper 002's L_val, and its loss for test-time views; the official code's Dice of views looks at the first
foreground class only, here it is over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import sum_over_ranks

__all__ = ["META_LOSSES", "MetaLoss", "check_meta_loss", "meta_loss", "view_losses"]

MetaLoss = Literal["ce", "dice", "both"]
META_LOSSES: tuple[str, ...] = ("ce", "dice", "both")
_SMOOTH = 1e-5
_Sums = Callable[[Tensor], Tensor]


def meta_loss(
    logits: Tensor,
    label: Tensor,
    valid: Tensor | None,
    kind: str = "both",
    *,
    sigmoid: bool = False,
    regions: bool = False,
    over_ranks: bool = False,
) -> Tensor:
    """Cross-entropy, soft Dice over the whole batch, or their sum.

    Args:
        logits: (B, K, D, H, W).
        label: (B, K, D, H, W), soft.
        valid: (B, 1, D, H, W), the weight of each voxel; None: all count.
        kind: "ce", "dice" or "both".
        sigmoid: logits go through a sigmoid each, rather than a softmax.
        regions: channels are regions, all of which count for Dice; otherwise the first is the background.
        over_ranks: the batch is that of all ranks, of which this one has a part: all get the loss of the whole, each
            with the gradient of its own part, so that their gradients are to be summed.

    Returns:
        A scalar in at least float32: Dice counts as 1 - Dice, averaged over the structures that the batch has.

    Raises:
        ConfigError: unknown kind.

    >>> x = torch.tensor([0.0, 2.2]).view(1, 2, 1, 1)  # 0.1 and 0.9
    >>> round(float(meta_loss(x, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), None, "dice")), 3)
    0.052
    """
    check_meta_loss(kind)
    x = logits if logits.dtype == torch.float64 else logits.float()
    y, sums = label.to(x), _of_all if over_ranks else _of_this
    total = x.new_zeros(())
    if kind in ("ce", "both"):
        total = total + _cross_entropy(x, y, valid, sigmoid, sums)
    if kind in ("dice", "both"):
        total = total + _dice(x.sigmoid() if sigmoid else x.softmax(1), y, valid, regions, sums)[0]
    return total


def check_meta_loss(kind: str) -> None:
    """Refuse a loss that there is not.

    Raises:
        ConfigError: unknown kind.
    """
    if kind not in META_LOSSES:
        raise ConfigError(f"the loss on meta-validation patches must be one of {', '.join(META_LOSSES)}, got {kind!r}")


def view_losses(probabilities: Tensor, label: Tensor, valid: Tensor | None, *, regions: bool = False) -> Tensor:
    """1 - soft Dice of each sample, averaged over the structures that its label has.

    Args:
        probabilities: (B, K, D, H, W), in [0, 1].
        label: (B, K, D, H, W), soft.
        valid: (B, 1, D, H, W), the weight of each voxel; None: all count.
        regions: see `meta_loss`.

    Returns:
        (B,) float32.

    >>> y = torch.eye(2)[:, :, None, None]
    >>> view_losses(y, y, None).round(decimals=3).tolist()
    [0.0, 0.0]
    """
    return _dice(probabilities.float(), label.float(), valid, regions, None)


def _of_this(part: Tensor) -> Tensor:
    return part


def _of_all(part: Tensor) -> Tensor:
    """A sum over the samples of all ranks; what moves in it is this rank's part."""
    return part + (sum_over_ranks(part) - part.detach())


def _cross_entropy(x: Tensor, y: Tensor, valid: Tensor | None, sigmoid: bool, sums: _Sums) -> Tensor:
    """Mean over the voxels that count; from logits, so that a confident error keeps its gradient."""
    if sigmoid:
        voxels = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1)
    else:
        voxels = -(y * x.log_softmax(1)).sum(1)
    weight = torch.ones_like(voxels) if valid is None else valid[:, 0].to(voxels)
    return sums((voxels * weight).sum()) / sums(weight.sum()).clamp(min=1)


def _dice(p: Tensor, y: Tensor, valid: Tensor | None, regions: bool, sums: _Sums | None) -> Tensor:
    """1 - Dice, (B,) or, over the whole batch, (1,); absent structures don't count, unless there is none at all."""
    if not regions:
        p, y = p[:, 1:], y[:, 1:]
    if valid is not None:
        p, y = p * valid, y * valid
    axes = list(range(2, p.ndim)) if sums is None else [0, *range(2, p.ndim)]
    both, size, there = (x.sum(axes, keepdim=True).flatten(1) for x in (p * y, p + y, y))
    if sums is not None:
        both, size, there = sums(both), sums(size), sums(there)
    dice = (2 * both + _SMOOTH) / (size + _SMOOTH)
    present = (there > 0).to(dice)
    absent = present.sum(1, keepdim=True) == 0
    weight = torch.where(absent, 1.0, present)
    return 1 - (dice * weight).sum(1) / weight.sum(1)
