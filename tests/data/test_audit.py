# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Each bad file is found by its own check, named and measured, and never stops the audit."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
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

from monai_autoaug.data import Finding, Preprocessing, audit, read_datalist, refused, write_phantom
from monai_autoaug.data.audit import CHECKS, Check, Fault
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.nifti import read_header

PIXDIM_X, SLOPE = 80, 112
# check, severity, which files, what is done to them, what the finding must say
BAD: list[tuple[str, str, str, Callable[[Path], Any], str]] = [
    ("readable", "refuse", "image", lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "truncated"),
    ("readable", "refuse", "image", lambda p: p.write_bytes(b""), "empty file"),
    ("readable", "refuse", "label", lambda p: p.write_bytes(b"a text" * 99), "damaged"),
    ("readable", "refuse", "image", lambda p: p.unlink(), "No such file"),
    ("nan", "refuse", "image", on(set_voxel((3, 3, 3), np.nan)), "1 NaN"),
    ("infinite", "refuse", "image", on(set_voxel((3, 3, 3), -np.inf)), "1 Inf"),
    ("nan", "refuse", "label", on(set_voxel((3, 3, 3), np.nan)), "1 NaN"),
    ("origin_mismatch", "refuse", "label", on(shift(5.0)), "5 mm apart"),
    ("direction_mismatch", "refuse", "label", on(moved(np.diag([-1.0, 1, 1, 1]))), "180 degrees"),
    ("shape_mismatch", "refuse", "label", on(voxels(lambda v: v[:, :, 1:])), "differs from the image in shape"),
    ("spacing_mismatch", "refuse", "label", on(moved(np.diag([1.0, 1, 2, 1]))), "mm at the far end"),
    ("rounded_label", "note", "label", on(set_voxel((3, 3, 3), 1.0001)), "off by up to 0.0001"),
    ("fractional_label", "refuse", "label", on(set_voxel((3, 3, 3), 0.5)), "1 voxels with values such as [0.5]"),
    ("undeclared_label", "refuse", "label", on(set_voxel((3, 3, 3), 7, np.uint8)), "7 (1 voxels)"),
    ("negative_label", "refuse", "label", on(set_voxel((3, 3, 3), -1, np.int16)), "-1 (1 voxels)"),
    ("empty_mask", "warn", "label", on(voxels(np.zeros_like)), "background only"),
    ("voxel_size", "refuse", "image", header(PIXDIM_X, float_bytes(0)), "[0.0, "),
    ("voxel_size", "refuse", "image", header(PIXDIM_X, float_bytes(np.nan)), "[nan, "),
    ("affine", "refuse", "image", header(280, float_bytes(np.nan)), "[[    nan "),
    ("affine", "refuse", "image", header(280, bytes(48)), "can't be inverted"),
    ("shear", "refuse", "image", on(sheared(0.35)), "a shear of 0.35, up to "),
    ("slight_shear", "note", "both", on(sheared(0.01)), "a shear of 0.01, up to "),
    ("qform_contradicts_sform", "warn", "image", on(contradiction), "sform is used"),
    ("orientation_unknown", "warn", "both", on(coded(0, 0)), "both 0"),
    ("voxel_size_contradicts_affine", "warn", "image", header(PIXDIM_X, float_bytes(2)), "mm (pixdim)"),
    ("superfluous_axes", "note", "image", on(volumes(1)), "1)"),
    ("dimensions", "refuse", "image", on(volumes(5)), "5 (shape"),
    ("dimensions", "refuse", "label", on(volumes(2)), "2 (shape"),
    ("dimensions", "refuse", "image", on(voxels(lambda v: v[:, :, 0])), "not a volume"),
    ("one_slice", "refuse", "image", on(voxels(lambda v: v[:, :, :1])), "single slice"),
    ("voxel_type", "refuse", "image", on(structured), "RGB"),
    ("voxel_type", "refuse", "image", on(voxels(lambda v: v.astype(np.complex64))), "complex"),
    ("intensity_scaling", "note", "image", header(SLOPE, float_bytes(np.inf)), "slope inf"),
    ("constant_image", "warn", "image", on(voxels(lambda v: np.full_like(v, 7))), "7"),
    ("overflow", "refuse", "image", on(set_voxel((3, 3, 3), 1e32)), "1e+32"),
]


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
    assert {f.case for f in found} == {case.name}
    # what is only told brings no refusal along, and every refusal says what to do
    assert refused(found) == (severity == "refuse"), found
    assert all(f.remedy for f in found if f.severity == "refuse")


