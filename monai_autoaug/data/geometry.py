# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where voxels are: axes at right angles, and the grid that a volume is resampled to."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from numpy.typing import NDArray

__all__ = ["SHEAR", "resampled_grid", "right_angled", "spacing_along"]

SHEAR = 0.01 + 1e-4  # cosine between axes up to which they are almost at right angles
_SAME = 1e-3  # mm; MONAI resamples no axis for less
Affine = NDArray[np.float64]


def right_angled(affine: Affine, shape: Sequence[int]) -> tuple[Affine, float]:
    """The affine of right angles next to another one: same voxel size, same centre of the volume.

    The axes are those of the rotation that is nearest in the least-squares sense (polar decomposition of the axes).

    Args:
        affine: (4, 4), voxel to mm, regular.
        shape: of the volume, voxels.

    Returns:
        The affine, and the largest cosine between two axes of the given one.

    >>> affine = np.eye(4)
    >>> affine[0, 1] = 0.01
    >>> square, cosine = right_angled(affine, (3, 3, 3))
    >>> square.round(3)[0].tolist(), round(cosine, 3)
    ([1.0, 0.005, 0.0, 0.005], 0.01)
    """
    matrix = affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    axes = matrix / spacing
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    left, _, right = np.linalg.svd(axes)
    square = np.eye(4)
    square[:3, :3] = left @ right * spacing
    middle = (np.array(shape[:3]) - 1) / 2
    square[:3, 3] = affine[:3, 3] + (matrix - square[:3, :3]) @ middle
    return square, cosine


def _turned(affine: Affine, orientation: str) -> NDArray[np.float64]:
    """The transform, as nibabel has it, from a volume's own axes to those of an orientation."""
    wanted = nib.orientations.axcodes2ornt(orientation)
    return np.asarray(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))


def spacing_along(affine: Affine, orientation: str) -> NDArray[np.float64]:
    """Voxel size in mm in the order of an orientation's axes.

    Args:
        affine: (4, 4), regular.
        orientation: such as "RAS".

    >>> spacing_along(np.diag([3.0, 1.0, 1.0, 1.0])[[1, 0, 2, 3]], "RAS").tolist()
    [1.0, 3.0, 1.0]
    """
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(_turned(affine, orientation)[:, 0])])


def resampled_grid(
    affine: Affine, shape: Sequence[int], spacing: Sequence[float], orientation: str
) -> tuple[Affine, tuple[int, ...]]:
    """The grid that MONAI's ``Orientation`` and ``Spacing`` bring a volume onto, as `Preprocessing` uses them.

    Args:
        affine: (4, 4) of the volume, regular.
        shape: of the volume.
        spacing: mm a voxel, in the order of the orientation's axes.
        orientation: of the new axes.

    Returns:
        (4, 4), voxels of the new grid to voxels of the volume, and the new shape.

    >>> to_source, new = resampled_grid(np.diag([-1.0, 1.0, 1.0, 1.0]), (9, 9, 9), (2, 2, 2), "RAS")
    >>> to_source[0].tolist(), new
    ([-2.0, 0.0, 0.0, 8.0], (5, 5, 5))
    """
    turn = _turned(affine, orientation)
    oriented = affine @ nib.orientations.inv_ornt_aff(turn, tuple(shape[:3]))
    size = np.array(shape[:3])[np.argsort(turn[:, 0])]
    own = np.linalg.norm(oriented[:3, :3], axis=0)
    wanted = np.where(np.abs(own - np.array(spacing, float)) <= _SAME, own, np.array(spacing, float))
    new = zoom_affine(oriented, wanted, diagonal=False)
    new_shape, offset = compute_shape_offset(size, oriented, new)
    new[:3, 3] = offset
    return np.linalg.inv(affine) @ new, tuple(int(n) for n in new_shape)
