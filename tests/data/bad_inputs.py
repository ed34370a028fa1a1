# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Thirty kinds of bad input and what the audit must say of each: one row an outcome, written by the tests.

The numbers are those of the table of bad inputs that this package's contract is; a letter tells variants apart.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from audit_helpers import (
    coded,
    contradiction,
    edit_file,
    float_bytes,
    header,
    moved,
    on,
    set_voxel,
    sheared,
    shift,
    structured,
    volumes,
    voxels,
)

from monai_autoaug.data import Case

PIXDIM_X, SLOPE, INTERCEPT = 80, 112, 116
Spoil = Callable[[Path], Any]


@dataclass(frozen=True)
class Row:
    """One bad input.

    Args:
        number: the row of the contract, with a letter where it has several forms.
        which: the file that is spoilt and that the finding must name: image, label, or both.
        severity: of the finding; "" where there must be none.
        check: which check finds it.
        spoil: does it to a file.
        message: part of what the finding says.
        expected: part of what was expected.
        came: part of what came.
        remedy: part of what to do.
        uncompressed: the file is a plain .nii.
        besides: checks that may speak too.
    """

    number: str
    which: str
    severity: str
    check: str
    spoil: Spoil
    message: str = ""
    expected: str = ""
    came: str = ""
    remedy: str = ""
    uncompressed: bool = False
    besides: tuple[str, ...] = ()

    def apply(self, case: Case) -> tuple[Case, list[Path]]:
        """Spoil the files of a case; returns the case and the files."""
        if self.uncompressed:
            case = replace(case, images=(_uncompressed(case.images[0]),))
        paths = {"image": [case.images[0]], "label": [case.label], "both": [case.images[0], case.label]}[self.which]
        for path in paths:
            self.spoil(path)
        return case, paths


def _uncompressed(path: Path) -> Path:
    """The same file as a plain .nii."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return plain


def cut(share: float) -> Spoil:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def short(count: int) -> Spoil:
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def flip(path: Path) -> None:
    """One byte in the middle of the compressed stream."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def stored(dtype: Any) -> Spoil:
    """The same values in another type of number."""

    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        return nib.Nifti1Image(np.asanyarray(image.dataobj).astype(dtype), image.affine, dtype=dtype)

    return on(edit)


def big_endian(path: Path) -> None:
    edit_file(path, lambda i: nib.Nifti1Image(np.asanyarray(i.dataobj), i.affine, i.header.as_byteswapped(">")))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere.nii.gz")


def leaving(path: Path) -> None:
    """A link to a file that lies elsewhere."""
    outside = path.parents[2] / "outside" / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


AGAIN = "copy or export the file again"
LABELS = "declare them or correct the file"
ONTO = "resample it onto the image"
REPAIR = "--repair-to"

