# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What preprocessing has to know of the training cases: spacing, shape, and the intensities of the foreground."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.data.nifti import Nifti, read_nifti
from monai_autoaug.errors import ConfigError, DataError

__all__ = ["CaseFacts", "IntensityStatistics", "case_facts", "pooled_statistics"]

SAMPLES = 10_000  # foreground voxels drawn a case, as nnU-Net's fingerprint does, so that every case counts the same


@dataclass(frozen=True)
class IntensityStatistics:
    """The foreground intensities of one channel over the training cases.

    Args:
        mean: in the files' own units, such as Hounsfield units.
        std: standard deviation.
        minimum: the smallest value.
        maximum: the largest value.
        percentile_00_5: 0.5 % of the values are smaller.
        percentile_99_5: 0.5 % of the values are larger.

    Raises:
        ConfigError: a number is not finite, or std is negative.

    >>> IntensityStatistics.of(np.array([1.0, 3.0])).mean
    2.0
    """

    mean: float
    std: float
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"intensity statistics: {field.name} must be a finite number, got {value!r}")
        if self.std < 0:
            raise ConfigError(f"intensity statistics: std must not be negative, got {self.std}")

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> IntensityStatistics:
        """The statistics of an array of values."""
        low, high = np.percentile(values, (0.5, 99.5))
        numbers = (values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), values.max(), low, high)
        return cls(*(float(n) for n in numbers))


@dataclass(frozen=True)
class CaseFacts:
    """What one case tells, in the target orientation.

    Args:
        spacing: mm an axis.
        shape: voxels an axis.
        foreground: (channels, samples) intensities drawn from the foreground; no samples where there is none.
    """

    spacing: NDArray[np.float64]
    shape: NDArray[np.int64]
    foreground: NDArray[np.float32]


def _channels(volumes: Sequence[Nifti], count: int, name: str) -> NDArray[np.float32]:
    """(channels, D, H, W) of one 4D file or of a file a channel."""
    arrays = [np.asanyarray(v.image.dataobj) for v in volumes]
    if len(arrays) == 1 and arrays[0].ndim > 3:
        arrays = list(np.moveaxis(arrays[0].reshape(*arrays[0].shape[:3], -1), -1, 0))
    if len(arrays) != count or len({a.shape for a in arrays}) != 1:
        raise DataError(
            "has unexpected channels", file=name, expected=f"{count} of one shape", came=[a.shape for a in arrays]
        )
    return np.stack(arrays).astype(np.float32)


def _facts(case: Case, datalist: DataList, orientation: str) -> CaseFacts:
    """Read one case."""
    volumes = [read_nifti(f) for f in case.images]
    image = _channels(volumes, len(datalist.channels), case.name)
    affine = volumes[0].image.affine
    order = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation))
    axes = np.argsort(order[:, 0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[axes]
    foreground = np.empty((len(image), 0), np.float32)
    if case.label is not None:
        label = np.asanyarray(read_nifti(case.label).image.dataobj).reshape(-1)
        if label.size != image[0].size:
            raise DataError("label and image differ in shape", file=case.name, expected=image[0].size, came=label.size)
        known = True if datalist.ignore_label is None else np.rint(label) != datalist.ignore_label
        inside = np.flatnonzero((label > 0.5) & known)
        if len(inside):
            rng = np.random.default_rng(zlib.crc32(case.name.encode()))
            foreground = image.reshape(len(image), -1)[:, rng.choice(inside, SAMPLES)]
    return CaseFacts(spacing, np.array(image.shape[1:])[axes], foreground)


def case_facts(
    datalist: DataList, cases: Sequence[Case], *, orientation: str = "RAS", workers: int | None = None
) -> list[CaseFacts]:
    """Read every case once, several at a time.

    Args:
        datalist: names channels and the ignore label.
        cases: which cases.
        orientation: of the axes of ``spacing`` and ``shape``.
        workers: threads, each with one case in memory; None: one a core, at most 8.

    Raises:
        DataError: a file is broken, or channels or label don't fit.
    """
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(lambda case: _facts(case, datalist, orientation), cases))


def pooled_statistics(facts: Sequence[CaseFacts], folder: Path) -> tuple[IntensityStatistics, ...]:
    """The foreground statistics of each channel over all cases.

    Args:
        facts: of the training cases.
        folder: named in messages.

    Raises:
        DataError: no case has foreground.
    """
    values = np.concatenate([f.foreground for f in facts], axis=1)
    if not values.size:
        raise DataError(
            "has no foreground in any training case", file=folder, expected="labels with values above 0",
            came="background only", remedy="check the label files",
        )
    return tuple(IntensityStatistics.of(channel) for channel in values)
