# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Each bad file is found by its own check, named and measured, and never stops the audit."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from audit_helpers import edit_file, float_bytes, header, moved, on, set_voxel, volumes
from bad_inputs import ROWS

from monai_autoaug.data import Finding, audit, refused
from monai_autoaug.data.audit import CHECKS, Check, Fault
from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.data.nifti import write_nifti


def append(count: int) -> Callable[[Path], Any]:
    """Bytes behind the last voxel."""
    return lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"0" * count))


PIXDIM_X, UNITS, SROW_X = 80, 123, 280
# check, severity, which files, what is done to them, what the finding must say; test_bad_inputs.py has the contract's
BAD: list[tuple[str, str, str, Callable[[Path], Any], str]] = [
    ("readable", "refuse", "image", lambda p: p.unlink(), "No such file"),
    ("readable", "refuse", "label", lambda p: (p.unlink(), os.mkfifo(p)), "no regular file"),
    ("readable", "refuse", "image", header(40 + 2, b"\xff\x7f" * 3), "readable bytes in a file"),
    ("readable", "refuse", "image", header(344, b"ni1"), "another file, an .img"),
    ("affine", "refuse", "image", header(SROW_X, float_bytes(np.nan)), "[[    nan "),
    ("affine", "refuse", "image", header(SROW_X, bytes(48)), "can't be inverted"),
    ("impossible_voxel_size", "refuse", "both", on(moved(np.diag([1e5, 1e5, 1e5, 1]))), "e+05 x "),
    ("impossible_voxel_size", "refuse", "both", on(moved(np.diag([1e-6, 1e-6, 1e-6, 1]))), "e-06 x "),
    ("becomes_huge", "refuse", "both", on(moved(np.diag([200.0, 200, 200, 1]))), " voxels of "),
    ("units", "warn", "image", header(UNITS, b"\x01"), "in metres"),
    ("voxel_size_contradicts_affine", "warn", "image", header(PIXDIM_X, float_bytes(2)), "2 x "),
    ("further_bytes", "warn", "image", append(700), "700 bytes more"),
    ("dimensions", "refuse", "label", on(volumes(2)), "2 (shape"),
]  # fmt: skip


@pytest.mark.parametrize("content", [bytes(48), float_bytes(np.nan)], ids=["zero", "nan"])
def test_an_affine_that_says_nothing_is_not_held_against_the_label(data: DataList, content: bytes) -> None:
    """Whose own is right, and which would be spoiled by what a mismatch is told to need."""
    header(SROW_X, content)(data.training[1].images[0])
    found = {(f.check, f.file) for f in audit(data) if f.severity == "refuse"}
    assert found == {("affine", f"imagesTr/{data.training[1].name}.nii.gz")}


@pytest.mark.parametrize(
    ("check", "severity", "which", "spoil", "says"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)]
)
def test_bad_input_is_found(
    data: DataList, check: str, severity: str, which: str, spoil: Callable[[Path], Any], says: str
) -> None:
    case = data.training[1]
    paths = {"image": case.images, "label": (case.label,), "both": (*case.images, case.label)}[which]
    for path in paths:
        spoil(path)
    found = audit(data, workers=2)
    mine = [f for f in found if f.check == check]
    assert [f.file for f in mine] == [str(p.relative_to(data.folder)) for p in paths], found
    for finding in mine:
        assert finding.case == case.name
        assert finding.severity == severity
        assert says in f"{finding.message}: {finding.came}"
    assert {f.case for f in found} == {case.name}, found
    # what is only told brings no refusal along; what is refused or warned of says what was expected and what to do
    assert refused(found) == (severity == "refuse"), found
    for finding in found:
        assert finding.expected
        assert finding.came
        assert finding.remedy or finding.severity == "note"


def test_every_row_is_tried() -> None:
    elsewhere = {"no_foreground", "absent_class", "leakage", "duplicate_image", "unusual_spacing", "left_right_labels",
                 "left_out", "lost_label", "file_name"}  # fmt: skip
    tried = {(b[0], b[1]) for b in BAD} | {(row.check, row.severity) for row in ROWS if row.check}
    assert {c.name for c in CHECKS} == {name for name, _ in tried} | elsewhere
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    assert all(c.severity == severity for c in CHECKS for name, severity in tried if c.name == name)


@pytest.mark.parametrize("value", [2.0**40, -(2.0**40), 1e30])
def test_values_beyond_any_label(data: DataList, value: float) -> None:
    edit_file(data.training[0].label, set_voxel((0, 0, 0), value))
    found = audit(data)
    assert [(f.case, f.check) for f in found] == [("phantom_000", "fractional_label")]


def test_a_check_is_one_function_and_one_row(data: DataList) -> None:
    def small(volume: Any) -> Any:
        if max(volume.shape) < 100:
            yield Fault("is small", expected=100, came=max(volume.shape))

    found = audit(data, checks=(Check("small", "note", "file", small),))
    assert len(found) == 6
    assert found[0] == Finding(
        "phantom_000", "small", "note", "is small", "100", str(max(nib.load(data.training[0].images[0]).shape)),
        file="imagesTr/phantom_000.nii.gz",
    )


def test_memory_is_bounded_by_one_volume_a_worker(tmp_path: Path) -> None:
    """Six channels of 4 MB each: one is in memory at a time, and what is converted is a small part of it."""
    rng = np.random.default_rng(0)
    size, paths = (128, 128, 128), []
    for c in range(6):
        voxels = rng.integers(0, 1000, size).astype(np.int16)
        image = nib.Nifti1Image(voxels, np.eye(4))
        image.header.set_slope_inter(0.5, 1)  # scaled voxels are four times as large as the stored ones
        paths.append(write_nifti(tmp_path / f"a_{c:04d}.nii", image))
    label = write_nifti(tmp_path / "label.nii", nib.Nifti1Image((voxels > 500).astype(np.uint8), np.eye(4)))
    case = Case("a", tuple(paths), label)
    data = DataList(tmp_path, "nnunet", tuple("abcdef"), {"background": 0, "x": 1}, training=(case,))
    del voxels, image
    audit(data, workers=1)  # what is imported and cached
    tracemalloc.start()
    found = audit(data, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == []
    one = 2 * int(np.prod(size))
    assert peak < 3 * one + 8 * 2**20, f"{peak / one:.1f} volumes"
