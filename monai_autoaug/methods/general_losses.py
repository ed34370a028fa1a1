# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial term of paper 004 in a form that can't overflow."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

from monai_autoaug.precision import float32_region

__all__ = ["missing_the_label", "not_class"]


def not_class(logits: Tensor) -> Tensor:
    """``-log(1 - p)`` of each class, p its softmax: finite for all logits, with a gradient of at most 1 in each.

    The most probable class needs the others' logits, because ``1 - p`` has no digits left where p is nearly 1; any
    other class has a p of at most a half.

    Args:
        logits: (B, K, ...), K at least 2.

    >>> not_class(torch.tensor([[90.0, 0.0]]))[0, 0]
    tensor(90.)
    """
    total = logits.logsumexp(1, keepdim=True)
    first = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.argmax(1, keepdim=True), True)
    others = logits.masked_fill(first, -torch.inf).logsumexp(1, keepdim=True)
    p = (logits - total).masked_fill(first, -torch.inf).exp()  # 0 for the first, whose other form is taken
    return torch.where(first, total - others, -torch.log1p(-p))


def missing_the_label(logits: Tensor, label: Tensor, valid: Tensor | None = None, *, sigmoid: bool = False) -> Tensor:
    """Mean of ``-log(1 - C_y)``, which a generator minimises so that the network is wrong; differentiable in both.

    Of soft labels it is the mean over classes with the label's weights; of regions the mean over regions.

    Args:
        logits: (B, K, D, H, W), or (B, K) of a classification.
        label: of the same shape, soft.
        valid: (B, 1, D, H, W) weights of voxels, or None.
        sigmoid: the channels are regions, each on its own.

    Source: the third term of Mounsaveng et al. 2019, Eq. 2, voxel by voxel.

    >>> p = torch.tensor([[0.75, 0.25]])
    >>> missing_the_label(p.log(), torch.tensor([[1.0, 0.0]])), -torch.tensor(0.25).log()
    (tensor(1.3863), tensor(1.3863))
    """
    with float32_region(logits.device):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        label = label.to(logits.dtype)
        if sigmoid:
            wrong = (label * F.softplus(logits) + (1 - label) * F.softplus(-logits)).mean(1, keepdim=True)
        else:
            wrong = (label * not_class(logits)).sum(1, keepdim=True)
        if valid is None:
            return wrong.mean()
        return (wrong * valid).sum() / valid.sum().clamp(min=1)
