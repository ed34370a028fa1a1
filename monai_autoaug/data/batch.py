# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a host hands to a method: one batch of patches with all that a learned augmentation needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.tensors import one_hot

__all__ = ["Batch", "centre_crop"]


def centre_crop(x: Tensor, margin: tuple[int, ...]) -> Tensor:
    """Cut ``margin`` voxels off both ends of every spatial axis of ``x`` (B, C, D, H, W).

    >>> centre_crop(torch.zeros(1, 1, 8, 8, 8), (1, 2, 0)).shape
    torch.Size([1, 1, 6, 4, 8])
    """
    if not any(margin):
        return x
    window = [slice(m, x.shape[2 + i] - m) for i, m in enumerate(margin)]
    return x[tuple([slice(None), slice(None), *window])]


@dataclass(frozen=True)
class Batch:
    """A batch of patches, normalised, on one device.

    Args:
        image: (B, C, D, H, W), in standard deviations after normalisation; 2D is (B, C, H, W) throughout. Its spatial
            size is the patch plus twice ``margin``, so that a spatial method can warp first and crop afterwards.
        label: (B, K, D, H, W) float, one channel a class with the background first (sums to 1), or one a region. Of a
            classification (B, K): the class of each image as a whole, which no transformation changes. With ``heads``:
            (B, 1, D, H, W) label values of an integer type.
        valid: (B, 1, D, H, W) float, 0 where the label is unknown (an ignore label), 1 elsewhere; None: all known.
        extra: (B, E, D, H, W) channels that move with the image but that no intensity operation touches (a cascade's
            previous segmentation), or None.
        mask: (B, C, D, H, W) float, 0 where the image must stay 0 (nnU-Net's non-zero mask), or None.
        classes: (B,) int64, the label value that each patch was cut for, or, where a host cuts for none, at its centre.
        case: B names.
        spacing: (B, 3) voxel size in mm, order D, H, W; in 2D (B, 2).
        margin: voxels by which the patch is enlarged at each end of each axis; (): none, in 2D and in 3D.
        target: the label in the host's own form (what its own loss takes), on any device; used by the plain step only.
        operations: (B, cascades) int64: what a training policy has drawn for these patches and the host has applied
            already, for the label values in ``classes``; None: nothing was applied.
        plain: the same patches as they were before, without margin, where the policy's update compares with them.
        heads: channels that the label is to become where it is still values, none of them unknown, for an augmentation
            that is faster then; 0: it has its channels.

    >>> b = Batch(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 3, 8, 8, 8), classes=torch.zeros(2, dtype=torch.long),
    ...           case=("a", "b"), spacing=torch.ones(2, 3), margin=(1, 1, 1))
    >>> b.cropped().image.shape, b.rows(slice(0, 1)).case
    (torch.Size([2, 1, 6, 6, 6]), ('a',))
    """

    image: Tensor
    label: Tensor
    valid: Tensor | None = None
    extra: Tensor | None = None
    mask: Tensor | None = None
    classes: Tensor | None = None
    case: tuple[str, ...] = ()
    spacing: Tensor | None = None
    margin: tuple[int, ...] = ()
    target: Any = None
    operations: Tensor | None = None
    plain: Batch | None = None
    heads: int = 0

    def __post_init__(self) -> None:
        if not self.margin:  # frozen: no plain assignment
            object.__setattr__(self, "margin", (0,) * (self.image.ndim - 2))

    @property
    def classification(self) -> bool:
        """Whether labels are of whole images, (B, K), rather than of voxels.

        >>> Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3)).classification
        True
        """
        return self.label.ndim == 2

    def _map(self, function: Callable[[Tensor], Tensor], *names: str) -> Batch:
        """Apply ``function`` to the named tensors that are there, and to those of ``plain``."""
        changed: dict[str, Any] = {n: function(getattr(self, n)) for n in names if getattr(self, n) is not None}
        if self.plain is not None:
            changed["plain"] = self.plain._map(function, *names)
        return replace(self, **changed)

    def with_channels(self) -> Batch:
        """The same with a channel for each class where the label is values.

        >>> values = torch.tensor([[[[0, 1], [1, 2]]]])
        >>> Batch(torch.zeros(1, 1, 2, 2), values, heads=3).with_channels().label[0, 1]
        tensor([[0., 1.],
                [1., 0.]])
        """
        return replace(self, label=one_hot(self.label, self.heads), heads=0) if self.heads else self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to ``device``."""
        names = [f.name for f in fields(self) if f.name != "target" and isinstance(getattr(self, f.name), Tensor)]
        return self._map(lambda t: t.to(device, non_blocking=non_blocking), *names)

    def pin_memory(self) -> Batch:
        """Copy every tensor to page-locked memory (a DataLoader with ``pin_memory=True`` calls this)."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        return self._map(lambda t: t.pin_memory(), *names)

    def cropped(self) -> Batch:
        """The patch without its margin."""
        spatial = ("image", "extra", "mask") if self.classification else ("image", "label", "valid", "extra", "mask")
        crop = self._map(lambda t: centre_crop(t, self.margin), *spatial)
        return replace(crop, margin=tuple(0 for _ in self.margin))

    def rows(self, index: slice | Tensor) -> Batch:
        """The samples that ``index`` selects (without the host's own target)."""
        names = ("image", "label", "valid", "extra", "mask", "classes", "spacing", "operations")
        part = self._map(lambda t: t[index], *names)
        order = range(len(self.case))[index] if isinstance(index, slice) else index.tolist()
        return replace(part, target=None, case=tuple(self.case[i] for i in order) if self.case else ())
