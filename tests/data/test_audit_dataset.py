# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A data set as a whole: good ones raise nothing, one pass tells all, and no image is in two parts of a split."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from audit_helpers import (
    edit_file,
    moved,
    set_voxel,
    shift,
    voxels,
)

from monai_autoaug.data import audit, read_datalist, write_phantom
from monai_autoaug.data.datalist import Case, DataList, Split


def test_good_data_raises_nothing(hippocampus: Path) -> None:
    full = read_datalist(hippocampus)
    found = audit(replace(full, training=full.training[:60]))
    # some of these MR images do hold values of a million
    assert [(f.check, f.severity) for f in found] == [("half_precision", "warn")]
    assert float(found[0].came) > 65504
    assert "more cases" in found[0].message


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "folders"])
def test_good_phantoms_raise_nothing(tmp_path: Path, layout: str, channels: int) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=2, size=20, layout=layout, channels=channels, test=1))
    assert audit(data) == []


def test_regions_and_ignore_label_are_declared(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=2, size=20, layout="nnunet", regions=True, ignore=True))
    assert audit(data) == []


def test_all_faults_in_one_pass(data: DataList) -> None:
    first, second, third = data.training
    edit_file(first.label, set_voxel((0, 0, 0), 9, np.uint8))
    edit_file(first.images[0], set_voxel((0, 0, 0), np.nan))
    second.images[0].unlink()
    edit_file(second.label, set_voxel((0, 0, 0), 0.25))
    edit_file(third.label, shift(1.0))
    found = {(f.case[-1], f.check) for f in audit(data)}
    assert found == {
        ("0", "undeclared_label"),
        ("0", "nan"),
        ("1", "readable"),
        ("1", "fractional_label"),
        ("2", "origin_mismatch"),
    }


def test_missing_and_displaced_channels(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=2, size=16, layout="nnunet", channels=2))
    data.training[0].images[1].unlink()
    edit_file(data.training[1].images[1], voxels(lambda v: v[1:]))
    found = audit(data)
    assert [(f.case, f.check, f.file) for f in found] == [
        ("phantom_000", "readable", "imagesTr/phantom_000_0001.nii.gz"),
        ("phantom_001", "shape_mismatch", "imagesTr/phantom_001_0001.nii.gz"),
    ]


def test_too_few_channels_in_one_file(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=1, size=16, channels=2))
    edit_file(data.training[0].images[0], voxels(lambda v: v[..., 0]))
    shape = nib.load(data.training[0].label).shape
    assert [(f.check, f.expected, f.came) for f in audit(data)] == [
        ("dimensions", "2 (MRI0, MRI1)", f"1 (shape {shape})")
    ]


def test_small_rounding_differences_are_accepted(data: DataList) -> None:
    edit_file(data.training[0].label, shift(0.01))
    edit_file(data.training[1].label, moved(np.diag([1.0005, 1, 1, 1])))
    assert audit(data) == []


def test_data_set_as_a_whole(data: DataList) -> None:
    first, second, third = data.training
    same_image(first, second)
    for path in (third.images[0], third.label):
        edit_file(path, moved(np.diag([9.0, 9, 9, 1])))
    labels = {**data.labels, "tumour": 4}
    found = audit(replace(data, labels=labels))
    assert [(f.case, f.check, f.severity) for f in found] == [
        ("", "absent_class", "warn"),
        ("phantom_001", "duplicate_image", "warn"),
        ("phantom_002", "unusual_spacing", "warn"),
    ]
    assert '"tumour" occurs in no case' in found[0].message
    assert found[1].came == "phantom_000"


def same_image(first: Case, second: Case, edit: Callable[[nib.Nifti1Image], nib.Nifti1Image] | None = None) -> None:
    """Give the second case a copy of the first one's image and label."""
    for a, b in zip((*first.images, first.label), (*second.images, second.label), strict=True):
        b.write_bytes(a.read_bytes())
    if edit is not None:
        edit_file(second.images[0], edit)


def stored_as(dtype: Any) -> Callable[[nib.Nifti1Image], nib.Nifti1Image]:
    return lambda image: nib.Nifti1Image(np.asanyarray(image.dataobj).astype(dtype), image.affine)


def test_an_image_in_two_parts_of_a_split_is_refused(data: DataList) -> None:
    a, b, c = data.training
    same_image(a, b)
    for parts, expected in [
        (None, ("duplicate_image", "warn")),
        (Split((a, b), (), (c,)), ("duplicate_image", "warn")),
        (Split((a, c), (), (b,)), ("leakage", "refuse")),
        (Split((a, c), (b,), ()), ("leakage", "refuse")),
    ]:
        found = audit(data, parts=parts)
        assert [(f.check, f.severity) for f in found] == [expected], parts
    assert found[0].case == b.name
    assert found[0].message == f"is a meta-validation case that holds the same image as the training case {a.name}"
    assert "remove one of the two cases" in found[0].remedy
    assert "--split-seed" in found[0].remedy


def test_an_image_in_three_cases_is_told_of_once_a_case(data: DataList) -> None:
    a, b, c = data.training
    same_image(a, b)
    same_image(a, c)
    found = audit(data, parts=Split((a, b), (), (c,)))
    assert [(f.case, f.check) for f in found] == [(c.name, "leakage"), (b.name, "duplicate_image")]


