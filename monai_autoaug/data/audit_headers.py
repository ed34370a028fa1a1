# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of one file's name and header: one function a check; `audit.CHECKS` holds a row for each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_autoaug.data.audit_views import Fault, Volume
from monai_autoaug.data.geometry import SHEAR, right_angled
from monai_autoaug.data.names import name_fault
from monai_autoaug.data.nifti import corner_shift
from monai_autoaug.data.volume_transforms import TOLERANCE

__all__ = [
    "affine_usable",
    "codes",
    "dimensions",
    "file_name",
    "forms_agree",
    "further_bytes",
    "header_agrees",
    "header_spacing",
    "implausible_spacing",
    "link",
    "one_slice",
    "readable",
    "scaling",
    "shear",
    "singleton",
    "small_shear",
    "units",
    "voxel_type",
]

_EDGES = 1e-4, 1e3  # mm; from microscopy to far beyond any body
_UNITS = {1: "metres", 3: "micrometres"}
REPAIR = "monai-autoaug check DATA --repair-to FOLDER"


def readable(volume: Volume) -> Iterator[Fault]:
    """The file is there, whole and NIfTI."""
    error = volume.error
    if error is not None:
        yield Fault(error.message, error.expected or "", error.came or "", error.remedy)


def link(volume: Volume) -> Iterator[Fault]:
    """The file lies in the data set's folder, not behind a link that leaves it."""
    if volume.leaves:
        yield Fault("is a link that leaves the data set's folder", "a file inside", "a link", "copy the file itself")


def file_name(volume: Volume) -> Iterator[Fault]:
    """The file's name is one that can be shown, and that other files can be named after."""
    if fault := name_fault(volume.path.name):
        yield Fault("has a name that can't be used", "letters, digits, - and _", f"a name that {fault}", "rename it")


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
    wanted = f"{volume.channels}"
    if volume.role == "image" and volume.channels == len(volume.datalist.channels):
        wanted += f" ({', '.join(volume.datalist.channels)})"
    if len(shape) < 3 or 0 in shape:
        yield Fault("is not a volume", "three axes", f"shape {shape}", "stack the slices to volumes")
    elif volumes != volume.channels and volumes != 1:
        remedy = "declare each volume as a channel, or store one volume a file"
        yield Fault("holds several volumes", wanted, f"{volumes} (shape {shape})", remedy)
    elif volumes != volume.channels:
        yield Fault("lacks channels", wanted, f"1 (shape {shape})", "add the missing channels")


def one_slice(volume: Volume) -> Iterator[Fault]:
    """No axis of a single voxel."""
    shape = volume.shape[:3]
    if len(shape) == 3 and 1 in shape:
        yield Fault("is a single slice", "at least 2 voxels on each axis", f"shape {shape}", "stack slices to volumes")


def singleton(volume: Volume) -> Iterator[Fault]:
    """No superfluous axes."""
    if len(volume.shape) > 3 and math.prod(volume.shape[3:]) == 1:
        yield Fault("has superfluous axes, which are dropped", "three axes", f"shape {volume.shape}")


def _sizes(volume: Volume) -> list[float]:
    """The header's own voxel sizes."""
    return [float(s) for s in volume.header["pixdim"][1:4]]


def _bad_sizes(volume: Volume) -> list[int]:
    """Which of them are no positive numbers."""
    return [i for i, s in enumerate(_sizes(volume), 1) if not (math.isfinite(s) and s > 0)]


def header_spacing(volume: Volume) -> Iterator[Fault]:
    """The header's voxel sizes are positive numbers."""
    bad = _bad_sizes(volume)
    if bad:
        want = ", ".join(f"pixdim[{i}] > 0" for i in bad)
        came = ", ".join(f"pixdim[{i}] = {_sizes(volume)[i - 1]:g}" for i in bad)
        yield Fault("has a voxel size that is no positive number", want, came, "correct pixdim in its header")


def affine_usable(volume: Volume) -> Iterator[Fault]:
    """The affine is finite and can be inverted."""
    if not _regular(volume):
        came = np.array2string(volume.affine[:3], precision=3).replace("\n", "")
        yield Fault("has an affine that can't be inverted", "a finite, regular matrix", came, "correct sform or qform")


def _regular(volume: Volume) -> bool:
    """Whether the affine can be used, whatever the size of the voxels is."""
    matrix = volume.affine[:3, :3]
    if not np.isfinite(volume.affine).all() or not np.isfinite(volume.spacing).all() or not volume.spacing.all():
        return False
    return bool(abs(np.linalg.det(matrix / volume.spacing)) > 1e-3)


