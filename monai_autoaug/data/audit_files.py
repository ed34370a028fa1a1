# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of one file: one function a check; `monai_autoaug.data.audit.CHECKS` holds a row for each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_autoaug.data.audit_views import Fault, Volume
from monai_autoaug.data.nifti import corner_shift
from monai_autoaug.data.volume_transforms import TOLERANCE

__all__ = [
    "affine_usable",
    "codes",
    "constant",
    "dimensions",
    "empty_mask",
    "forms_agree",
    "fractional",
    "header_agrees",
    "header_spacing",
    "infinite",
    "link",
    "nan",
    "negative",
    "one_slice",
    "overflow",
    "readable",
    "rounded",
    "scaling",
    "shear",
    "singleton",
    "small_shear",
    "undeclared",
    "voxel_type",
    "wide_label",
]

_LARGEST = 1e18  # its square still fits into float32, so mean and variance do
_SHEAR = 0.01


def readable(volume: Volume) -> Iterator[Fault]:
    """The file is there, whole and NIfTI."""
    error = volume.error
    if error is not None:
        # without the file's name in front and what the fields say behind
        message = str(error).removeprefix(f"{error.file}: ").split("; expected ")[0].split(". To do: ")[0]
        yield Fault(message, error.expected or "", error.came or "", error.remedy)


def link(volume: Volume) -> Iterator[Fault]:
    """The file lies in the data set's folder, not behind a link that leaves it."""
    folder = volume.datalist.folder
    inside = Path(os.path.abspath(volume.path)).is_relative_to(os.path.abspath(folder))
    if inside and not volume.path.resolve().is_relative_to(folder.resolve()):
        yield Fault("is a link that leaves the data set's folder", "a file inside", "a link", "copy the file itself")


def voxel_type(volume: Volume) -> Iterator[Fault]:
    """Voxels are real numbers."""
    dtype = volume.header.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "RGB or other structured voxels"
        yield Fault("holds no real numbers", "one number a voxel", kind, "store each part as a channel of its own")


def dimensions(volume: Volume) -> Iterator[Fault]:
    """Three axes, and as many volumes as there are channels."""
    shape = volume.shape
    volumes = math.prod(shape[3:])
    if len(shape) < 3 or 0 in shape:
        yield Fault("is not a volume", "three axes", f"shape {shape}", "stack the slices to volumes")
    elif volumes != volume.channels and volumes != 1:
        remedy = "declare each volume as a channel, or store one volume a file"
        yield Fault("holds several volumes", f"{volume.channels}", f"{volumes} (shape {shape})", remedy)
    elif volumes != volume.channels:
        names = ", ".join(volume.datalist.channels)
        yield Fault("lacks channels", f"{volume.channels} ({names})", f"1 (shape {shape})", "add the missing channels")


def one_slice(volume: Volume) -> Iterator[Fault]:
    """No axis of a single voxel."""
    shape = volume.shape[:3]
    if len(shape) == 3 and 1 in shape:
        yield Fault("is a single slice", "at least 2 voxels on each axis", f"shape {shape}", "stack slices to volumes")


def singleton(volume: Volume) -> Iterator[Fault]:
    """No superfluous axes."""
    if len(volume.shape) > 3 and math.prod(volume.shape[3:]) == 1:
        yield Fault("has superfluous axes, which are dropped", "three axes", f"shape {volume.shape}")


def header_spacing(volume: Volume) -> Iterator[Fault]:
    """The header's voxel sizes are positive numbers."""
    sizes = [float(s) for s in volume.header["pixdim"][1:4]]
    if not all(math.isfinite(s) and s > 0 for s in sizes):
        yield Fault("has a voxel size that is no positive number", "pixdim[1..3] > 0", f"{sizes} mm", "correct pixdim")


def affine_usable(volume: Volume) -> Iterator[Fault]:
    """The affine is finite and can be inverted."""
    affine = volume.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        came = np.array2string(affine[:3], precision=3).replace("\n", "")
        yield Fault("has an affine that can't be inverted", "a finite, regular matrix", came, "correct sform or qform")


def _shear(volume: Volume) -> tuple[float, float]:
    """The largest cosine between two axes, and by how many mm a grid of right angles would be off at most."""
    matrix = volume.affine[:3, :3]
    if not np.isfinite(matrix).all() or not volume.spacing.all() or len(volume.shape) < 3:
        return 0.0, 0.0
    axes = matrix / volume.spacing
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    left, _, right = np.linalg.svd(axes)
    square, affine = np.eye(4), np.eye(4)
    square[:3, :3], affine[:3, :3] = left @ right * volume.spacing, matrix
    return cosine, corner_shift(affine, square, volume.shape)


def shear(volume: Volume) -> Iterator[Fault]:
    """Axes meet at right angles, but for a small shear."""
    cosine, shift = _shear(volume)
    if cosine > _SHEAR + 1e-4:
        came = f"a shear of {cosine:.3g}, up to {shift:.3g} mm"
        yield Fault("has axes that don't meet at right angles", f"shear <= {_SHEAR}", came, "resample to right angles")


def small_shear(volume: Volume) -> Iterator[Fault]:
    """A small shear is told."""
    cosine, shift = _shear(volume)
    if 1e-4 < cosine <= _SHEAR + 1e-4:
        came = f"a shear of {cosine:.3g}, up to {shift:.3g} mm"
        yield Fault("has a slight shear, which resampling takes into account", "right angles", came)