def test_blank_images_are_no_copies_of_each_other(data: DataList) -> None:
    a, b, c = data.training
    edit_file(a.images[0], voxels(np.zeros_like))
    same_image(a, b)  # of one shape
    for parts in (None, Split((a, c), (), (b,))):
        assert [(f.case, f.check) for f in audit(data, parts=parts)] == [
            (a.name, "constant_image"),
            (b.name, "constant_image"),
        ]


@pytest.mark.parametrize("edit", ["float64", "big_endian", "other"])
def test_the_same_image_in_another_form_is_the_same_image(data: DataList, edit: str) -> None:
    """Stored in other numbers, in another byte order; but not with other voxels."""
    a, b, c = data.training
    edit_file(a.images[0], stored_as(np.int16))
    same_image(a, b, stored_as(np.float64) if edit == "float64" else stored_as(">i2"))
    if edit == "other":
        edit_file(b.images[0], set_voxel((0, 0, 0), 1000))
    found = audit(data, parts=Split((a, c), (), (b,)))
    assert [f.check for f in found if f.severity == "refuse"] == ([] if edit == "other" else ["leakage"])


def test_a_class_that_only_validation_cases_hold(data: DataList) -> None:
    a, b, c = data.training
    for case in (a, b):
        edit_file(case.label, voxels(lambda v: np.where(v == 3, 0, v)))
    assert audit(data) == []
    found = audit(data, parts=Split((a,), (b,), (c,)))
    assert [(f.check, f.severity) for f in found] == [("absent_class", "warn")]
    assert found[0].message == 'the label "round" occurs in no training case'
    assert found[0].came == "no voxel of [3] in 2 labels, but in validation"
    assert "--split-seed" in found[0].remedy
    assert audit(data, parts=Split((c,), (a,), (b,))) == []


@pytest.mark.parametrize(("left", "right"), [("kidney_left", "Kidney Right"), ("L lung", "R lung")])
def test_left_and_right_under_mirroring(data: DataList, left: str, right: str) -> None:
    found = audit(replace(data, labels={"background": 0, left: 1, "spine": 2, right: 3}))
    assert [(f.check, f.severity) for f in found] == [("left_right_labels", "warn")]
    assert left in found[0].message
    assert right in found[0].message
    assert "mirroring exchanges them" in found[0].message
    assert f"laterality ([[{left}, {right}]])" in found[0].remedy


def test_intensities_beyond_half_precision_are_warned_of_once(data: DataList) -> None:
    for i, case in enumerate(data.training):
        edit_file(case.images[0], set_voxel((1, 1, 1), 70000.0 + i))
    found = audit(data)
    assert [(f.check, f.severity, f.case) for f in found] == [("half_precision", "warn", data.training[2].name)]
    assert "so do 2 more cases" in found[0].message
    assert found[0].file == str(data.training[2].images[0].relative_to(data.folder))


def test_findings_of_the_data_set_name_files(data: DataList) -> None:
    first, second, third = data.training
    same_image(first, second)
    for path in (third.images[0], third.label):
        edit_file(path, moved(np.diag([9.0, 9, 9, 1])))
    found = audit(data, parts=Split((first, third), (), (second,)))
    told = {f.check: f.file for f in found}
    assert told["leakage"] == str(second.images[0].relative_to(data.folder))
    assert told["unusual_spacing"] == str(third.images[0].relative_to(data.folder))


def test_ctrl_c_stops_the_audit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not begun is not read any more."""
    from monai_autoaug.data import audit_views

    data = read_datalist(write_phantom(tmp_path, cases=1, size=16))
    cases = tuple(replace(data.training[0], name=f"case_{i}") for i in range(200))
    read = []
    original = audit_views.read_nifti
    monkeypatch.setattr(audit_views, "read_nifti", lambda path: (read.append(path), original(path))[1])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(replace(data, training=cases), workers=2, progress=stop)
    assert len(read) < 200


def test_no_foreground_anywhere(data: DataList) -> None:
    for case in data.training:
        edit_file(case.label, voxels(np.zeros_like))
    found = audit(data)
    assert [f.check for f in found] == ["empty_mask"] * 3 + ["no_foreground"]
    assert found[-1].came == "background only in 3 labels"


def test_images_to_be_predicted_are_audited_without_labels(data: DataList) -> None:
    cases = [replace(c, label=None) for c in data.training]
    edit_file(cases[2].images[0], set_voxel((0, 0, 0), np.nan))
    found = audit(DataList.of_images(cases, channels=("MRI",), folder=data.folder))
    assert [(f.case, f.check) for f in found] == [("phantom_002", "nan")]


def test_each_file_is_read_once_and_memory_is_bounded(data: DataList, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_autoaug.data import audit_views

    read: list[Path] = []
    lock = threading.Lock()
    original = audit_views.read_nifti

    def counting(path: Path) -> Any:
        with lock:
            read.append(path)
        return original(path)

    monkeypatch.setattr(audit_views, "read_nifti", counting)
    steps: list[tuple[int, int]] = []
    audit(data, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert sorted(read) == sorted(f for c in data.training for f in (*c.images, c.label))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_result_does_not_depend_on_the_workers(data: DataList) -> None:
    for case in data.training:
        edit_file(case.label, set_voxel((0, 0, 0), 9, np.uint8))
    assert audit(data, workers=1) == audit(data, workers=4)