ROWS: tuple[Row, ...] = (
    Row("1", "image", "refuse", "readable", cut(0.5), "truncated or damaged", "bytes of header and voxels",
        "readable bytes in a file of", AGAIN),
    Row("2", "image", "refuse", "readable", short(5000), "truncated or damaged", "bytes of header and voxels",
        "readable bytes in a file of", AGAIN, uncompressed=True),
    Row("3", "image", "refuse", "readable", flip, "truncated or damaged", "bytes", "readable bytes in a file of",
        AGAIN),
    Row("4-text", "image", "refuse", "readable", lambda p: p.write_text("this is a text, renamed " * 40),
        "is not a NIfTI file", "a gzip stream", "b'this is ", "replace the file"),
    Row("4-plain-text", "image", "refuse", "readable", lambda p: p.write_text("this is a text, renamed " * 40),
        "is not a NIfTI file", "NIfTI-1 or NIfTI-2 header", "b'this is ", "replace the file", uncompressed=True),
    Row("4-empty", "label", "refuse", "readable", lambda p: p.write_bytes(b""), "is not a NIfTI file", "header",
        "an empty file", "replace the file"),
    Row("5", "image", "refuse", "nan", on(set_voxel((3, 3, 3), np.nan)), "holds NaN", "finite voxels",
        "1 of ", "--fill"),
    Row("6", "image", "refuse", "infinite", on(set_voxel((3, 3, 3), -np.inf)), "holds infinite values",
        "finite voxels", "1 of ", "--fill"),
    Row("7", "label", "refuse", "nan", on(set_voxel((3, 3, 3), np.nan)), "holds NaN", "finite voxels", "1 of ",
        "correct the label"),
    Row("8", "label", "refuse", "origin_mismatch", on(shift(5.0)), "label differs from the image in origin", "[",
        "5 mm apart", ONTO),
    Row("9", "label", "refuse", "direction_mismatch", on(moved(np.diag([-1.0, 1, 1, 1]))),
        "label differs from the image in direction", "the same axes", "180 degrees", "correct its header"),
    Row("10", "label", "refuse", "shape_mismatch", on(voxels(lambda v: v[:, :, 1:])),
        "label differs from the image in shape", "(", "(", ONTO, besides=("origin_mismatch",)),
    Row("11", "label", "refuse", "spacing_mismatch", on(moved(np.diag([2.0, 2, 2, 1]))),
        "label differs from the image in spacing", "mm", "mm at the far end", ONTO),
    Row("12-close", "label", "note", "rounded_label", on(set_voxel((3, 3, 3), 1.0001)), "rounded", "0, 1, 2",
        "off by up to 0.0001"),
    Row("12-far", "label", "refuse", "fractional_label", on(set_voxel((3, 3, 3), 1.01)), "values that are no labels",
        "whole numbers", "[1.01]", "nearest neighbour"),
    Row("13", "label", "refuse", "fractional_label", on(set_voxel((3, 3, 3), 0.5)), "values that are no labels",
        "whole numbers", "1 voxels with values such as [0.5]", "nearest neighbour"),
    Row("14-undeclared", "label", "refuse", "undeclared_label", on(set_voxel((3, 3, 3), 7, np.uint8)),
        "undeclared labels", "0, 1, 2, 3", "7 (1 voxels)", LABELS),
    Row("14-negative", "label", "refuse", "negative_label", on(set_voxel((3, 3, 3), -1, np.int16)),
        "negative labels", "0, 1, 2", "-1 (1 voxels)", "renumber"),
    Row("15", "label", "warn", "empty_mask", on(voxels(np.zeros_like)), "no patch is centred on a class in it",
        "a label above 0", "background only", "check that this is meant"),
    Row("16", "image", "refuse", "voxel_size", header(PIXDIM_X, float_bytes(0)), "voxel size", "pixdim[1] > 0",
        "pixdim[1] = 0", "correct pixdim"),
    Row("17", "image", "refuse", "voxel_size", header(PIXDIM_X, float_bytes(np.nan)), "voxel size", "pixdim[1] > 0",
        "pixdim[1] = nan", "correct pixdim"),
    Row("18", "both", "refuse", "shear", on(sheared(0.35)), "don't meet at right angles", "shear of at most 0.01",
        "a shear of 0.35, up to ", REPAIR),
    Row("19", "both", "note", "slight_shear", on(sheared(0.01)), "slight shear", "right angles",
        "a shear of 0.01; setting them at right angles moves voxels by up to ", REPAIR),
    Row("20", "image", "warn", "qform_contradicts_sform", on(contradiction), "qform that contradicts its sform",
        "equal", "mm apart; sform is used", "correct the wrong one"),
    Row("21", "both", "warn", "orientation_unknown", on(coded(0, 0)), "readers disagree", "code > 0", "both 0",
        "set qform or sform"),
    Row("22-one", "image", "note", "superfluous_axes", on(volumes(1)), "superfluous axes, which are dropped",
        "three axes", ", 1)"),
    Row("22-five", "image", "refuse", "dimensions", on(volumes(5)), "holds several volumes", "1 (MRI)", "5 (shape",
        "declare each volume as a channel"),
    Row("23", "image", "refuse", "dimensions", on(voxels(lambda v: v[:, :, 0])), "is not a volume", "three axes",
        "shape (", "stack the slices"),
    Row("24-rgb", "image", "refuse", "voxel_type", on(structured), "holds no real numbers", "one number a voxel",
        "RGB", "channel of its own"),
    Row("24-complex", "image", "refuse", "voxel_type", on(voxels(lambda v: v.astype(np.complex64))),
        "holds no real numbers", "one number a voxel", "complex", "channel of its own"),
    Row("25", "both", "", "", big_endian),
    Row("26-zero", "image", "note", "intensity_scaling", header(SLOPE, float_bytes(0)), "scaling that is ignored",
        "a finite slope", "slope 0"),
    Row("26-zero-with-offset", "image", "note", "intensity_scaling",
        header(SLOPE, float_bytes(0) + float_bytes(3)), "scaling that is ignored", "a finite slope",
        "slope 0, intercept 3"),
    Row("26-infinite", "image", "note", "intensity_scaling", header(SLOPE, float_bytes(np.inf)),
        "scaling that is ignored", "a finite slope", "slope inf"),
    Row("27-constant", "image", "warn", "constant_image", on(voxels(lambda v: np.full_like(v, 7))),
        "one value only", "varying intensities", "7, a standard deviation of 0", "check"),
    Row("27-large", "image", "refuse", "overflow", on(set_voxel((3, 3, 3), 1e32)), "beyond any scanner's",
        "up to 1e+18", "1e+32", "correct the file"),
    Row("27-half", "image", "warn", "half_precision", on(set_voxel((3, 3, 3), 1e6)), "overflow half precision",
        "up to 65504", "1e+06", "normalise"),
    Row("28", "label", "note", "wide_label", stored(np.int64), "64 bits", "8 or 16 bits", "int64"),
    Row("28-range", "label", "refuse", "undeclared_label", on(set_voxel((3, 3, 3), 2**31, np.int64)),
        "undeclared labels", "0, 1, 2, 3", "2147483648 (1 voxels)", LABELS, besides=("wide_label",)),
    Row("29", "image", "refuse", "one_slice", on(voxels(lambda v: v[:, :, :1])), "single slice",
        "at least 2 voxels", "shape (", "stack slices", besides=("shape_mismatch",)),
    Row("30", "image", "refuse", "readable", dangling, "can't be opened", "a NIfTI file", "which is not there",
        "check the path"),
    Row("30-leaving", "image", "refuse", "link_leaves_folder", leaving, "is a link that leaves", "a file inside",
        "a link", "copy the file itself"),
)  # fmt: skip
