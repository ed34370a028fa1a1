# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Each bad input is found by its own check, named and measured; good data sets raise nothing; one pass tells all."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_autoaug.data import Finding, Preprocessing, audit, read_datalist, refused, write_phantom
from monai_autoaug.data.audit import CHECKS, Check, Fault
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.nifti import read_header

Edit = Callable[[nib.Nifti1Image], nib.Nifti1Image]


@pytest.fixture
def data(tmp_path: Path) -> DataList:
    """Three good cases."""
    return read_datalist(write_phantom(tmp_path, cases=3, size=16))


def _edit(path: Path, edit: Edit) -> None:
    """Load a file, change it, write it again."""
    image = nib.load(path)
    image = type(image)(np.asanyarray(image.dataobj), image.affine, image.header)
    nib.save(edit(image), path)


def _like(image: nib.Nifti1Image, voxels: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    """Other voxels, or another affine, in both forms."""
    affine = image.affine if affine is None else affine
    out = type(image)(voxels, affine)
    out.set_sform(affine, code=1)
    return out


def _set(position: tuple[int, int, int], value: float, dtype: Any = np.float32) -> Edit:
    """One voxel gets a value."""

    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        voxels = np.asanyarray(image.dataobj).astype(dtype)
        voxels[position] = value
        return _like(image, voxels)

    return edit


def _moved(matrix: np.ndarray) -> Edit:
    """The same voxels elsewhere."""
    return lambda image: _like(image, np.asanyarray(image.dataobj), image.affine @ matrix)


def _shift(mm: float) -> Edit:
    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        affine = image.affine.copy()
        affine[0, 3] += mm
        return _like(image, np.asanyarray(image.dataobj), affine)

    return edit


def _sheared(cosine: float) -> Edit:
    """A shear that only the sform can hold."""

    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        zooms = np.array(image.header.get_zooms())
        axes = image.affine[:3, :3] / zooms
        axes[:, 1] = cosine * axes[:, 0] + np.sqrt(1 - cosine**2) * axes[:, 1]
        affine = image.affine.copy()
        affine[:3, :3] = axes * zooms
        out = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
        out.set_qform(None, code=0)
        return out

    return edit


def _coded(sform: int, qform: int) -> Edit:
    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        image.set_sform(image.affine, code=sform)
        image.set_qform(image.affine, code=qform)
        return image

    return edit


def _contradiction(image: nib.Nifti1Image) -> nib.Nifti1Image:
    turned = image.affine.copy()
    turned[:3, :2] = turned[:3, 1::-1]
    image.set_qform(turned, code=1)
    return image


def _on(edit: Edit) -> Callable[[Path], None]:
    """An edit of the loaded image, as an edit of the file."""
    return lambda path: _edit(path, edit)


def _header(offset: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of the header on disk."""

    def edit(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[offset : offset + len(value)] = value
        path.write_bytes(gzip.compress(bytes(content)))

    return edit


def _float(value: float) -> bytes:
    return np.float32(value).tobytes()


def _structured(image: nib.Nifti1Image) -> nib.Nifti1Image:
    voxels = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nib.Nifti1Image(voxels, image.affine)


def _volumes(count: int) -> Edit:
    return lambda image: _like(image, np.stack([np.asanyarray(image.dataobj)] * count, -1))


def _voxels(function: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda image: _like(image, function(np.asanyarray(image.dataobj)))


PIXDIM_X, SLOPE = 80, 112
# check, severity, which files, what is done to them, what the finding must say
BAD: list[tuple[str, str, str, Callable[[Path], Any], str]] = [
    ("readable", "refuse", "image", lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "truncated"),
    ("readable", "refuse", "image", lambda p: p.write_bytes(b""), "empty file"),
    ("readable", "refuse", "label", lambda p: p.write_bytes(b"a text" * 99), "damaged"),
    ("readable", "refuse", "image", lambda p: p.unlink(), "No such file"),
    ("nan", "refuse", "image", _on(_set((3, 3, 3), np.nan)), "1 NaN"),
    ("infinite", "refuse", "image", _on(_set((3, 3, 3), -np.inf)), "1 Inf"),
    ("nan", "refuse", "label", _on(_set((3, 3, 3), np.nan)), "1 NaN"),
    ("origin_mismatch", "refuse", "label", _on(_shift(5.0)), "5 mm apart"),
    ("direction_mismatch", "refuse", "label", _on(_moved(np.diag([-1.0, 1, 1, 1]))), "180 degrees"),
    ("shape_mismatch", "refuse", "label", _on(_voxels(lambda v: v[:, :, 1:])), "differs from the image in shape"),
    ("spacing_mismatch", "refuse", "label", _on(_moved(np.diag([1.0, 1, 2, 1]))), "mm at the far end"),
    ("rounded_label", "note", "label", _on(_set((3, 3, 3), 1.0001)), "off by up to 0.0001"),
    ("fractional_label", "refuse", "label", _on(_set((3, 3, 3), 0.5)), "1 voxels with values such as [0.5]"),
    ("undeclared_label", "refuse", "label", _on(_set((3, 3, 3), 7, np.uint8)), "7 (1 voxels)"),
    ("negative_label", "refuse", "label", _on(_set((3, 3, 3), -1, np.int16)), "-1 (1 voxels)"),
    ("empty_mask", "warn", "label", _on(_voxels(np.zeros_like)), "background only"),
    ("voxel_size", "refuse", "image", _header(PIXDIM_X, _float(0)), "[0.0, "),
    ("voxel_size", "refuse", "image", _header(PIXDIM_X, _float(np.nan)), "[nan, "),
    ("affine", "refuse", "image", _header(280, _float(np.nan)), "[[    nan "),
    ("affine", "refuse", "image", _header(280, bytes(48)), "can't be inverted"),
    ("shear", "refuse", "image", _on(_sheared(0.35)), "a shear of 0.35, up to "),
    ("slight_shear", "note", "both", _on(_sheared(0.01)), "a shear of 0.01, up to "),
    ("qform_contradicts_sform", "warn", "image", _on(_contradiction), "sform is used"),
    ("orientation_unknown", "warn", "both", _on(_coded(0, 0)), "both 0"),
    ("voxel_size_contradicts_affine", "warn", "image", _header(PIXDIM_X, _float(2)), "mm (pixdim)"),
    ("superfluous_axes", "note", "image", _on(_volumes(1)), "1)"),
    ("dimensions", "refuse", "image", _on(_volumes(5)), "5 (shape"),
    ("dimensions", "refuse", "label", _on(_volumes(2)), "2 (shape"),
    ("dimensions", "refuse", "image", _on(_voxels(lambda v: v[:, :, 0])), "not a volume"),
    ("one_slice", "refuse", "image", _on(_voxels(lambda v: v[:, :, :1])), "single slice"),
    ("voxel_type", "refuse", "image", _on(_structured), "RGB"),
    ("voxel_type", "refuse", "image", _on(_voxels(lambda v: v.astype(np.complex64))), "complex"),
    ("intensity_scaling", "note", "image", _header(SLOPE, _float(np.inf)), "slope inf"),
    ("constant_image", "warn", "image", _on(_voxels(lambda v: np.full_like(v, 7))), "7"),
    ("overflow", "refuse", "image", _on(_set((3, 3, 3), 1e32)), "1e+32"),
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
    others = {"link_leaves_folder", "wide_label", "no_foreground", "absent_class", "duplicate_image", "unusual_spacing"}
    assert {c.name for c in CHECKS} == {b[0] for b in BAD} | others
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    assert all(c.severity == b[1] for c in CHECKS for b in BAD if b[0] == c.name)


def test_good_data_raises_nothing(hippocampus: Path) -> None:
    full = read_datalist(hippocampus)
    assert audit(replace(full, training=full.training[:60])) == []


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
    _edit(first.label, _set((0, 0, 0), 9, np.uint8))
    _edit(first.images[0], _set((0, 0, 0), np.nan))
    second.images[0].unlink()
    _edit(second.label, _set((0, 0, 0), 0.25))
    _edit(third.label, _shift(1.0))
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
    _edit(data.training[1].images[1], _voxels(lambda v: v[1:]))
    found = audit(data)
    assert [(f.case, f.check, f.file) for f in found] == [
        ("phantom_000", "readable", "imagesTr/phantom_000_0001.nii.gz"),
        ("phantom_001", "shape_mismatch", "imagesTr/phantom_001_0001.nii.gz"),
    ]


def test_too_few_channels_in_one_file(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=1, size=16, channels=2))
    _edit(data.training[0].images[0], _voxels(lambda v: v[..., 0]))
    shape = nib.load(data.training[0].label).shape
    assert [(f.check, f.expected, f.came) for f in audit(data)] == [
        ("dimensions", "2 (MRI0, MRI1)", f"1 (shape {shape})")
    ]


def test_small_rounding_differences_are_accepted(data: DataList) -> None:
    _edit(data.training[0].label, _shift(0.01))
    _edit(data.training[1].label, _moved(np.diag([1.0005, 1, 1, 1])))
    assert audit(data) == []


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
    _edit(case.images[0], lambda i: nib.Nifti1Image(np.asanyarray(i.dataobj), i.affine, i.header.as_byteswapped(">")))
    image = nib.load(case.label)
    wide = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.int64), image.affine, dtype=np.int64)
    nib.save(wide, case.label)
    found = audit(data)
    assert {f.severity for f in found} == {"note"}
    assert "wide_label" in {f.check for f in found}


def test_data_set_as_a_whole(data: DataList) -> None:
    first, second, third = data.training
    second.images[0].write_bytes(first.images[0].read_bytes())
    second.label.write_bytes(first.label.read_bytes())
    for path in (third.images[0], third.label):
        _edit(path, _moved(np.diag([9.0, 9, 9, 1])))
    labels = {**data.labels, "tumour": 4}
    found = audit(replace(data, labels=labels))
    assert [(f.case, f.check, f.severity) for f in found] == [
        ("", "absent_class", "warn"),
        ("phantom_001", "duplicate_image", "warn"),
        ("phantom_002", "unusual_spacing", "warn"),
    ]
    assert '"tumour" occurs in no case' in found[0].message
    assert found[1].came == "phantom_000"


def test_no_foreground_anywhere(data: DataList) -> None:
    for case in data.training:
        _edit(case.label, _voxels(np.zeros_like))
    found = audit(data)
    assert [f.check for f in found] == ["empty_mask"] * 3 + ["no_foreground"]
    assert found[-1].came == "background only in 3 labels"


@pytest.mark.parametrize("value", [2.0**40, -(2.0**40), 1e30])
def test_values_beyond_any_label(data: DataList, value: float) -> None:
    _edit(data.training[0].label, _set((0, 0, 0), value))
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


def test_images_to_be_predicted_are_audited_without_labels(data: DataList) -> None:
    cases = [replace(c, label=None) for c in data.training]
    _edit(cases[2].images[0], _set((0, 0, 0), np.nan))
    found = audit(DataList.of_images(cases, channels=("MRI",), folder=data.folder))
    assert [(f.case, f.check) for f in found] == [("phantom_002", "nan")]


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
        _edit(case.label, _set((0, 0, 0), 9, np.uint8))
    assert audit(data, workers=1) == audit(data, workers=4)
