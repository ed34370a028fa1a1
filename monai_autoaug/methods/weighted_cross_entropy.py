# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cross-entropy with a weight for the background and one for each foreground class, of soft labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

from monai_autoaug.augmenters.trunk import adaptive_pool
from monai_autoaug.precision import float32_region

__all__ = ["weighted_cross_entropy"]


def weighted_cross_entropy(
    output: Any, label: Tensor, valid: Tensor | None, *, background: float, foreground: float
) -> Tensor:
    """``-sum over classes w_c y_c log p_c``, one value a sample, whose mean is that over the batch's valid voxels.

    Args:
        output: logits (B, K, D, H, W), or a list of them, full resolution first: then each level counts half as much as
            the one before, and the last of three or more not at all, as in nnU-Net.
        label: (B, K, D, H, W), soft, the background first.
        valid: (B, 1, D, H, W) weights of voxels, or None.
        background: weight of the first class (0.1 in the paper).
        foreground: weight of each other class (0.3 in the paper).

    Returns:
        (B,) losses.

    Source: Chaitanya et al. 2019, section 3.4.

    >>> x, y = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4); y[:, 1] = 1
    >>> weighted_cross_entropy(x, y, None, background=0.1, foreground=0.3) / 0.3
    tensor([0.6931])
    """
    levels = list(output) if isinstance(output, list | tuple) else [output]
    shares = [0.5**k for k in range(len(levels))]
    if len(levels) > 2:
        shares[-1] = 0.0
    weights = [background, *[foreground] * (label.shape[1] - 1)]
    found = []
    for share, logits in zip(shares, levels, strict=True):
        if share:
            size = tuple(logits.shape[2:])
            y, v = (t if t is None or tuple(t.shape[2:]) == size else adaptive_pool(t, size) for t in (label, valid))
            assert y is not None  # noqa: S101  # for the type checker: a label was given
            found.append(share / sum(shares) * _level(logits, y, v, weights))
    return torch.stack(found).sum(0)


def _level(logits: Tensor, label: Tensor, valid: Tensor | None, weights: list[float]) -> Tensor:
    with float32_region(logits.device):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weight = torch.tensor(weights).to(logits).view(1, -1, *[1] * (logits.ndim - 2))
        voxel = -(weight * label.to(logits) * F.log_softmax(logits, 1)).sum(1, keepdim=True)
        if valid is None:
            return voxel.flatten(1).mean(1)
        valid = valid.to(logits)
        return (voxel * valid).flatten(1).sum(1) * len(logits) / valid.sum().clamp(min=1)
