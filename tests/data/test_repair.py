# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A repaired copy: right angles with the error in mm, voxels kept bit for bit, non-finite ones filled as asked."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from audit_helpers import edit_file, header, on, set_voxel, sheared, voxels
from scipy.ndimage import map_coordinates

from monai_autoaug.data import audit, read_datalist, refused, repair, write_phantom
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.geometry import right_angled
from monai_autoaug.data.nifti import read_header, read_nifti
from monai_autoaug.errors import ConfigError


def shear(data: DataList, cosine: float) -> list[Path]:
    """Shear the files of the second case."""
    case = data.training[1]
    assert case.label is not None
    for path in (*case.images, case.label):
        on(sheared(cosine))(path)
    return [*case.images, case.label]


@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "folders"])
def test_almost_right_angles(tmp_path: Path, layout: str) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=3, size=16, layout=layout, channels=2, test=1))
    spoilt = shear(data, 0.008)
    before = {f: f.read_bytes() for f in data.folder.rglob("*") if f.is_file()}
    changes = repair(data, tmp_path / "copy")
    assert {f: f.read_bytes() for f in data.folder.rglob("*") if f.is_file()} == before
    assert [c.file for c in changes] == [str(p.relative_to(data.folder)) for p in spoilt]
    copy = read_datalist(tmp_path / "copy")
    assert audit(copy) == []
    assert len(copy.training) == 3
    assert len(copy.test) == 1
    for path, change in zip(spoilt, changes, strict=True):
        old, new = nib.load(path), nib.load(tmp_path / "copy" / path.relative_to(data.folder))
        axes = new.affine[:3, :3] / np.linalg.norm(new.affine[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
        np.testing.assert_array_equal(np.asanyarray(new.dataobj), np.asanyarray(old.dataobj))
        np.testing.assert_allclose(new.header.get_zooms()[:3], np.linalg.norm(old.affine[:3, :3], axis=0), rtol=1e-5)
        np.testing.assert_allclose(new.get_qform(), new.get_sform(), atol=1e-4)
        assert change.severity == "note"
        # the error that is told is the largest distance between old and new places of all voxels
        grid = np.indices(old.shape[:3]).reshape(3, -1)
        places = [a[:3, :3] @ grid + a[:3, 3:] for a in (old.affine, new.affine)]
        told = float(re.search(r"by up to ([0-9.e-]+) mm", change.message)[1])
        assert told == pytest.approx(np.linalg.norm(places[0] - places[1], axis=0).max(), rel=0.01)
        assert 0 < told < 1
    for path in data.folder.rglob("*.nii.gz"):
        if path not in spoilt:
            assert (tmp_path / "copy" / path.relative_to(data.folder)).read_bytes() == path.read_bytes()


def test_the_nearest_right_angles() -> None:
    """No other rotation is nearer to the axes, and the centre of the volume stays where it is."""
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) + rng.normal(0, 0.02, (3, 3))) * [1, 2, 3]
    affine[:3, 3] = 5, 6, 7
    square, _ = right_angled(affine, (9, 8, 7))
    axes, own = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (affine, square))
    best = np.linalg.norm(own - axes)
    for _ in range(200):
        vector = rng.normal(0, 0.01, 3)
        skew = np.cross(np.eye(3), vector)
        turned = torch.linalg.matrix_exp(torch.as_tensor(skew)).numpy() @ own
        assert np.linalg.norm(turned - axes) >= best - 1e-12
    centre = [4, 3.5, 3, 1]
    np.testing.assert_allclose(square @ centre, affine @ centre)
    np.testing.assert_allclose(np.linalg.norm(square[:3, :3], axis=0), np.linalg.norm(affine[:3, :3], axis=0))


def test_scaled_voxels_and_everything_else_are_kept(data: DataList, tmp_path: Path) -> None:
    paths = shear(data, 0.005)
    header(112, np.array([0.25, 3], "<f4").tobytes())(paths[0])  # slope and intercept
    repair(data, tmp_path / "copy")
    new = tmp_path / "copy" / paths[0].relative_to(data.folder)
    old_header, new_header = read_header(paths[0]), read_header(new)
    for field in ("scl_slope", "scl_inter", "datatype", "dim", "descrip"):
        assert old_header[field].tobytes() == new_header[field].tobytes()
    assert read_nifti(new).stored.tobytes() == read_nifti(paths[0]).stored.tobytes()


