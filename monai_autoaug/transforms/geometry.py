# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Differentiable geometry: affine and velocity field -> ONE grid -> ONE resampling of image and one-hot label.

Conventions, all pinned by tests:

- Tensors are (B, C, D, H, W), or (B, C, H, W) with ``spatial_dims=2``; vectors over axes are in the order D, H, W.
- A grid (B, D, H, W, 3) holds, for every output voxel, the input position it is read from, in voxels, order D, H, W,
  counted from the centre of the volume (``(N - 1) / 2``). Resampling pulls: ``output(x) = input(grid(x))``.
- Rotations are in radians, right-handed about axis D, H, W and applied in that order, and like translations they move
  the
  positions that are read: the content turns the other way, and a translation of one voxel along D moves it one voxel
  towards smaller D.
- Grids are built and sampled in float32 (float64 stays float64) whatever autocast says.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.blocks import DVF2DDF
from torch import Tensor

from monai_autoaug.precision import float32_region

__all__ = [
    "affine_grid",
    "affine_matrix",
    "compose",
    "identity_grid",
    "integrate",
    "invert_affine",
    "jacobian_determinant",
    "resample",
    "sample_field",
    "upsample_field",
]


def _full(x: Tensor) -> Tensor:
    """At least float32, keeping float64 for gradient checks; plain tensor without MONAI's metadata."""
    x = x.as_subclass(Tensor)
    return x if x.dtype == torch.float64 else x.float()


def _rotation(angles: Tensor, spatial_dims: int) -> Tensor:
    """(B, 1) or (B, 3) radians -> (B, d, d) rotation matrices."""
    c, s, one, zero = angles.cos(), angles.sin(), torch.ones_like(angles[:, 0]), torch.zeros_like(angles[:, 0])
    if spatial_dims == 2:
        return torch.stack([c[:, 0], -s[:, 0], s[:, 0], c[:, 0]], 1).view(-1, 2, 2)
    about_d = torch.stack([one, zero, zero, zero, c[:, 0], -s[:, 0], zero, s[:, 0], c[:, 0]], 1).view(-1, 3, 3)
    about_h = torch.stack([c[:, 1], zero, s[:, 1], zero, one, zero, -s[:, 1], zero, c[:, 1]], 1).view(-1, 3, 3)
    about_w = torch.stack([c[:, 2], -s[:, 2], zero, s[:, 2], c[:, 2], zero, zero, zero, one], 1).view(-1, 3, 3)
    return about_w @ about_h @ about_d


