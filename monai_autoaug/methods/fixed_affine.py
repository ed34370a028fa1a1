# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The fixed augmentations that paper 004 compares with: shifts, or shifts, rotations and scales, drawn uniformly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_autoaug.augmenters import Transformation
from monai_autoaug.transforms.geometry import affine_matrix

__all__ = ["LEVELS", "fixed_affine"]

LEVELS = ("light", "strong")
_SHIFT = 4 / 32  # the paper pads images of 32 pixels by 4 and crops them back
_ANGLE, _FACTOR = math.radians(10.0), math.log(2.0)


def fixed_affine(
    image: Tensor,
    level: str,
    generator: torch.Generator,
    *,
    spacing: Tensor | None = None,
    mirror_axes: Sequence[int] = (),
) -> Transformation:
    """Draw one transformation a sample.

    "light" shifts by whole voxels, up to an eighth of the size along each axis. "strong" also rotates by up to 10
    degree about each axis and scales by one factor between 0.5 and 2, uniform in its logarithm (how it is drawn the
    paper doesn't say), and mirrors ``mirror_axes`` half of the time each (the paper: natural images alone).

    Args:
        image: (B, C, D, H, W).
        level: one of ``LEVELS``.
        generator: of the random numbers.
        spacing: (B, 3) in mm, so that rotations act in physical space, or None.
        mirror_axes: counted from 0.

    Source: Mounsaveng et al. 2019, section 4.3.

    >>> t = fixed_affine(torch.zeros(2, 1, 16, 16), "light", torch.Generator().manual_seed(0))
    >>> t.matrix[0, :, :2].tolist(), float(t.matrix[:, :, 2].abs().max()) <= 2
    ([[1.0, 0.0], [0.0, 1.0]], True)
    """
    n, shape = len(image), tuple(image.shape[2:])
    d = len(shape)

    def uniform(columns: int) -> Tensor:
        return 2 * torch.rand(n, columns, generator=generator, device=generator.device).to(image.device) - 1

    most = torch.tensor([math.floor(_SHIFT * s) for s in shape], device=image.device)
    shift = (uniform(d) * (most + 0.5)).round().clamp(-most, most)
    zero = shift.new_zeros(n, 3 if d == 3 else 1)
    if level == "light":
        return Transformation(shape, matrix=affine_matrix(zero, zero.new_zeros(n, d), zero, shift))
    turn, factor = _ANGLE * uniform(zero.shape[1]), _FACTOR * uniform(1).expand(n, d)
    matrix = affine_matrix(turn, factor, zero, shift, spacing)
    for axis in mirror_axes:
        sign = torch.where(uniform(1) < 0, -1.0, 1.0)
        matrix = torch.cat([matrix[:, :, :axis], matrix[:, :, axis : axis + 1] * sign[:, :, None],
                            matrix[:, :, axis + 1 :]], dim=2)  # fmt: skip
    return Transformation(shape, matrix=matrix)
