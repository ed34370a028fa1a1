# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What resampling does to a file: labels that no voxel of the new grid gets, and volumes that would become huge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data.audit_facts import label_map
from monai_autoaug.data.audit_headers import affine_usable, header_spacing, implausible_spacing, one_slice
from monai_autoaug.data.audit_views import Fault, Volume
from monai_autoaug.data.datalist import Case
from monai_autoaug.data.geometry import resampled_grid, spacing_along
from monai_autoaug.data.names import leaves_folder
from monai_autoaug.data.nifti import read_header
from monai_autoaug.data.nifti_header import UNREADABLE
from monai_autoaug.errors import DataError

__all__ = ["huge", "lost", "lost_labels", "median_spacing"]

_SAMPLES = 4096  # voxels of a class that are tried first
_POINTS = 1 << 18  # new voxels that are looked at together
_MOST = 2**31  # voxels of a resampled volume
_CORNERS = np.array(list(product((0, 1), repeat=3)))
Labels = NDArray[np.int32]
Points = NDArray[np.floating[Any]]


def median_spacing(folder: Path, cases: Iterable[Case], orientation: str) -> tuple[float, float, float] | None:
    """The median voxel size of cases, by the headers of their first images, as `Preprocessing.fit` takes it.

    Args:
        folder: of the data set.
        cases: those whose header can't be used are left out.
        orientation: of the axes.

    Returns:
        mm, in the order of the orientation's axes; None where no header can be used.
    """
    found = []
    for case in cases:
        try:
            header = None if leaves_folder(case.images[0], folder) else read_header(case.images[0])
            affine = np.eye(4) if header is None else np.array(type(header).from_header(header).get_best_affine())
        except (DataError, *UNREADABLE):
            continue  # told by the checks of the file
        if header is not None and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]):
            found.append(spacing_along(affine, orientation))
    if not found:
        return None
    median = np.median(found, axis=0).round(6)
    return float(median[0]), float(median[1]), float(median[2])


def _grid(volume: Volume) -> tuple[Points, tuple[int, ...]] | None:
    """The grid that a file is resampled to; None where it stays on its own, or no target is known."""
    checks = (affine_usable, header_spacing, implausible_spacing, one_slice)
    if volume.target is None or len(volume.shape) < 3 or 0 in volume.shape or any(any(c(volume)) for c in checks):
        return None
    to_source, shape = resampled_grid(volume.affine, volume.shape, volume.target.spacing, volume.target.orientation)
    steps = np.abs(to_source[:3, :3])
    # a step of one voxel along one axis each: voxels fall on voxels
    same = np.allclose(np.sort(steps, axis=1), [[0, 0, 1]] * 3, atol=1e-6)
    return None if same else (to_source, shape)


def huge(volume: Volume) -> Iterator[Fault]:
    """A resampled volume fits into memory."""
    grid = _grid(volume)
    if grid is not None and volume.target is not None and math.prod(grid[1]) > _MOST:
        spacing = " x ".join(f"{s:.4g}" for s in volume.target.spacing)
        came = f"{' x '.join(str(n) for n in grid[1])} voxels of {spacing} mm"
        remedy = "correct its voxel size, or choose a coarser one (--spacing)"
        yield Fault("becomes too large when it is resampled", f"at most {_MOST:,} voxels", came, remedy)


def lost_labels(volume: Volume) -> Iterator[Fault]:
    """Every label that a file holds is still there when it has been resampled."""
    counts, grid = volume.label_counts, _grid(volume)
    if counts is None or volume.nifti is None or grid is None or math.prod(grid[1]) > _MOST or counts.num_fractional:
        return
    own = {v: n for v, n in counts.whole.items() if v in volume.datalist.label_values and v != 0}
    if not own:
        return
    names = {v: name for name, v in volume.datalist.labels.items() if isinstance(v, int)}
    spacing = " x ".join(f"{s:.4g}" for s in volume.target.spacing) if volume.target is not None else ""
    for value in lost(label_map(volume.nifti), grid[0], grid[1], own):
        yield Fault(
            f'loses the label "{names.get(value, value)}" when it is resampled',
            f"at least one voxel of {spacing} mm",
            f"none of {own[value]:,} voxels of {' x '.join(f'{s:.4g}' for s in volume.spacing)} mm",
            "choose a finer voxel size (--spacing), or do without the label",
        )