def affine_matrix(
    rotation: Tensor, log_scale: Tensor, shear: Tensor, translation: Tensor, spacing: Tensor | None = None
) -> Tensor:
    """Matrix whose determinant is positive by construction: rotation x unit shear x exp(log-scale).

    Args:
        rotation: (B, 3) angles in radians about D, H, W; (B, 1) in 2D.
        log_scale: (B, 3) natural logarithm of the factor along each axis; determinant = exp(sum).
        shear: (B, 3) off-diagonal entries (D,H), (D,W), (H,W) of an upper unit-triangular matrix; (B, 1) in 2D.
        translation: (B, 3) in voxels.
        spacing: (B, 3) voxel size in mm: rotation and shear then act in physical space, so that an anisotropic volume
            is
            rotated, not sheared; None: isotropic.

    Returns:
        (B, 3, 4): linear part and translation, mapping centred output voxels to centred input voxels.

    >>> zero = torch.zeros(1, 3)
    >>> affine_matrix(zero, zero, zero, zero)[0].tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    d = log_scale.shape[1]
    with float32_region(log_scale.device):
        rotation, log_scale, shear, translation = (_full(x) for x in (rotation, log_scale, shear, translation))
        upper = torch.eye(d, dtype=log_scale.dtype, device=log_scale.device).repeat(len(log_scale), 1, 1)
        rows, columns = torch.triu_indices(d, d, offset=1, device=log_scale.device)
        upper = upper.index_put((torch.arange(len(shear), device=shear.device)[:, None], rows, columns), shear)
        linear = _rotation(rotation, d) @ upper @ torch.diag_embed(log_scale.exp())
        if spacing is not None:
            mm = spacing.to(linear)
            linear = linear * mm[:, None, :] / mm[:, :, None]  # voxel -> mm, act, mm -> voxel
        return torch.cat([linear, translation[:, :, None]], dim=2)


def invert_affine(matrix: Tensor) -> Tensor:
    """Inverse of (B, d, d + 1) matrices.

    >>> m = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    >>> invert_affine(m)[0].tolist()
    [[0.5, 0.0, -0.5], [0.0, 1.0, 0.0]]
    """
    with float32_region(matrix.device):
        matrix = _full(matrix)
        linear = torch.linalg.inv(matrix[:, :, :-1])
        return torch.cat([linear, -linear @ matrix[:, :, -1:]], dim=2) + 0.0  # + 0.0 turns -0 into 0


def identity_grid(
    shape: tuple[int, ...],
    *,
    margin: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Centred voxel positions of a volume, without ``margin`` voxels at each end (1, D, H, W, 3).

    >>> identity_grid((3, 1, 1))[0, :, 0, 0, 0].tolist()
    [-1.0, 0.0, 1.0]
    """  # fmt: skip
    margin = margin or (0,) * len(shape)
    axes = [
        torch.arange(m, n - m, dtype=dtype, device=device) - (n - 1) / 2 for n, m in zip(shape, margin, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]


def affine_grid(matrix: Tensor, points: Tensor) -> Tensor:
    """Map ``points`` (B or 1, ..., d) in centred voxels by ``matrix`` (B, d, d + 1).

    >>> shift = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    >>> affine_grid(shift, torch.zeros(1, 1, 1, 2))[0, 0, 0].tolist()
    [0.5, 0.0]
    """
    d = points.shape[-1]
    flat = points.reshape(points.shape[0], -1, d)
    moved = flat @ matrix[:, :, :d].transpose(1, 2) + matrix[:, None, :, d]
    return moved.view(matrix.shape[0], *points.shape[1:])


def _spacing_ratio(coarse: tuple[int, ...], full: tuple[int, ...]) -> list[float]:
    """Full-resolution voxels per coarse voxel, both grids having their corner voxels in common."""
    return [(f - 1) / (c - 1) if c > 1 else 1.0 for c, f in zip(coarse, full, strict=True)]


def integrate(velocity: Tensor, shape: tuple[int, ...], *, steps: int = 5) -> Tensor:
    """Displacement field exp(v) of a stationary velocity field, on its own coarse grid, by scaling and squaring.

    Args:
        velocity: (B, 3, d, h, w) in full-resolution voxels a unit of time, order D, H, W; the coarse grid's corner
            voxels
            lie on the corner voxels of the full one.
        shape: full-resolution size (D, H, W).
        steps: squarings; more of them are more exact and cost as much each.

    Returns:
        (B, 3, d, h, w) displacement in full-resolution voxels.

    >>> v = torch.zeros(1, 3, 4, 4, 4); v[:, 0] = 1.5
    >>> integrate(v, (16, 16, 16))[0, 0].unique().tolist()
    [1.5]
    """
    with float32_region(velocity.device):
        velocity = _full(velocity)
        ratio = torch.tensor(_spacing_ratio(tuple(velocity.shape[2:]), shape)).to(velocity)
        ratio = ratio.view(1, -1, *[1] * (velocity.ndim - 2))
        ddf: Tensor = _exponential(steps)(velocity / ratio)
        return ddf * ratio


@lru_cache(maxsize=4)
def _exponential(steps: int) -> DVF2DDF:
    """MONAI's scaling and squaring, extrapolating by the border value (zeros would pull the border inwards)."""
    return DVF2DDF(num_steps=steps, padding_mode="border")


def upsample_field(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resize a field or mask (B, C, d, h, w) to ``shape`` linearly, corner voxels on corner voxels.

    >>> upsample_field(torch.tensor([[[[0.0, 1.0]]]]), (1, 3))[0, 0, 0].tolist()
    [0.0, 0.5, 1.0]
    """
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    with float32_region(field.device):
        return F.interpolate(_full(field), size=shape, mode=mode, align_corners=True)


def _normalised(grid: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Centred voxels, order D, H, W -> [-1, 1], order x, y, z, as ``grid_sample`` with align_corners wants them."""
    half = torch.tensor([max(n - 1, 1) / 2 for n in shape]).to(grid)
    return (grid / half).flip(-1)


def sample_field(field: Tensor, grid: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Read a coarse field (B, C, d, h, w) at ``grid`` (B, D, H, W, 3), given in voxels of the full ``shape``.

    >>> sample_field(torch.ones(1, 3, 2, 2, 2), identity_grid((4, 4, 4)), (4, 4, 4)).shape
    torch.Size([1, 3, 4, 4, 4])
    """
    with float32_region(field.device):
        where = _normalised(grid.expand(field.shape[0], *grid.shape[1:]), shape)
        return F.grid_sample(_full(field), where, mode="bilinear", padding_mode="border", align_corners=True)


def compose(
    matrix: Tensor | None,
    displacement: Tensor | None,
    shape: tuple[int, ...],
    *,
    margin: tuple[int, ...] | None = None,
    inverted: bool = False,
    like: Tensor,
) -> Tensor:
    """One grid of an affine map and a displacement field: the volume is mapped affinely first, then deformed.

    Args:
        matrix: (B, d, d + 1), or None.
        displacement: (B, d, ...) on a coarse grid in full-resolution voxels, or None.
        shape: size of the volume that is read.
        margin: voxels at each end of each axis that the output leaves out.
        inverted: deform first, then map affinely, which is the order of the inverse.
        like: a tensor that gives device and dtype.

    Returns:
        (B or 1, D, H, W, 3) grid.

    >>> compose(None, None, (4, 4, 4), like=torch.zeros(1)).shape
    torch.Size([1, 4, 4, 4, 3])
    """  # fmt: skip
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    with float32_region(like.device):
        grid = identity_grid(shape, margin=margin, dtype=dtype, device=like.device)
        if inverted:
            grid = grid if matrix is None else affine_grid(_full(matrix), grid)
            if displacement is not None:
                grid = grid + sample_field(displacement, grid, shape).movedim(1, -1)
            return grid
        if displacement is not None:
            field = upsample_field(displacement, shape)
            if margin is not None and any(margin):
                window = (slice(None), slice(None), *[slice(m, n - m) for n, m in zip(shape, margin, strict=True)])
                field = field[window]
            grid = grid + field.movedim(1, -1)
        return grid if matrix is None else affine_grid(_full(matrix), grid)


def _inside(grid: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weight that linear interpolation gives to the inside of the volume: 1 inside, 0 beyond one voxel outside."""
    half = torch.tensor([(n - 1) / 2 for n in shape]).to(grid)
    return (1 - (grid.abs() - half).clamp(min=0)).clamp(min=0).prod(dim=-1)[:, None]


def resample(
    image: Tensor,
    grid: Tensor,
    *,
    label: Tensor | None = None,
    padding: str = "minimum",
    outside: tuple[float, ...] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Read image and soft label at ``grid`` in one ``grid_sample`` call, differentiably.

    Args:
        image: (B, C, D, H, W).
        grid: (B or 1, D', H', W', 3) from `compose`.
        label: (B, K, D, H, W) soft label, or None.
        padding: what the image is outside the volume: "minimum" (of each sample and channel) or "border"; "zero" is
            for
            network outputs, and for images it is the mean after z-scoring, as in paper 002's code.
        outside: value of each label channel outside the volume; None: 1 for the first (the background) and 0 for the
            others,
            so that a one-hot label sums to 1 everywhere.

    Returns:
        The image in its own dtype and the label in float32, both at the grid's size.

    >>> x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    >>> torch.allclose(resample(x, identity_grid((2, 2, 2)))[0], x, atol=1e-6)
    True
    """  # fmt: skip
    shape = tuple(image.shape[2:])
    dims = tuple(range(2, image.ndim))
    with float32_region(image.device):
        source, channels = _full(image), image.shape[1]
        # what lies outside is subtracted before and added after, since grid_sample can only pad with zero
        base = source.amin(dim=dims, keepdim=True) if padding == "minimum" else source.new_zeros(())
        stack = [source - base]
        if label is not None:
            fill = (1.0, *[0.0] * (label.shape[1] - 1)) if outside is None else outside
            background = torch.tensor(fill, device=image.device).view(1, -1, *[1] * len(dims))
            stack.append(label.as_subclass(Tensor).to(source.dtype) - background)
        where = _normalised(grid.expand(image.shape[0], *grid.shape[1:]), shape)
        mode = "border" if padding == "border" else "zeros"
        read = F.grid_sample(torch.cat(stack, 1), where, mode="bilinear", padding_mode=mode, align_corners=True)
        moved = (read[:, :channels] + base).to(image.dtype)
        if label is None:
            return moved, None
        soft = read[:, channels:]
        if padding == "border":  # the border would smear foreground outwards
            soft = soft * _inside(grid, shape)
        return moved, (soft + background).float() if label.dtype != torch.float64 else soft + background


def jacobian_determinant(grid: Tensor) -> Tensor:
    """Determinant of d(input position) / d(output voxel) by forward differences; at most 0 where the map folds.

    Args:
        grid: (B, D, H, W, 3) from `compose`.

    Returns:
        (B, D - 1, H - 1, W - 1), dimensionless; 1 everywhere for the identity.

    >>> jacobian_determinant(identity_grid((3, 3, 3))).unique().tolist()
    [1.0]
    """
    d = grid.shape[-1]
    window = (slice(None), *[slice(0, -1)] * d)
    core = grid[window]
    columns = []
    for axis in range(d):
        ahead = [slice(0, -1)] * d
        ahead[axis] = slice(1, None)
        shifted = (slice(None), *ahead)
        columns.append(grid[shifted] - core)
    return torch.linalg.det(torch.stack(columns, dim=-1))
