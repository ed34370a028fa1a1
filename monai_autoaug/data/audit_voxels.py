# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of one file's voxels: one function a check; `audit.CHECKS` holds a row for each."""

from __future__ import annotations

from collections.abc import Iterator

from monai_autoaug.data.audit_headers import REPAIR
from monai_autoaug.data.audit_views import Fault, Volume

__all__ = [
    "LARGEST",
    "constant",
    "empty_mask",
    "fractional",
    "infinite",
    "nan",
    "negative",
    "overflow",
    "rounded",
    "undeclared",
    "wide_label",
]

LARGEST = 1e18  # its square still fits into float32, so mean and variance do


def nan(volume: Volume) -> Iterator[Fault]:
    """No voxel is NaN."""
    yield from _not_finite(volume, "NaN", "NaN", "nan")


def infinite(volume: Volume) -> Iterator[Fault]:
    """No voxel is infinite."""
    yield from _not_finite(volume, "infinite values", "infinite", "infinite")


def _not_finite(volume: Volume, what: str, kind: str, field: str) -> Iterator[Fault]:
    """No voxel is of a kind."""
    facts = volume.intensities or volume.label_counts
    count = 0 if facts is None else int(getattr(facts, field))
    if facts is None or not count:
        return
    remedy = "correct the label file: which class these voxels have can't be told"
    if volume.role == "image":
        remedy = f"correct the file, or fill them with a value you choose: {REPAIR} --fill VALUE"
    yield Fault(f"holds {what}", "finite voxels", f"{count:,} of {facts.voxels:,} voxels are {kind}", remedy)


def overflow(volume: Volume) -> Iterator[Fault]:
    """Intensities leave room for mean and variance in single precision."""
    facts = volume.intensities
    if facts is not None and max(-facts.low, facts.high) > LARGEST:
        came = f"{facts.low:.3g} to {facts.high:.3g}"
        yield Fault("holds values beyond any scanner's", f"up to {LARGEST:g}", came, "correct the file")


def constant(volume: Volume) -> Iterator[Fault]:
    """An image varies."""
    for channel, value in volume.intensities.constant if volume.intensities is not None else ():
        which = f"channel {channel} is " if volume.channels > 1 else ""
        came = f"{which}{value:g}, a standard deviation of 0"
        yield Fault("holds one value only", "varying intensities", came, "check that this is no failed export")


def fractional(volume: Volume) -> Iterator[Fault]:
    """Labels are whole numbers."""
    counts = volume.label_counts
    if counts is not None and counts.num_fractional:
        values = ", ".join(f"{value:.6g}" for value in counts.fractional)  # as written, not as float32 holds them
        came = f"{counts.num_fractional:,} voxels with values such as [{values}]"
        remedy = "resample labels by nearest neighbour"
        yield Fault("holds values that are no labels", "whole numbers 0, 1, 2 ...", came, remedy)


def rounded(volume: Volume) -> Iterator[Fault]:
    """Labels that are whole but for rounding are told."""
    counts = volume.label_counts
    if counts is not None and 0 < counts.rounding <= 1e-3:
        yield Fault("holds labels that are rounded", "0, 1, 2 ...", f"off by up to {counts.rounding:.2g}")


def negative(volume: Volume) -> Iterator[Fault]:
    """Labels are not negative."""
    counts = volume.label_counts
    wrong = {v: n for v, n in counts.whole.items() if v < 0} if counts is not None else {}
    if wrong:
        yield Fault("holds negative labels", "0, 1, 2 ...", _voxels(wrong), "correct or renumber them")


def undeclared(volume: Volume) -> Iterator[Fault]:
    """Labels are declared."""
    counts = volume.label_counts
    declared = {*volume.datalist.label_values, volume.datalist.ignore_label}
    wrong = {v: n for v, n in counts.whole.items() if v >= 0 and v not in declared} if counts is not None else {}
    if wrong:
        expected = ", ".join(str(v) for v in sorted(v for v in declared if v is not None))
        yield Fault("holds undeclared labels", expected, _voxels(wrong), "declare them or correct the file")


def _voxels(counts: dict[int, int]) -> str:
    """Values with their number of voxels, the first eight."""
    shown = ", ".join(f"{v} ({n:,} voxels)" for v, n in sorted(counts.items())[:8])
    return shown + (" ..." if len(counts) > 8 else "")


def wide_label(volume: Volume) -> Iterator[Fault]:
    """A 64-bit label is told."""
    dtype = volume.header.get_data_dtype()
    if volume.role == "label" and dtype.kind in "iu" and dtype.itemsize == 8:
        yield Fault("stores labels in 64 bits, which are converted", "8 or 16 bits", str(dtype))


def empty_mask(volume: Volume) -> Iterator[Fault]:
    """A label has foreground."""
    counts = volume.label_counts
    if counts is not None and not counts.num_fractional:
        if not set(counts.whole) - {0, volume.datalist.ignore_label}:
            message = "holds no foreground: no patch is centred on a class in it"
            yield Fault(message, "a label above 0", "background only", "check that this is meant")
