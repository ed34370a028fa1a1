# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Spatial operations: matrices and fields that compose to one resampling, and flips and quarter turns that are exact.

A matrix maps a centred output voxel to the centred input voxel that is read, order D, H, W, as in `geometry`. Angles
are in degrees: a positive one turns the content of the plane (a, b) as ``numpy.rot90(k=1)`` does, save for the plane
(0, 2), which turns the other way round, as in the paper's code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_autoaug.transforms.geometry import integrate, upsample_field
from monai_autoaug.transforms.intensity import random_like

__all__ = ["elastic", "enlarged_size", "flip", "half_turn", "quarter_turn", "rotation", "zoom"]


def zoom(factor: Tensor, spatial_dims: int = 3) -> Tensor:
    """Matrix of a zoom about the centre: positions times ``factor`` (B,), so that above 1 the content shrinks.

    >>> zoom(torch.tensor([2.0]), 2)
    tensor([[[2., 0.],
             [0., 2.]]])
    """
    return factor[:, None, None] * torch.eye(spatial_dims, dtype=factor.dtype, device=factor.device)


def rotation(degrees: Tensor, spatial_dims: int = 3, *, plane: tuple[int, int]) -> Tensor:
    """Matrix of a rotation by ``degrees`` (B,) in a plane of two axes.

    >>> rotation(torch.tensor([90.0]), 2, plane=(0, 1)).round().add(0.0)
    tensor([[[ 0.,  1.],
             [-1.,  0.]]])
    """
    a, b = plane
    angle = degrees * (math.pi / 180 * (-1 if plane == (0, 2) else 1))
    rows = [[torch.full_like(angle, float(i == j)) for j in range(spatial_dims)] for i in range(spatial_dims)]
    rows[a][a] = rows[b][b] = angle.cos()
    rows[a][b], rows[b][a] = angle.sin(), -angle.sin()
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quarter_turn(x: Tensor, degrees: Tensor, *, plane: tuple[int, int]) -> Tensor:
    """The volume turned by +90 or -90 degrees, without interpolation; the plane's two sizes change places.

    Args:
        x: (B, C, D, H, W).
        degrees: (B,), of which the sign counts.
        plane: two spatial axes, counted from 0.

    >>> quarter_turn(torch.arange(4).view(1, 1, 2, 2), torch.tensor([90.0]), plane=(0, 1)).flatten().tolist()
    [1, 3, 0, 2]
    """
    axes = (plane[0] + 2, plane[1] + 2)
    one = -1 if plane == (0, 2) else 1
    if len(x) == 1 and degrees.device.type == "cpu":  # elsewhere the sign would have to be waited for
        return torch.rot90(x, one if float(degrees) > 0 else -one, axes)
    ahead = (degrees > 0).view(-1, *[1] * (x.ndim - 1))
    return torch.where(ahead, torch.rot90(x, one, axes), torch.rot90(x, -one, axes))


def half_turn(x: Tensor, degrees: Tensor, *, plane: tuple[int, int]) -> Tensor:
    """The volume turned by 180 degrees, without interpolation.

    >>> half_turn(torch.arange(4).view(1, 1, 2, 2), torch.tensor([180.0]), plane=(0, 1)).flatten().tolist()
    [3, 2, 1, 0]
    """
    return x.flip(plane[0] + 2, plane[1] + 2)


def flip(x: Tensor, magnitude: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """The volume mirrored along spatial axes.

    >>> flip(torch.arange(4).view(1, 1, 2, 2), torch.ones(1), axes=(1,)).flatten().tolist()
    [1, 0, 3, 2]
    """
    return x.flip([axis + 2 for axis in axes])


def elastic(
    amplitude: Tensor, shape: tuple[int, ...], generator: torch.Generator | None = None, *, spacing: int = 16
) -> Tensor:
    """Displacement (B, d, ...) on a coarse grid, from a random velocity field: smooth, and without folds.

    Args:
        amplitude: (B,) largest velocity of a control point along each axis, in voxels; 0 changes nothing.
        shape: size of the volume.
        generator: random numbers come from it; None: torch's global one.
        spacing: of the control points, in voxels.

    >>> elastic(torch.zeros(1), (16, 16, 16)).abs().max()
    tensor(0.)
    """
    points = [max(2, (n - 1) // spacing + 2) for n in shape]
    draws = random_like(amplitude, (len(amplitude), len(shape), *points), generator, normal=False)
    velocity = draws * amplitude.view(-1, *[1] * (draws.ndim - 1)).to(draws)
    # four times finer than the control points: enough for the integration, a fraction of the volume's cost
    fine = tuple(min(n, 4 * p) for n, p in zip(shape, points, strict=True))
    return integrate(upsample_field(velocity, fine), shape)


def enlarged_size(shape: tuple[int, ...], degrees: tuple[float, ...], factor: float = 1.0) -> tuple[int, ...]:
    """Size of the patch to cut so that rotations and a zoom bring no corners into ``shape``.

    Rotations in different planes are taken one by one, as in the paper's code, which is exact for one of them.

    Args:
        shape: wanted size (D, H, W), or (H, W).
        degrees: largest angle about D, H and W; in 2D the one angle.
        factor: largest factor of the field of view, at least 1.

    >>> enlarged_size((64, 64, 32), (30, 5, 5), 1.05)
    (72, 74, 62)
    """
    size = [float(n) for n in shape]
    planes = ((1, 2), (0, 2), (0, 1)) if len(shape) == 3 else ((0, 1),)
    for (a, b), angle in zip(planes, degrees, strict=True):
        c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        size[a] = max(size[a], shape[a] * c + shape[b] * s)
        size[b] = max(size[b], shape[b] * c + shape[a] * s)
    return tuple(math.floor(n * factor) for n in size)