def lost(labels: Labels, to_source: Points, shape: tuple[int, ...], counts: dict[int, int]) -> list[int]:
    """Which label values no voxel of a new grid gets, if each is resampled linearly and the largest share wins.

    Args:
        labels: (x, y, z) label values.
        to_source: (4, 4), voxels of the new grid to voxels of ``labels``.
        shape: of the new grid.
        counts: label value -> its voxels, for the values that matter.

    >>> labels = np.zeros((8, 8, 8), np.int32)
    >>> labels[3, 3, 3], labels[4:, 4:, 4:] = 1, 2
    >>> lost(labels, np.diag([2.0, 2.0, 2.0, 1.0]), (4, 4, 4), {1: 1, 2: 64})
    [1]
    """
    grid = labels, to_source, shape
    return [value for value, count in counts.items() if not (_seen(*grid, value, count) or _wins(*grid, value))]


def _positions(labels: Labels, value: int, stride: int) -> Points:
    """(n, 3) voxels that hold a value, of every ``stride``-th voxel."""
    found = np.flatnonzero(labels.reshape(-1, order="F")[::stride] == value) * stride
    return np.stack(np.unravel_index(found, labels.shape, order="F"), axis=1).astype(np.float64)


def _moved(points: Points, matrix: Points) -> Points:
    """(n, 3) points in the voxels of another grid."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _neighbours(labels: Labels, points: Points) -> tuple[Labels, Points]:
    """(n, 8) labels around points of the volume and their (n, 8) shares; at its border the volume is continued."""
    inside = np.clip(points, 0, np.array(labels.shape) - 1)
    low = np.floor(inside).astype(np.int64)
    rest = inside - low
    where = np.minimum(low[:, None] + _CORNERS, np.array(labels.shape) - 1)
    shares = np.where(_CORNERS, rest[:, None], 1 - rest[:, None]).prod(axis=2)
    return labels[where[..., 0], where[..., 1], where[..., 2]], shares


def _seen(labels: Labels, to_source: Points, shape: tuple[int, ...], value: int, count: int) -> bool:
    """Whether a value has more than half of a new voxel near some of its own: quick, and true of most labels."""
    own = _positions(labels, value, max(count // _SAMPLES, 1))
    near = np.clip(np.rint(_moved(own, np.linalg.inv(to_source))), 0, np.array(shape) - 1)
    around, shares = _neighbours(labels, _moved(near, to_source))
    return bool((shares.sum(axis=1, where=around == value) > 0.5).any())


def _wins(labels: Labels, to_source: Points, shape: tuple[int, ...], value: int) -> bool:
    """Whether a value has the largest share of any new voxel: all that lie where it may be are looked at."""
    own = _positions(labels, value, 1)
    box = np.array(list(product(*zip(own.min(axis=0) - 1, own.max(axis=0) + 1, strict=True))))
    ends = _moved(box, np.linalg.inv(to_source))
    first = np.clip(np.floor(ends.min(axis=0)), 0, np.array(shape) - 1).astype(np.int64)
    size = np.clip(np.ceil(ends.max(axis=0)), 0, np.array(shape) - 1).astype(np.int64) - first + 1
    total = math.prod(size.tolist())
    for start in range(0, total, _POINTS):
        index = np.arange(start, min(start + _POINTS, total))
        points = np.stack(np.unravel_index(index, size), axis=1) + first
        around, shares = _neighbours(labels, _moved(points.astype(np.float64), to_source))
        mine = shares.sum(axis=1, where=around == value)
        around, shares, mine = around[mine > 0], shares[mine > 0], mine[mine > 0]
        # of each corner's label the share that all corners of that label have together
        same = around[:, :, None] == around[:, None, :]
        each = (same * shares[:, None, :]).sum(axis=2)
        best = each.max(axis=1)
        # of equal shares the lower label wins
        winner = np.where(each >= best[:, None] - 1e-9, around, np.iinfo(np.int32).max).min(axis=1)
        if bool((winner == value).any()):
            return True
    return False