def test_larger_shears_only_on_request(data: DataList, tmp_path: Path) -> None:
    image, label = shear(data, 0.3)
    assert repair(data, tmp_path / "without") == []
    assert refused(audit(read_datalist(tmp_path / "without")))
    changes = repair(data, tmp_path / "with", resample=True)
    assert [c.file for c in changes] == [str(p.relative_to(data.folder)) for p in (image, label)]
    assert all("its shape" in c.came for c in changes)
    copy = read_datalist(tmp_path / "with")
    assert audit(copy) == []
    old, new = nib.load(image), nib.load(copy.training[1].images[0])
    old_label, new_label = nib.load(label), nib.load(copy.training[1].label)
    assert new.shape == new_label.shape
    assert new_label.get_data_dtype() == old_label.get_data_dtype()
    assert set(np.unique(new_label.dataobj)) <= set(np.unique(old_label.dataobj))
    # each voxel has the value that a naive interpolation finds at its place
    grid = np.indices(new.shape).reshape(3, -1)
    to_old = np.linalg.inv(old.affine) @ new.affine
    places = to_old[:3, :3] @ grid + to_old[:3, 3:]
    wanted = map_coordinates(np.asarray(old.dataobj, float), places, order=1, mode="nearest")
    np.testing.assert_allclose(np.asarray(new.dataobj).ravel(), wanted, atol=0.05 * np.ptp(wanted) / 100)
    # all of the old volume is within the new one
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in old.shape])).reshape(3, -1)
    to_new = np.linalg.inv(to_old)
    inside = to_new[:3, :3] @ corners + to_new[:3, 3:]
    assert (inside > -1e-3).all()
    assert (inside < np.array(new.shape)[:, None] - 1 + 1e-3).all()
    volumes = [float(np.sum(np.asarray(i.dataobj) == 1) * abs(np.linalg.det(i.affine))) for i in (old_label, new_label)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.25)


@pytest.mark.parametrize("fill", [0.0, -1000.0, "min"])
@pytest.mark.parametrize("slope", [None, (2.0, 5.0), (-2.0, 5.0)])
def test_fill(data: DataList, tmp_path: Path, fill: float | str, slope: tuple[float, float] | None) -> None:
    path = data.training[0].images[0]
    for position, value in (((3, 3, 3), np.nan), ((4, 4, 4), np.inf), ((5, 5, 5), -np.inf)):
        edit_file(path, set_voxel(position, value))
    if slope is not None:
        header(112, np.array(slope, "<f4").tobytes())(path)
    assert {f.check for f in audit(data)} == {"nan", "infinite"}
    changes = repair(data, tmp_path / "copy", fill=fill)
    old = np.asanyarray(nib.load(path).dataobj)
    new = np.asanyarray(nib.load(tmp_path / "copy" / path.relative_to(data.folder)).dataobj)
    good = np.isfinite(old)
    value = old[good].min() if fill == "min" else fill
    np.testing.assert_array_equal(new[good], old[good])
    np.testing.assert_allclose(new[~good], value)
    assert [(c.file, c.came) for c in changes] == [(str(path.relative_to(data.folder)), f"3 of {old.size:,}")]
    assert f"were filled with {float(value):g}" in changes[0].message
    assert audit(read_datalist(tmp_path / "copy")) == []


def test_fill_and_right_angles_together_and_nothing_for_labels(data: DataList, tmp_path: Path) -> None:
    image, label = shear(data, 0.3)
    on(set_voxel((3, 3, 3), np.nan))(image)
    edit_file(label, set_voxel((3, 3, 3), np.nan))
    for path in (image, label):
        on(sheared(0.0))(path)
    changes = repair(data, tmp_path / "copy", fill="min", resample=True)
    assert [c.file for c in changes if "filled" in c.message] == [str(image.relative_to(data.folder))]
    assert "nan" in {f.check for f in audit(read_datalist(tmp_path / "copy"))}  # the label's can't be told


def test_what_cant_be_mended_is_copied_as_it_is(data: DataList, tmp_path: Path) -> None:
    first, second, third = data.training
    first.images[0].write_bytes(first.images[0].read_bytes()[:500])
    on(voxels(np.zeros_like))(second.label)
    third.images[0].unlink()
    outside = tmp_path / "outside.nii.gz"
    third.label.rename(outside)
    third.label.symlink_to(outside)
    assert repair(data, tmp_path / "copy") == []
    copy = read_datalist(tmp_path / "copy")
    found = {(f.case, f.check) for f in audit(copy)}
    assert found == {(first.name, "readable"), (second.name, "empty_mask"), (third.name, "readable")}
    assert not (tmp_path / "copy" / third.label.relative_to(data.folder)).exists()


