# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A class for patches that are nearly as large as the image: the loss is taken in a box around a voxel of that class.

Such patches all have the same at their centre, or a bit of everything, so that no policy of a class can be learned.

Source: what paper 002 proposes for this case in its discussion, and leaves to future work.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.errors import ConfigError

__all__ = ["restrict_loss"]


def restrict_loss(
    batch: Batch, share: float, generator: torch.Generator | None = None, *, regions: bool = False
) -> Batch:
    """Choose a class and one of its voxels in each patch, and let only a box around it count.

    Background and foreground are equally likely, and so is each foreground label that the patch has. A box at the
    patch's edge is cut off there.

    Args:
        batch: patches with their margin; voxels are chosen in the patch without it.
        share: side of the box over that of the patch, in (0, 1).
        generator: random numbers come from it, on the batch's device; None: torch's global one.
        regions: the label's channels are regions; the class is then that of the last region the voxel is in.

    Returns:
        The batch with ``valid`` 0 outside of the boxes and with the chosen ``classes``.

    Raises:
        ConfigError: ``share`` is out of range.

    >>> label = torch.zeros(1, 2, 9, 9, 9); label[:, 1, 2, 3, 4] = 1; label[:, 0] = 1 - label[:, 1]
    >>> part = restrict_loss(Batch(torch.zeros(1, 1, 9, 9, 9), label), 1 / 3, torch.Generator().manual_seed(0))
    >>> part.classes, int(part.valid.sum())
    (tensor([1]), 27)
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share of a patch that counts for the loss must be between 0 and 1, got {share}")
    values = _label_values(batch.label, regions)
    here = torch.zeros_like(values, dtype=torch.bool)
    inner = tuple(slice(m, n - m) for m, n in zip(batch.margin, values.shape[1:], strict=True))
    centre_crop(here[:, None], batch.margin)[:] = True
    if batch.valid is not None:
        here &= batch.valid[:, 0] >= 0.5
    count = batch.label.shape[1] + int(regions)
    wanted = _classes(values, here, count, generator)
    candidates = here & (values == wanted.view(-1, *[1] * (values.ndim - 1)))
    noise = torch.rand(candidates.shape, generator=generator, device=candidates.device)
    # where nothing is known at all, any voxel does
    place = torch.where(candidates, noise + 1, noise).flatten(1).argmax(1)
    box = _boxes(place, values.shape[1:], [s.stop - s.start for s in inner], share)[:, None].to(batch.image.dtype)
    return replace(batch, valid=box if batch.valid is None else box * batch.valid, classes=wanted, target=None)


def _label_values(label: Tensor, regions: bool) -> Tensor:
    """(B, D, H, W) label values; of regions the number of the last one, from 1 on."""
    if not regions:
        return label.argmax(1)
    order = torch.arange(1, label.shape[1] + 1, device=label.device).view(1, -1, *[1] * (label.ndim - 2))
    return torch.where(label >= 0.5, order, 0).amax(1)


def _classes(values: Tensor, here: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """(B,) a label value that each patch has; half of them background, as far as there is both."""
    there = torch.stack([((values == k) & here).flatten(1).any(1) for k in range(count)], 1).float()
    foreground = there[:, 1:].sum(1, keepdim=True).clamp(min=1)
    weights = torch.cat([there[:, :1], there[:, 1:] / foreground], 1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.eye(count, device=weights.device)[:1])
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def _boxes(place: Tensor, shape: torch.Size, patch: list[int], share: float) -> Tensor:
    """(B, D, H, W) whether a voxel is in the box around voxel ``place``, which counts through the whole array."""
    inside = torch.ones(1, *shape, dtype=torch.bool, device=place.device)
    for axis in reversed(range(len(shape))):
        centre, place = place % shape[axis], place // shape[axis]
        distance = (torch.arange(shape[axis], device=place.device) - centre[:, None]).abs()
        near = distance <= max(int(share * patch[axis] / 2), 1)
        inside = inside & near.view(len(near), *[shape[axis] if a == axis else 1 for a in range(len(shape))])
    return inside