def codes(volume: Volume) -> Iterator[Fault]:
    """The file says how it is oriented."""
    if int(volume.header["qform_code"]) == 0 and int(volume.header["sform_code"]) == 0:
        yield Fault(
            "does not say how it is oriented; readers disagree on such files",
            "a qform or sform code > 0",
            "both 0; orientation is taken as nibabel does (x to the left, origin at the centre)",
            "set qform or sform",
        )


def forms_agree(volume: Volume) -> Iterator[Fault]:
    """Where both qform and sform are given, they say the same."""
    header = volume.content.image.header
    if int(header["qform_code"]) and int(header["sform_code"]) and len(volume.shape) >= 3:
        try:
            shift = corner_shift(header.get_qform(), header.get_sform(), volume.shape)
        except (ValueError, np.linalg.LinAlgError, HeaderDataError):
            shift = math.inf
        if not shift <= 2 * TOLERANCE * float(volume.spacing.min()):
            came = f"{shift:.3g} mm apart; sform is used"
            yield Fault("has a qform that contradicts its sform", "equal", came, "correct the wrong one")


def header_agrees(volume: Volume) -> Iterator[Fault]:
    """The header's voxel sizes are those of the affine in use."""
    sizes = np.array(volume.header["pixdim"][1:4], float)
    if not np.isfinite(sizes).all() or not (sizes > 0).all() or not np.isfinite(volume.spacing).all():
        return  # told by header_spacing and affine_usable
    if np.abs(sizes / np.where(volume.spacing > 0, volume.spacing, 1) - 1).max() > 0.01:
        used = " x ".join(f"{s:.4g}" for s in volume.spacing)
        came = " x ".join(f"{s:.4g}" for s in sizes)
        yield Fault("has voxel sizes that contradict its affine", f"{used} mm (affine, used)", f"{came} mm (pixdim)")


def scaling(volume: Volume) -> Iterator[Fault]:
    """Slope and intercept can be used."""
    slope, intercept = float(volume.header["scl_slope"]), float(volume.header["scl_inter"])
    if math.isinf(slope) or math.isinf(intercept) or (slope == 0 and intercept != 0):
        yield Fault("has an intensity scaling that is ignored", "a finite slope", f"slope {slope}, offset {intercept}")


def nan(volume: Volume) -> Iterator[Fault]:
    """No voxel is NaN."""
    if volume.voxels is not None and volume.voxels.dtype.kind == "f":
        count = int(np.isnan(volume.voxels).sum())
        if count:
            yield Fault("holds NaN", "finite voxels", f"{count:,} NaN", "fill them with a value you choose")


def infinite(volume: Volume) -> Iterator[Fault]:
    """No voxel is infinite."""
    if volume.voxels is not None and volume.voxels.dtype.kind == "f":
        count = int(np.isinf(volume.voxels).sum())
        if count:
            yield Fault("holds infinite values", "finite voxels", f"{count:,} Inf", "fill them with a value you choose")


def overflow(volume: Volume) -> Iterator[Fault]:
    """Intensities leave room for mean and variance in single precision."""
    if volume.role == "image" and volume.voxels is not None:
        finite = volume.voxels[np.isfinite(volume.voxels)] if volume.voxels.dtype.kind == "f" else volume.voxels
        low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
        if max(-low, high) > _LARGEST:
            came = f"{low:.3g} to {high:.3g}"
            yield Fault("holds values beyond any scanner's", f"up to {_LARGEST:g}", came, "correct the file")


def constant(volume: Volume) -> Iterator[Fault]:
    """An image varies."""
    if volume.role == "image" and volume.voxels is not None:
        for i, channel in enumerate(np.moveaxis(volume.voxels.reshape(*volume.shape[:3], -1), -1, 0)):
            if channel.min() == channel.max():
                which = f"channel {i} " if volume.channels > 1 else ""
                yield Fault("holds one value only", "varying intensities", f"{which}{float(channel.flat[0]):g}")


def fractional(volume: Volume) -> Iterator[Fault]:
    """Labels are whole numbers."""
    counts = volume.label_counts if volume.role == "label" else None
    if counts is not None and counts.num_fractional:
        values = ", ".join(f"{value:.3g}" for value in counts.fractional)
        came = f"{counts.num_fractional:,} voxels with values such as [{values}]"
        remedy = "resample labels by nearest neighbour"
        yield Fault("holds values that are no labels", "whole numbers 0, 1, 2 ...", came, remedy)


def rounded(volume: Volume) -> Iterator[Fault]:
    """Labels that are whole but for rounding are told."""
    counts = volume.label_counts if volume.role == "label" else None
    if counts is not None and 0 < counts.rounding <= 1e-3:
        yield Fault("holds labels that are rounded", "0, 1, 2 ...", f"off by up to {counts.rounding:.2g}")


def negative(volume: Volume) -> Iterator[Fault]:
    """Labels are not negative."""
    counts = volume.label_counts if volume.role == "label" else None
    wrong = {v: n for v, n in counts.whole.items() if v < 0} if counts is not None else {}
    if wrong:
        yield Fault("holds negative labels", "0, 1, 2 ...", _voxels(wrong), "correct or renumber them")


def undeclared(volume: Volume) -> Iterator[Fault]:
    """Labels are declared."""
    counts = volume.label_counts if volume.role == "label" else None
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
    counts = volume.label_counts if volume.role == "label" else None
    if counts is not None and not counts.num_fractional:
        if not set(counts.whole) - {0, volume.datalist.ignore_label}:
            yield Fault("holds no foreground", "a label above 0", "background only", "check that this is meant")
