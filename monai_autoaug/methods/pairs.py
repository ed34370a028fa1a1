# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What discriminators see: labels as maps beside the image, and of each sample another one of the same class."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch

__all__ = ["label_maps", "partners"]


def label_maps(label: Tensor, image: Tensor) -> Tensor:
    """A label as channels of the image's size: as it is, or of a classification (B, K) the same at every voxel.

    >>> label_maps(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1, 4, 5)).shape
    torch.Size([1, 2, 4, 5])
    """
    if label.ndim == image.ndim:
        return label
    return label.view(*label.shape, *[1] * (image.ndim - 2)).expand(*label.shape, *image.shape[2:])


def partners(batch: Batch, pool: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a sample and one of ``pool``: of another case if there is any, among these of the same class if any is.

    Where several are as good as each other, one is drawn. Samples whose partner is worse than that of others are left
    out, so that patches of two classes make a pair only where ``pool`` has no better one for any sample. A sample is
    never its own partner, unless ``pool`` holds no other: batches without names of cases count as different.

    Args:
        batch: B samples.
        pool: an independent batch.
        generator: of the random numbers.

    Returns:
        (n,) int64 rows of ``batch`` and (n,) of ``pool``, on the CPU; n at least 1.

    >>> x, z = torch.zeros(3, 1, 4, 4), torch.zeros(3, 2, 4, 4)
    >>> a = Batch(x, z, classes=torch.tensor([0, 1, 2]), case=("a", "b", "c"))
    >>> pool = Batch(x, z, classes=torch.tensor([0, 1, 0]), case=("b", "a", "c"))
    >>> partners(a, pool, torch.Generator())[0].tolist()  # there is no patch of the third one's class
    [0, 1]
    """
    n, m = len(batch.image), len(pool.image)
    drawn = torch.rand(n, m, generator=generator, device=generator.device).cpu()
    level = torch.zeros(n, m)
    if batch.case and pool.case:
        level += 2.0 * torch.tensor([[a != b for b in pool.case] for a in batch.case])
    first, second = _classes(batch), _classes(pool)
    if first is not None and second is not None:
        level += (first[:, None] == second).cpu()
    chosen = (level + 0.5 * drawn).argmax(1)
    reached = level.gather(1, chosen[:, None])[:, 0]
    rows = torch.nonzero(reached == reached.max())[:, 0]
    return rows, chosen[rows]


def _classes(batch: Batch) -> Tensor | None:
    """The class that each patch was cut for, or that an image is of; None: not known."""
    return batch.label.argmax(1) if batch.classification else batch.classes
