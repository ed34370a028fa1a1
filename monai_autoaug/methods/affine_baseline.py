# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The affine augmentation under all others in paper 001: each patch is left as it is, or one of four things happens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_autoaug.augmenters import Transformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.geometry import affine_matrix

__all__ = ["AFFINE_PARTS", "affine_baseline", "check_affine"]

AFFINE_PARTS = ("rotation", "scaling", "turn", "flip")
_ANGLE, _SCALE = math.radians(15.0), 0.1
_SLICES = 3.0  # coarsest spacing over the finest: above it nnU-Net, too, takes a volume for slices


def check_affine(parts: Sequence[str], flip_axis: int, spatial_dims: int) -> None:
    """Refuse parts that there are not, parts named twice, and an axis that there is not.

    Raises:
        ConfigError: something can't be.
    """
    if set(parts) - set(AFFINE_PARTS) or len(set(parts)) != len(parts):
        raise ConfigError(f"affine is a list of {', '.join(AFFINE_PARTS)}, each at most once; got {list(parts)}")
    if not -spatial_dims <= flip_axis < spatial_dims:
        raise ConfigError(f"flip_axis must be between {-spatial_dims} and {spatial_dims - 1}, got {flip_axis}")


def affine_baseline(
    image: Tensor,
    parts: Sequence[str],
    generator: torch.Generator,
    *,
    spacing: Tensor | None = None,
    flip_axis: int = -1,
) -> Transformation:
    """Draw one transformation a sample: the identity or one of ``parts``, all of them equally likely.

    "rotation" is by up to 15 degree, "scaling" by a factor between 0.9 and 1.1, "turn" a rotation by 0 to 8 times 45
    degree, "flip" mirrors one axis. The paper augments slices; in volumes a rotation is about one axis, drawn anew for
    each sample, but within the slices where these are more than three times as far apart as their pixels.

    Args:
        image: (B, C, D, H, W).
        parts: of ``AFFINE_PARTS``.
        generator: of the random numbers.
        spacing: (B, 3) in mm, so that rotations act in physical space, or None.
        flip_axis: counted from 0, or from the end.

    Returns:
        B affine maps.

    Source: Chaitanya et al. 2019, section 4, Aug_A.

    >>> t = affine_baseline(torch.zeros(32, 1, 8, 8), ("flip",), torch.Generator().manual_seed(0))
    >>> t.matrix[:, 1, 1].unique().tolist()  # some are mirrored, some are left as they are
    [-1.0, 1.0]
    """
    n, shape = len(image), tuple(image.shape[2:])
    d = len(shape)

    def whole(stop: int) -> Tensor:
        return torch.randint(stop, (n,), generator=generator, device=generator.device).to(image.device)

    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32

    def uniform() -> Tensor:
        return 2 * torch.rand(n, generator=generator, device=generator.device).to(image.device, dtype) - 1

    # all are drawn always, so that leaving one out does not change what the others draw
    which, about, small, factor, turns = whole(len(parts) + 1), whole(max(d, 2)), uniform(), uniform(), whole(9)
    chosen = {part: which == number for number, part in enumerate(parts, start=1)}
    never = torch.zeros_like(which, dtype=torch.bool)
    if spacing is not None and d == 3:
        mm = spacing.to(image.device)
        about = torch.where(mm.amax(1) > _SLICES * mm.amin(1), mm.argmax(1), about)
    angle = torch.where(chosen.get("rotation", never), _ANGLE * small, torch.zeros_like(small))
    angle = torch.where(chosen.get("turn", never), turns * (math.pi / 4), angle)
    axis = torch.nn.functional.one_hot(about, 3) if d == 3 else torch.ones_like(about)[:, None]
    scale = torch.where(chosen.get("scaling", never), -torch.log1p(_SCALE * factor), torch.zeros_like(factor))
    zero = small.new_zeros(n, d)
    matrix = affine_matrix(angle[:, None] * axis, scale[:, None].expand(n, d), zero.new_zeros(n, 3 if d == 3 else 1),
                           zero, spacing)  # fmt: skip
    sign = torch.where(chosen.get("flip", never), -1.0, 1.0)[:, None]
    axis_of = torch.arange(d + 1, device=image.device) == flip_axis % d
    return Transformation(shape, matrix=torch.where(axis_of, matrix * sign[:, :, None], matrix))
