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


def partners(batch: Batch, pool: Batch, generator: torch.Generator) -> Tensor:
    """For each sample one of ``pool``: of another case if there is any, among these of the same class if there is any.

    Where several are as good as each other, one is drawn. A sample is never its own partner, unless ``pool`` holds no
    other: batches without names of cases count as different.

    Args:
        batch: B samples.
        pool: an independent batch.
        generator: of the random numbers.

    Returns:
        (B,) int64, on the CPU.

    >>> x, z = torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4)
    >>> a = Batch(x, z, classes=torch.tensor([0, 1]), case=("a", "b"))
    >>> partners(a, Batch(x, z, classes=torch.tensor([0, 1]), case=("b", "a")), torch.Generator()).tolist()
    [0, 1]
    """
    n, m = len(batch.image), len(pool.image)
    score = torch.rand(n, m, generator=generator, device=generator.device).cpu()
    if batch.case and pool.case:
        score += 4.0 * torch.tensor([[a != b for b in pool.case] for a in batch.case])
    first, second = _classes(batch), _classes(pool)
    if first is not None and second is not None:
        score += 2.0 * (first[:, None] == second).cpu()
    return score.argmax(1)


def _classes(batch: Batch) -> Tensor | None:
    """The class that each patch was cut for, or that an image is of; None: not known."""
    return batch.label.argmax(1) if batch.classification else batch.classes
