# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the checks have to know of a file's voxels, found in one pass over them, a small part at a time."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data.nifti import Nifti

__all__ = ["Intensities", "LabelCounts", "intensities", "label_counts", "label_map", "numeric"]

_LARGEST_LABEL = 1e9
_MOST_LABELS = 1 << 16  # values that are told apart; no data set declares more
_CHUNK = 1 << 18  # voxels that are converted at once: what stays in a core's cache


@dataclass(frozen=True)
class Intensities:
    """The intensities of an image file.

    Args:
        voxels: how many there are.
        nan: how many are NaN.
        infinite: how many are infinite.
        low: the lowest finite value; 0 where there is none.
        high: the highest.
        constant: (channel, value) of the channels that hold one value only.
        digest: of the intensities; equal for equal images, however they are stored; "" where all channels are
            constant: blank images are equal without one being a copy of the other.
    """

    voxels: int
    nan: int
    infinite: int
    low: float
    high: float
    constant: tuple[tuple[int, float], ...]
    digest: str


@dataclass(frozen=True)
class LabelCounts:
    """The values of a label file.

    Args:
        voxels: how many there are.
        nan: how many are NaN.
        infinite: how many are infinite.
        whole: value -> voxels, for values within 1e-3 of a whole number.
        fractional: up to five other values, or values beyond 1e9.
        num_fractional: how many voxels hold such a value.
        rounding: the largest distance of ``whole`` values to whole numbers.
    """

    voxels: int
    nan: int
    infinite: int
    whole: dict[int, int]
    fractional: list[float]
    num_fractional: int
    rounding: float


def numeric(nifti: Nifti) -> bool:
    """Whether voxels are real numbers, and there are any."""
    return nifti.header.get_data_dtype().kind in "iuf" and math.prod(nifti.image.shape) > 0


def _parts(nifti: Nifti) -> Iterator[tuple[int, NDArray[Any]]]:
    """(channel, scaled voxels) of all voxels in the order of the file."""
    stored, volume = nifti.stored, math.prod(nifti.image.shape[:3])
    for first in range(0, stored.size, volume):
        for start in range(first, first + volume, _CHUNK):
            yield first // volume, nifti.scaled(stored[start : min(start + _CHUNK, first + volume)])


@np.errstate(all="ignore")  # numbers too large for a type are found, not warned of
def intensities(nifti: Nifti) -> Intensities:
    """Look at an image's voxels once.

    Args:
        nifti: holds real numbers, see `numeric`.
    """
    content = hashlib.blake2b(repr(nifti.image.shape).encode(), digest_size=16)
    nan = infinite = 0
    ranges: dict[int, tuple[float, float]] = {}
    broken: set[int] = set()
    for channel, part in _parts(nifti):
        # numbers, not bytes: the same image may be stored as int16 and as float32, and 0 as -0
        content.update(np.add(part, 0, dtype=np.float32).data)
        low, high = float(part.min()), float(part.max())
        if not math.isfinite(low) or not math.isfinite(high):
            broken.add(channel)
            good = np.isfinite(part)
            nan += int(np.isnan(part).sum())
            infinite += int(np.isinf(part).sum())
            low, high = float(part.min(where=good, initial=np.inf)), float(part.max(where=good, initial=-np.inf))
        before = ranges.get(channel, (math.inf, -math.inf))
        ranges[channel] = min(low, before[0]), max(high, before[1])
    finite = [r for r in ranges.values() if r[0] <= r[1]]
    constant = tuple((c, low) for c, (low, high) in ranges.items() if low == high and c not in broken)
    return Intensities(
        nifti.stored.size, nan, infinite,
        min((low for low, _ in finite), default=0.0), max((high for _, high in finite), default=0.0),
        constant, "" if len(constant) == len(ranges) else content.hexdigest(),
    )  # fmt: skip


@np.errstate(all="ignore")
def label_counts(nifti: Nifti) -> LabelCounts:
    """Look at a label's voxels once.

    Args:
        nifti: holds real numbers, see `numeric`.
    """
    whole: Counter[int] = Counter()
    wrong: set[float] = set()
    nan = infinite = num_wrong = 0
    rounding = 0.0
    for _, part in _parts(nifti):
        values = part
        if part.dtype.kind == "f":
            finite = np.isfinite(part)
            if not finite.all():
                nan += int(np.isnan(part).sum())
                infinite += int(np.isinf(part).sum())
                part = part[finite]
            rounded = np.rint(part)
            distance = np.abs(part - rounded)
            off = (distance > 1e-3) | (np.abs(part) > _LARGEST_LABEL)
            if off.any():
                num_wrong += int(off.sum())
                wrong.update(float(v) for v in np.unique(part[off])[:5])
                rounded, distance = rounded[~off], distance[~off]
            rounding = max(rounding, float(distance.max(initial=0)))
            values = rounded.astype(np.int64)
        if len(whole) < _MOST_LABELS:
            whole.update(_count(values))
    return LabelCounts(nifti.stored.size, nan, infinite, dict(whole), sorted(wrong)[:5], num_wrong, rounding)


def _count(values: NDArray[Any]) -> dict[int, int]:
    """Value -> how often, without sorting where the values span little."""
    if not values.size:
        return {}
    low, high = int(values.min()), int(values.max())
    if high - low < _CHUNK:
        # unsigned numbers of 64 bits don't fit into signed ones, and small signed ones don't hold the difference
        from_low = values - values.dtype.type(low) if values.dtype.kind == "u" else values.astype(np.int64) - low
        counts = np.bincount(from_low.astype(np.int64))
        return {int(i) + low: int(counts[i]) for i in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {int(v): int(n) for v, n in zip(found, counts, strict=True)}


@np.errstate(all="ignore")
def label_map(nifti: Nifti) -> NDArray[np.int32]:
    """The first volume of a label file as whole numbers, in the file's own order of voxels.

    Args:
        nifti: holds real numbers that are finite and whole up to rounding.
    """
    shape = nifti.image.shape[:3]
    found = np.empty(math.prod(shape), np.int32)
    start = 0
    for channel, part in _parts(nifti):
        if channel == 0:
            found[start : start + part.size] = np.rint(part) if part.dtype.kind == "f" else part
            start += part.size
    return found.reshape(shape, order="F")
