# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Parts of a batch: samples that one augmenter has transformed, with all that has to move along."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_autoaug.augmenters import Transformation
from monai_autoaug.data.batch import Batch, centre_crop

__all__ = ["CLEAN", "Part", "concatenate", "interior", "jitter", "transform"]

CLEAN = "clean"


@dataclass(frozen=True)
class Part:
    """The samples of a batch that one augmenter has transformed.

    Args:
        kind: "clean" or a key of ``KINDS``.
        group: norm group of the segmentation network, 0 the main one.
        source: the patches before, with their margin.
        batch: the patches after, without it.
        transformation: what was applied; None for clean samples.
    """

    kind: str
    group: int
    source: Batch
    batch: Batch
    transformation: Transformation | None


def transform(batch: Batch, transformation: Transformation, *, regions: bool = False) -> Batch:
    """Apply ``transformation`` to everything in ``batch`` that moves, in one resampling, and cut off the margin.

    Image and further channels, label, validity and non-zero mask share one grid; appearance touches the image alone;
    where the mask is 0 the image is 0 again afterwards. At the edge of what is known the label is interpolated from
    known voxels alone. The label of a classification stays as it is.

    Args:
        batch: patches with their margin.
        transformation: one a sample.
        regions: the label's channels are regions, not classes.

    >>> b = Batch(torch.ones(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8), margin=(1, 1, 1))
    >>> transform(b, Transformation.identity((8, 8, 8))).image.shape
    torch.Size([1, 1, 6, 6, 6])
    """
    still = 0 if batch.extra is None else batch.extra.shape[1]
    image = batch.image if batch.extra is None else torch.cat([batch.image, batch.extra], dim=1)
    if batch.classification:  # labels of whole images stay as they are
        return _with_label_of_image(batch, transformation, image, still)
    known = batch.label if batch.valid is None else batch.label * batch.valid  # hosts write background where unknown
    stack = [known] + [t for t in (batch.valid, batch.mask) if t is not None]
    widths = [t.shape[1] for t in stack]
    outside = [0.0] * sum(widths)
    if not regions:
        outside[0] = 1.0
    if batch.valid is not None:
        outside[widths[0]] = 1.0  # outside the volume is background for certain
    moved, soft = transformation.apply_pair(
        image,
        torch.cat([t.to(batch.label.dtype) for t in stack], dim=1),
        margin=batch.margin,
        outside=tuple(outside),
        still=still,
    )
    assert soft is not None  # noqa: S101  # for the type checker: a label was given
    pieces = list(soft.split(widths, dim=1))
    label = pieces.pop(0)
    valid = pieces.pop(0) if batch.valid is not None else None
    mask = pieces.pop(0) if batch.mask is not None else None
    if valid is not None:
        label = label / valid.clamp(min=1e-3)  # `valid` alone weighs a voxel, however little of it is known
    image = moved[:, : moved.shape[1] - still]
    if mask is not None:
        image = image * (mask >= 0.5).to(image.dtype)  # the interpolated mask would darken edges a second time
    extra = moved[:, moved.shape[1] - still :] if still else None
    none = tuple(0 for _ in batch.margin)
    return replace(batch, image=image, label=label, valid=valid, mask=mask, extra=extra, margin=none, target=None)


def _with_label_of_image(batch: Batch, transformation: Transformation, image: Tensor, still: int) -> Batch:
    """`transform` where nothing but image and mask have a place in the image."""
    mask = batch.mask
    moved, moved_mask = transformation.apply_pair(
        image, mask, margin=batch.margin, outside=None if mask is None else (0.0,) * mask.shape[1], still=still
    )
    extra = moved[:, moved.shape[1] - still :] if still else None
    image = moved[:, : moved.shape[1] - still]
    if moved_mask is not None:
        image = image * (moved_mask >= 0.5).to(image.dtype)
    none = tuple(0 for _ in batch.margin)
    return replace(batch, image=image, mask=moved_mask, extra=extra, margin=none, target=None)


def concatenate(batches: list[Batch]) -> Batch:
    """One batch of several parts, in their order."""

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(b, name) for b in batches]
        return None if tensors[0] is None else torch.cat([t.as_subclass(Tensor) for t in tensors])

    image, label = joined("image"), joined("label")
    assert image is not None  # noqa: S101  # for the type checker: every batch has an image
    assert label is not None  # noqa: S101  # and a label
    case = tuple(c for b in batches for c in b.case)
    return Batch(image, label, joined("valid"), joined("extra"), joined("mask"), joined("classes"), case,
                 joined("spacing"), batches[0].margin)  # fmt: skip


def jitter(image: Tensor, generator: torch.Generator) -> Transformation:
    """A shift by less than half a voxel: the blur of one linear resampling and nothing else.

    Args:
        image: (B, C, D, H, W).
        generator: of the random numbers.

    >>> bool((jitter(torch.zeros(2, 1, 4, 4), torch.Generator()).matrix[:, :, 2].abs() <= 0.5).all())
    True
    """
    shape, d = tuple(image.shape[2:]), image.ndim - 2
    shift = torch.rand(len(image), d, 1, generator=generator, device=generator.device) - 0.5
    matrix = torch.cat([torch.eye(d).to(shift).expand(len(shift), d, d), shift], dim=2)
    return Transformation(shape, matrix=matrix)


def interior(image: Tensor) -> Tensor:
    """Patches without their outer eighth, where a transformed patch shows what lay outside.

    >>> interior(torch.zeros(1, 1, 16, 8)).shape
    torch.Size([1, 1, 12, 6])
    """
    return centre_crop(image, tuple(n // 8 for n in image.shape[2:]))
