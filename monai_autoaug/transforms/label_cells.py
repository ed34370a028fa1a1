# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Label values interpolated to soft channels: exact copies nearly everywhere, weights only where neighbours differ."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

__all__ = ["MOST_CLASSES", "PAD", "Cells", "interpolated", "neighbours"]

MOST_CLASSES = 31  # a voxel's neighbours are a set of bits
PAD = 2  # voxels of background around a label
# of voxels: the lowest index of their eight neighbours in the padded label, and the weight of the upper ones by axis
Cells = tuple[Tensor, list[Tensor]]


def neighbours(padded: Tensor, classes: int) -> Tensor:
    """For the corner of each cell of eight voxels, which labels they have, as bits.

    Args:
        padded: label values (D, H, W).
        classes: at most `MOST_CLASSES`.

    >>> neighbours(torch.tensor([0, 0, 2], dtype=torch.uint8).expand(2, 2, 3), 3).tolist()
    [[[1, 5]]]
    """
    kind = torch.uint8 if classes <= 8 else torch.int16 if classes <= 15 else torch.int32
    sets = torch.bitwise_left_shift(torch.ones((), dtype=kind), padded.to(kind))
    for axis in range(3):
        n = sets.shape[axis] - 1
        sets = sets.narrow(axis, 0, n) | sets.narrow(axis, 1, n)
    return sets


def interpolated(padded: Tensor, sets: Tensor, classes: int, cells: Callable[[Tensor], Cells]) -> Tensor:
    """The soft label (classes, D, H, W): what all eight neighbours have, and where they differ, their weights.

    Args:
        padded: label values with `PAD` voxels of background around them.
        sets: (D, H, W), of each output voxel's `neighbours`.
        classes: channels.
        cells: of output voxels of these flat indices.

    >>> padded = torch.zeros(5, 5, 5, dtype=torch.uint8)
    >>> padded[2, 2, 2] = 1
    >>> corner, half = torch.tensor([31]), torch.tensor([0.5])  # between this voxel and seven of background
    >>> interpolated(padded, torch.tensor([[[3]]]), 2, lambda where: (corner, [half] * 3)).flatten().tolist()
    [0.875, 0.125]
    """
    soft = torch.empty(classes, *sets.shape, dtype=torch.float32)
    for number, channel in enumerate(soft):
        torch.eq(sets, 1 << number, out=channel)
    # more than one bit: 0 in all channels. In the padding all neighbours are alike, so none of these is beyond it
    where = (sets & (sets - 1)).view(-1).nonzero()[:, 0]
    corner, shares = cells(where)
    offsets = torch.tensor([[d * padded.shape[1] * padded.shape[2] + h * padded.shape[2] + w]
                            for d, h, w in product((0, 1), repeat=3)])  # fmt: skip
    values = padded.view(-1).index_select(0, (corner + offsets).view(-1)).view(8, -1)
    d, h, w = (torch.stack([1 - share, share]) for share in shares)
    weights = (d[:, None] * h).flatten(0, 1)[:, None].mul(w).flatten(0, 1)
    part = torch.empty_like(weights)
    for number, channel in enumerate(soft):
        torch.eq(values, number, out=part)
        channel.view(-1).index_copy_(0, where, part.mul_(weights).sum(0))
    return soft
