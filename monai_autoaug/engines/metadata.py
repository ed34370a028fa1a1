# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What MONAI's metadata says of a batch, as plain tensors and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["cases_of", "plain", "spacing_of"]


def plain(x: Any) -> Any:
    """A MetaTensor without its metadata (the same memory); anything else as it is.

    >>> type(plain(MetaTensor(torch.zeros(2))))
    <class 'torch.Tensor'>
    """
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def spacing_of(image: Tensor, spatial_dims: int) -> Tensor | None:
    """Voxel size (B, spatial_dims) in mm from a MetaTensor's affine, or None.

    >>> affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0]))[None]
    >>> spacing_of(MetaTensor(torch.zeros(1, 1, 4, 4, 4), meta={"affine": affine}), 3)
    tensor([[2., 1., 3.]])
    """
    affine = image.meta.get("affine") if isinstance(image, MetaTensor) else None
    if affine is None:
        return None
    affine = torch.as_tensor(affine).float()
    affine = affine.expand(len(image), *affine.shape) if affine.ndim == 2 else affine
    return affine[:, :-1, :spatial_dims].square().sum(1).sqrt().to(image.device)


def cases_of(image: Tensor, data: Any) -> tuple[str, ...]:
    """The samples' names: the loader's ``case`` entry, or the files that a MetaTensor was read from; () if unknown."""
    names = data.get("case") if isinstance(data, Mapping) else None
    if names is None and isinstance(image, MetaTensor):
        names = image.meta.get("filename_or_obj")
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != len(image):
        return ()
    return tuple(str(n) for n in names)