def test_refusals(data: DataList, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for output, fill, says in (
        (tmp_path / "full", None, "there already"),
        (tmp_path / "full" / "a", None, "there already"),
        (data.folder / "sub", None, "lies in the data set"),
        (tmp_path, None, "there already"),
        (tmp_path / "new", float("nan"), "finite number or min"),
        (tmp_path / "new", "mean", "finite number or min"),
    ):
        with pytest.raises(ConfigError, match=says):
            repair(data, output, fill=fill)
    assert not (tmp_path / "new").exists()


def listing(folder: Path, image: str, label: str) -> DataList:
    """A data set of nnU-Net's in ``folder`` whose table names the files of its only case."""
    write_phantom(folder, cases=1, size=16, layout="nnunet")
    declared = folder / "dataset.json"
    content = json.loads(declared.read_text())
    content["dataset"] = {"one": {"images": [image], "label": label}}
    declared.write_text(json.dumps(content))
    return read_datalist(folder)


@pytest.mark.parametrize("role", ["image", "label"])
@pytest.mark.parametrize("place", ["../{}", "../other/{}", "../copy/../other/{}"])
def test_a_file_outside_by_its_path_is_refused_and_never_written(tmp_path: Path, role: str, place: str) -> None:
    inside = {"image": "imagesTr/case_00_0000.nii.gz", "label": "labelsTr/case_00.nii.gz"}
    write_phantom(tmp_path / "data", cases=1, size=16, layout="nnunet")
    names = {r: next((tmp_path / "data").glob(f"{p.split('/')[0]}/*")) for r, p in inside.items()}
    named = {r: str(path.relative_to(tmp_path / "data")) for r, path in names.items()}
    elsewhere = tmp_path / os.path.normpath(f"data/{place.format('mine.nii.gz')}")
    elsewhere.parent.mkdir(exist_ok=True)
    shutil.copyfile(names[role], elsewhere)
    edit_file(elsewhere, sheared(0.008))  # something to mend, so that it would be written anew
    before = elsewhere.read_bytes()
    data = listing(tmp_path / "data", **named | {role: place.format("mine.nii.gz")})
    with pytest.raises(ConfigError, match="mine.nii.gz: lies outside the data set's folder"):
        repair(data, tmp_path / "copy")
    assert elsewhere.read_bytes() == before
    assert not (tmp_path / "copy").exists()


def test_a_path_that_goes_out_and_in_again_is_not_followed_out_of_the_copy(tmp_path: Path) -> None:
    """``data/../data/x`` lies in the data set; beside a copy named otherwise, the same way leads to the original."""
    data = listing(tmp_path / "data", "../data/imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    image = next((tmp_path / "data" / "imagesTr").iterdir()).rename(tmp_path / "data" / "imagesTr" / "a.nii.gz")
    next((tmp_path / "data" / "labelsTr").iterdir()).rename(tmp_path / "data" / "labelsTr" / "a.nii.gz")
    edit_file(image, sheared(0.008))
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="would be written outside the folder"):
        repair(data, tmp_path / "copy")
    assert image.read_bytes() == before
    assert not (tmp_path / "copy").exists()


def test_a_way_round_within_the_data_set_and_a_folder_given_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing(tmp_path / "data", "labelsTr/../imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    for name in ("imagesTr", "labelsTr"):
        file = next((tmp_path / "data" / name).iterdir()).rename(tmp_path / "data" / name / "a.nii.gz")
        edit_file(file, sheared(0.008))
    monkeypatch.chdir(tmp_path)
    changes = repair(read_datalist(Path("data")), Path("copy"))
    assert [c.file for c in changes] == ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"]
    assert audit(read_datalist(tmp_path / "copy")) == []


def test_absolute_paths_in_dataset_json_name_the_copys_files(tmp_path: Path) -> None:
    """As they are, they would make a copy whose mended files nobody reads."""
    write_phantom(tmp_path / "data", cases=1, size=16, layout="nnunet")
    files = [next((tmp_path / "data" / name).iterdir()) for name in ("imagesTr", "labelsTr")]
    listing(tmp_path / "data", *map(str, files))
    for file in files:
        edit_file(file, sheared(0.008))
    before = [file.read_bytes() for file in files]
    changes = repair(read_datalist(tmp_path / "data"), tmp_path / "copy")
    assert len(changes) == 2
    copied = read_datalist(tmp_path / "copy")
    (case,) = copied.training
    assert case.label is not None
    assert all(file.is_relative_to(tmp_path / "copy") for file in (*case.images, case.label))
    assert audit(copied) == []
    assert [file.read_bytes() for file in files] == before