def test_every_row_is_tried() -> None:
    others = {"link_leaves_folder", "wide_label"}
    of_data_sets = {"no_foreground", "absent_class", "leakage", "duplicate_image", "unusual_spacing"}
    assert {c.name for c in CHECKS} == {b[0] for b in BAD} | others | of_data_sets
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    assert all(c.severity == b[1] for c in CHECKS for b in BAD if b[0] == c.name)


def test_links(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    image, label = data.training[0].images[0], data.training[0].label
    image.rename(tmp_path / "outside.nii.gz")
    image.symlink_to(tmp_path / "outside.nii.gz")
    label.rename(label.with_name("inside.nii.gz"))
    label.symlink_to("inside.nii.gz")
    found = audit(data)
    assert [(f.check, f.case) for f in found] == [("link_leaves_folder", "phantom_000")]
    (tmp_path / "outside.nii.gz").unlink()
    assert {f.check for f in audit(data)} == {"link_leaves_folder", "readable"}
    # a link to the whole folder is the user's own choice
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    label.unlink()
    label.with_name("inside.nii.gz").rename(label)
    image.unlink()
    remaining = read_datalist(tmp_path / "alias")
    assert audit(replace(remaining, training=remaining.training[1:])) == []


def test_big_endian_and_64_bit_labels(data: DataList) -> None:
    case = data.training[0]
    swapped = on(lambda i: nib.Nifti1Image(np.asanyarray(i.dataobj), i.affine, i.header.as_byteswapped(">")))
    swapped(case.images[0])
    image = nib.load(case.label)
    wide = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.int64), image.affine, dtype=np.int64)
    nib.save(wide, case.label)
    found = audit(data)
    assert {f.severity for f in found} == {"note"}
    assert "wide_label" in {f.check for f in found}


@pytest.mark.parametrize("value", [2.0**40, -(2.0**40), 1e30])
def test_values_beyond_any_label(data: DataList, value: float) -> None:
    edit_file(data.training[0].label, set_voxel((0, 0, 0), value))
    found = audit(data)
    assert [(f.case, f.check) for f in found] == [("phantom_000", "fractional_label")]


def test_damaged_headers_never_stop_the_audit(data: DataList) -> None:
    """What is not refused can be preprocessed and written back; nothing raises anything else."""
    rng = np.random.default_rng(0)
    data = replace(data, training=data.training[:1])
    case = data.training[0]
    whole = {p: gzip.decompress(p.read_bytes()) for p in (*case.images, case.label)}
    places = [*range(40, 56), *range(70, 74), *range(76, 120), *range(252, 328)]  # shape, type, spacing, scaling, forms
    outcomes = set()
    for _ in range(40):
        place, value = rng.choice(places), rng.integers(256)
        for path, content in whole.items():
            damaged = bytearray(content)
            damaged[place] = value
            path.write_bytes(gzip.compress(bytes(damaged), 1))
        bad = refused(audit(data, workers=1))
        outcomes.add(bad)
        if bad:
            continue
        extent = np.linalg.norm(np.array(read_header(case.images[0]).get_best_affine())[:3, :3] * 16)
        if extent < 1e3:  # a spacing of kilometres is sound but takes long
            preprocessing = Preprocessing.fit(data, data.training, spacing=(4, 4, 4))
            item = preprocessing.transforms()(data.to_monai()[0])
            assert item["image"].isfinite().all()
            path = preprocessing.restore(item["label"], case=case, path=data.folder / "out.nii.gz")
            np.testing.assert_array_equal(nib.load(path).affine, nib.load(case.images[0]).affine)
    assert outcomes == {True, False}


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