def implausible_spacing(volume: Volume) -> Iterator[Fault]:
    """A voxel is as large as some scanner's or microscope's."""
    low, high = _EDGES
    if _regular(volume) and not low <= float(volume.spacing.min()) <= float(volume.spacing.max()) <= high:
        came = " x ".join(f"{s:.4g}" for s in volume.spacing) + " mm"
        yield Fault("has an impossible voxel size", f"{low:g} to {high:g} mm", came, "correct sform, qform or pixdim")


def units(volume: Volume) -> Iterator[Fault]:
    """Lengths are in mm, or don't say what they are in."""
    unit = int(volume.header["xyzt_units"]) & 7
    if unit in _UNITS:
        message = f"gives its lengths in {_UNITS[unit]}; readers disagree on such files"
        yield Fault(message, "mm", f"unit {unit}; the numbers are taken as mm, as nibabel does", "convert them to mm")


def _shear(volume: Volume) -> tuple[float, float]:
    """The largest cosine between two axes, and by how many mm right angles would move a voxel at most."""
    if len(volume.shape) < 3 or not _regular(volume):
        return 0.0, 0.0
    square, cosine = right_angled(volume.affine, volume.shape)
    return cosine, corner_shift(volume.affine, square, volume.shape)


def shear(volume: Volume) -> Iterator[Fault]:
    """Axes meet at right angles, but for a small shear."""
    cosine, shift = _shear(volume)
    if cosine > SHEAR:
        came = f"a shear of {cosine:.3g}, up to {shift:.3g} mm"
        remedy = f"resample its case: {REPAIR} --resample"
        yield Fault("has axes that don't meet at right angles", "a shear of at most 0.01", came, remedy)


def small_shear(volume: Volume) -> Iterator[Fault]:
    """A small shear is told."""
    cosine, shift = _shear(volume)
    if 1e-4 < cosine <= SHEAR:
        came = f"a shear of {cosine:.3g}; setting them at right angles moves voxels by up to {shift:.3g} mm"
        remedy = f"nothing, or set the axes at right angles for readers that refuse such files: {REPAIR}"
        yield Fault("has a slight shear, which resampling takes into account", "right angles", came, remedy)


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
    header = volume.header
    if int(header["qform_code"]) and int(header["sform_code"]) and len(volume.shape) >= 3:
        if _bad_sizes(volume) or not _regular(volume):
            return  # told by header_spacing and affine_usable
        try:
            shift = corner_shift(header.get_qform(), header.get_sform(), volume.shape)
        except (ValueError, np.linalg.LinAlgError, HeaderDataError):
            shift = math.inf
        if not shift <= 2 * TOLERANCE * float(volume.spacing.min()):
            came = f"{shift:.3g} mm apart; sform is used"
            yield Fault("has a qform that contradicts its sform", "equal", came, "correct the wrong one")


def header_agrees(volume: Volume) -> Iterator[Fault]:
    """The header's voxel sizes are those of the affine in use."""
    if _bad_sizes(volume) or not _regular(volume):
        return  # told by header_spacing and affine_usable
    sizes = np.array(_sizes(volume))
    if np.abs(sizes / volume.spacing - 1).max() > 0.01:
        used = " x ".join(f"{s:.4g}" for s in volume.spacing)
        came = " x ".join(f"{s:.4g}" for s in sizes)
        remedy = "correct pixdim, or sform if it is the wrong one"
        yield Fault("has voxel sizes that contradict its affine", f"{used} mm (affine, used)", f"{came} mm", remedy)


def scaling(volume: Volume) -> Iterator[Fault]:
    """Slope and intercept can be used."""
    slope, intercept = float(volume.header["scl_slope"]), float(volume.header["scl_inter"])
    # a slope of 0 is the standard's way to say that there is none, and NaN is nibabel's
    if math.isinf(slope) or slope == 0 or (math.isfinite(slope) and not math.isfinite(intercept)):
        came = f"slope {slope:g}, intercept {intercept:g}"
        yield Fault("has an intensity scaling that is ignored", "a finite slope other than 0", came)


def further_bytes(volume: Volume) -> Iterator[Fault]:
    """The file ends with the last voxel."""
    if volume.nifti is not None and volume.nifti.further:
        came = f"{volume.nifti.further:,} bytes more"
        remedy = "see that the sizes in its header are right"
        yield Fault("is longer than its header says", f"the end after shape {volume.shape}", came, remedy)
