# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessing agrees with SimpleITK's resampling and nnU-Net's normalisation; predictions return to their grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its own documentation uses
import torch
from monai.data import CacheDataset, MetaTensor, PersistentDataset
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from monai_autoaug.data import Case, DataList, Preprocessing, read_datalist, write_phantom
from monai_autoaug.data.restore import to_grid
from monai_autoaug.errors import ConfigError, DataError

ORIENTATIONS = ["RAS", "LPS", "PIL", "SAR", "ASL"]


def _smooth(shape: tuple[int, ...]) -> np.ndarray:
    """A smooth volume, so that interpolation errors are small and shifts are seen."""
    grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return (100 + 40 * np.sin(grid[0] + 2 * grid[1]) + 30 * np.cos(1.5 * grid[2] - grid[0])).astype(np.float32)


def _ball(shape: tuple[int, ...]) -> np.ndarray:
    """Two touching half ellipsoids: labels 1 and 2."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = grid[0] ** 2 + (grid[1] * 1.2) ** 2 + (grid[2] * 1.1 - 0.1) ** 2 < 0.5
    return np.where(inside, np.where(grid[0] + 0.3 * grid[1] > 0.1, 2, 1), 0).astype(np.uint8)


def _affine(codes: str, spacing: tuple[float, float, float], angle: float) -> np.ndarray:
    """A rotated affine whose axes point as ``codes`` say."""
    ornt = nib.orientations.axcodes2ornt(codes)
    axes = np.zeros((3, 3))
    axes[ornt[:, 0].astype(int), range(3)] = ornt[:, 1]
    turn = Rotation.from_euler("xyz", [angle, -angle / 2, angle / 3], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = (-30, 12, 55)
    return affine


def _data(
    folder: Path, codes: str = "RAS", spacing: tuple[float, float, float] = (1.0, 1.3, 2.4), angle: float = 17.0,
    shape: tuple[int, ...] = (26, 22, 15), values: tuple[int, ...] = (0, 1, 2),
) -> DataList:
    """A data set of one case."""
    affine = _affine(codes, spacing, angle)
    label = np.array(values)[_ball(shape)].astype(np.uint16)
    for place, voxels in (("images", _smooth(shape)), ("labels", label)):
        (folder / place).mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, affine), folder / place / "a.nii.gz")
    return read_datalist(folder)


def _fit(data: DataList, **options: Any) -> Preprocessing:
    return Preprocessing.fit(data, data.training, **options)


def _one_hot(label: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(label[0]).long(), classes).movedim(-1, 0).float()


def _sitk(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """The same volume for SimpleITK: axes reversed in memory, x and y of world coordinates negated (LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / spacing).flatten().tolist())
    return image


def _resampled(voxels: np.ndarray, affine: np.ndarray, onto: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """SimpleITK's linear resampling; NaN outside the volume."""
    reference = _sitk(np.zeros(shape, np.float32), onto)
    source = _sitk(voxels.astype(np.float32), affine)
    return sitk.GetArrayFromImage(sitk.Resample(source, reference, sitk.Transform(), sitk.sitkLinear, np.nan)).T


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_image_is_resampled_as_by_simpleitk(tmp_path: Path, codes: str) -> None:
    data = _data(tmp_path, codes)
    item = _fit(data, spacing=(1.5, 1.1, 1.9)).transforms()(data.to_monai()[0])
    image, affine = item["image"], item["image"].affine.numpy()
    assert "".join(nib.aff2axcodes(affine)) == "RAS"
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.5, 1.1, 1.9), atol=1e-6)
    source = nib.load(data.training[0].images[0])
    voxels = source.get_fdata()
    expected = _resampled((voxels - voxels.mean()) / voxels.std(), source.affine, affine, image.shape[1:])
    inside = np.isfinite(expected)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(image[0].numpy()[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_label_moves_with_the_image(tmp_path: Path, codes: str) -> None:
    data = _data(tmp_path, codes)
    item = _fit(data, spacing=(1.5, 1.1, 1.9)).transforms()(data.to_monai()[0])
    label = item["label"]
    assert label.dtype == torch.uint8
    assert label.shape == item["image"].shape
    torch.testing.assert_close(label.affine, item["image"].affine)
    source = nib.load(data.training[0].label)
    voxels = np.asanyarray(source.dataobj)
    shares = [_resampled(voxels == k, source.affine, label.affine.numpy(), label.shape[1:]) for k in range(3)]
    ordered = np.sort(shares, axis=0)
    clear = np.isfinite(shares[0]) & (ordered[-1] - ordered[-2] > 1e-3)
    np.testing.assert_array_equal(label[0].numpy()[clear], np.argmax(shares, axis=0)[clear])


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_restored_probabilities_agree_with_simpleitk(tmp_path: Path, codes: str) -> None:
    data = _data(tmp_path, codes)
    case = data.training[0]
    preprocessing = _fit(data, spacing=(1.5, 1.1, 1.9))
    item = preprocessing.transforms()(data.to_monai()[0])
    probabilities = torch.softmax(4 * _one_hot(item["label"]) + torch.randn(3, *item["label"].shape[1:]), 0)
    affine = item["image"].affine
    path = preprocessing.restore(probabilities, case=case, path=tmp_path / "out" / "a.nii.gz", affine=affine)
    written, source = nib.load(path), nib.load(case.images[0])
    shares = [_resampled(p.numpy(), affine.numpy(), source.affine, source.shape) for p in probabilities]
    for share, p in zip(shares, probabilities, strict=True):
        ours = to_grid(p[None], affine, torch.from_numpy(source.affine), source.shape)[0].numpy()
        np.testing.assert_allclose(ours[np.isfinite(share)], share[np.isfinite(share)], atol=1e-4)
    ordered = np.sort(shares, axis=0)
    clear = np.isfinite(shares[0]) & (ordered[-1] - ordered[-2] > 1e-3)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(np.asanyarray(written.dataobj)[clear], np.argmax(shares, axis=0)[clear])


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("as_classes", [False, True])
def test_round_trip_without_resampling_is_exact(tmp_path: Path, codes: str, as_classes: bool) -> None:
    data = _data(tmp_path, codes, values=(0, 5, 300))
    case = data.training[0]
    preprocessing = _fit(data)
    item = preprocessing.transforms()(data.to_monai()[0])
    prediction = item["label"].as_tensor() if as_classes else _one_hot(item["label"])
    affine = item["image"].affine.numpy()
    written = nib.load(preprocessing.restore(prediction, case=case, path=tmp_path / "a.nii", affine=affine))
    truth = nib.load(case.label)
    assert written.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj))
    assert written.header["sform_code"] == truth.header["sform_code"]
    np.testing.assert_array_equal(written.affine, truth.affine)


@pytest.mark.parametrize("as_classes", [False, True])
def test_round_trip_with_resampling_is_close(tmp_path: Path, as_classes: bool) -> None:
    data = _data(tmp_path, "LIP", shape=(40, 36, 30), spacing=(1.0, 1.1, 1.5))
    preprocessing = _fit(data, spacing=(1.3, 1.0, 0.9))
    item = preprocessing.transforms()(data.to_monai()[0])
    one_hot = MetaTensor(_one_hot(item["label"].as_tensor()), affine=item["image"].affine)
    prediction = item["label"] if as_classes else one_hot
    path = preprocessing.restore(prediction, case=data.training[0], path=tmp_path / "a.nii.gz")
    ours, truth = (np.asanyarray(nib.load(f).dataobj) for f in (path, data.training[0].label))
    for k in (1, 2):
        assert 2 * np.sum((ours == k) & (truth == k)) / (np.sum(ours == k) + np.sum(truth == k)) > 0.97


def test_regions_are_written_as_nnunet_writes_them(tmp_path: Path) -> None:
    labels = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")
    folder = write_phantom(tmp_path, cases=1, size=16, layout="nnunet", regions=True, ignore=True)
    content = json.loads((folder / "dataset.json").read_text())
    data = read_datalist(folder)
    preprocessing = _fit(data)
    assert preprocessing.patch_options == {"num_classes": 4, "regions": ((1, 2), (1,), (3,)), "ignore_label": 4}
    item = preprocessing.transforms()(data.to_monai()[0])
    assert set(item["label"].unique().tolist()) == {0, 1, 2, 3, 4}
    probabilities = torch.rand(3, *item["image"].shape[1:])
    affine = torch.from_numpy(nib.load(data.training[0].label).affine)
    image = MetaTensor(probabilities, affine=affine)  # already on the file's own grid
    path = preprocessing.restore(image, case=data.training[0], path=tmp_path / "a.nii.gz")
    manager = labels.LabelManager(content["labels"], content["regions_class_order"])
    expected = manager.convert_probabilities_to_segmentation(probabilities.numpy())
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), expected)


@pytest.mark.parametrize("scheme", ["zscore", "ct"])
def test_normalisation_equals_nnunets(tmp_path: Path, scheme: str) -> None:
    theirs = pytest.importorskip("nnunetv2.preprocessing.normalization.default_normalization_schemes")
    data = replace(_data(tmp_path), channels=("CT" if scheme == "ct" else "MRI",))
    preprocessing = _fit(data)
    assert preprocessing.normalisation == (scheme,)
    found = preprocessing.statistics[0]
    properties = {"mean": found.mean, "std": found.std}
    properties |= {"percentile_00_5": found.percentile_00_5, "percentile_99_5": found.percentile_99_5}
    normalise = theirs.CTNormalization if scheme == "ct" else theirs.ZScoreNormalization
    voxels = nib.load(data.training[0].images[0]).get_fdata(dtype=np.float32)
    expected = normalise(use_mask_for_norm=False, intensityproperties=properties).run(voxels.copy())
    image = preprocessing.transforms(keys=("image",))(data.to_monai()[0])["image"]
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)


def test_statistics_are_those_of_the_foreground(tmp_path: Path) -> None:
    data = _data(tmp_path)
    found = _fit(data).statistics[0]
    voxels, label = (np.asanyarray(nib.load(f).dataobj) for f in (data.training[0].images[0], data.training[0].label))
    inside = voxels[label > 0]
    # 10,000 draws with replacement: the mean is off by a hundredth of the standard deviation
    assert abs(found.mean - inside.mean()) < 0.05 * inside.std()
    assert abs(found.std / inside.std() - 1) < 0.05
    np.testing.assert_allclose(
        (found.percentile_00_5, found.percentile_99_5), np.percentile(inside, (0.5, 99.5)), atol=0.1 * inside.std()
    )
    assert inside.min() <= found.minimum <= found.maximum <= inside.max()


def test_fit_takes_the_median_spacing_in_the_target_orientation(tmp_path: Path) -> None:
    cases = []
    for i, (codes, spacing) in enumerate([("RAS", (1, 2, 3)), ("SAR", (4, 2.5, 1.5)), ("LPS", (2, 3, 3.5))]):
        cases += _data(tmp_path / str(i), codes, tuple(map(float, spacing)), 5.0, (30, 30, 30)).training
    data = replace(read_datalist(tmp_path / "0"), training=tuple(cases))
    preprocessing = _fit(data)
    assert preprocessing.spacing == (1.5, 2.5, 3.5)
    assert preprocessing.median_shape == (30, 30, 30)
    assert _fit(data, spacing=(1, 1, 1)).spacing == (1.0, 1.0, 1.0)


def test_ignored_and_undeclared_labels(tmp_path: Path) -> None:
    data = _data(tmp_path, values=(0, 4, 9))
    preprocessing = _fit(data)
    assert preprocessing.label_values == (0, 4, 9)
    assert preprocessing.label_names == ("background", "label_4", "label_9")
    narrow = _fit(replace(data, labels={"background": 0, "label_4": 4}))
    with pytest.raises(DataError, match=r"a: holds undeclared label values; expected \(0, 4\), came \[9\.0\]"):
        narrow.transforms()(data.to_monai()[0])
    ignoring = _fit(replace(data, labels={"background": 0, "label_4": 4}, ignore_label=9))
    label = ignoring.transforms()(data.to_monai()[0])["label"]
    assert label.unique().tolist() == [0, 1, 2]
    assert ignoring.patch_options["ignore_label"] == 2


@pytest.mark.parametrize("kind", ["truncated", "shape", "place", "channels"])
def test_bad_files_are_named_and_not_read_by_itk_instead(tmp_path: Path, kind: str) -> None:
    data = _data(tmp_path)
    preprocessing, case = _fit(data), data.training[0]
    image = nib.load(case.label)
    voxels = np.asanyarray(image.dataobj)
    if kind == "truncated":
        case.images[0].write_bytes(case.images[0].read_bytes()[:-200])
    elif kind == "shape":
        nib.save(nib.Nifti1Image(voxels[:, :, 1:], image.affine), case.label)
    elif kind == "place":
        shifted = image.affine.copy()
        shifted[0, 3] += 5
        nib.save(nib.Nifti1Image(voxels, shifted), case.label)
    else:
        nib.save(nib.Nifti1Image(np.stack([voxels] * 5, -1), image.affine), case.images[0])
    says = {"truncated": "truncated", "shape": "differ in shape", "place": "5 mm apart", "channels": r"5 channel\(s\)"}
    with pytest.raises(DataError, match=says[kind]):
        preprocessing.transforms()(data.to_monai()[0])
    with pytest.raises(DataError, match=says[kind]):
        CacheDataset(data.to_monai(), preprocessing.transforms(), progress=False)


def test_rounding_of_the_labels_affine_does_not_change_its_grid(tmp_path: Path) -> None:
    data = _data(tmp_path)
    case = data.training[0]
    image = nib.load(case.label)
    moved = image.affine.copy()
    moved[:3, 3] += 0.01
    moved[:3, :3] *= 1.0005
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), moved), case.label)
    for spacing in (0.77, 1.0, 1.31):
        item = _fit(data, spacing=(spacing,) * 3).transforms()(data.to_monai()[0])
        assert item["image"].shape == item["label"].shape


def test_files_of_one_volume_big_endian_and_scaled(tmp_path: Path) -> None:
    data = _data(tmp_path)
    preprocessing, case = _fit(data), data.training[0]
    expected = preprocessing.transforms()(data.to_monai()[0])
    image, label = nib.load(case.images[0]), nib.load(case.label)
    scaled = nib.Nifti1Image(image.get_fdata()[..., None], image.affine, image.header.as_byteswapped(">"))
    scaled.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    nib.save(scaled, case.images[0])
    nib.save(nib.Nifti1Image(label.get_fdata()[..., None] + 4e-4, label.affine), case.label)
    item = preprocessing.transforms()(data.to_monai()[0])
    torch.testing.assert_close(item["image"].as_tensor(), expected["image"].as_tensor(), atol=1e-3, rtol=0)
    assert torch.equal(item["label"].as_tensor(), expected["label"].as_tensor())


def test_channels_in_files_of_their_own_or_in_one(tmp_path: Path) -> None:
    items = []
    for layout in ("decathlon", "nnunet"):
        data = read_datalist(write_phantom(tmp_path / layout, cases=1, size=16, layout=layout, channels=2))
        items.append(_fit(data).transforms()(data.to_monai()[0]))
    assert items[0]["image"].shape[0] == 2
    torch.testing.assert_close(items[0]["image"].as_tensor(), items[1]["image"].as_tensor())


def test_cached_and_persistent_items_are_the_same(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    transforms, rows = _fit(data).transforms(), data.to_monai()
    plain = transforms(rows[1])
    assert transforms.get_index_of_first(lambda t: getattr(t, "R", None) is not None) is None  # nothing is random
    persistent = PersistentDataset(rows, transforms, cache_dir=tmp_path / "cache")
    for item in (CacheDataset(rows, transforms, progress=False)[1], persistent[1], persistent[1]):
        for key in ("image", "label"):
            assert np.array_equal(np.asarray(item[key]), np.asarray(plain[key]))
        torch.testing.assert_close(item["affine"], plain["image"].affine)
        torch.testing.assert_close(item["spacing"], torch.tensor(_fit(data).spacing), atol=2e-3, rtol=0)


def test_image_can_be_inverted_by_monai_too(tmp_path: Path) -> None:
    data = _data(tmp_path, "LPS")
    transforms = _fit(data).transforms(keys=("image",))
    item = transforms(data.to_monai()[0])
    back = transforms.inverse({"image": item["image"]})["image"]
    np.testing.assert_allclose(back.affine, nib.load(data.training[0].images[0]).affine, atol=1e-6)


def test_predictions_that_cannot_be_written(tmp_path: Path) -> None:
    data = _data(tmp_path)
    preprocessing, case = _fit(data), data.training[0]
    shape, affine = (26, 22, 15), nib.load(case.images[0]).affine
    out = tmp_path / "out.nii.gz"

    def write(prediction: torch.Tensor, **options: Any) -> None:
        preprocessing.restore(prediction, case=case, path=out, **({"affine": affine} | options))

    with pytest.raises(DataError, match="NaN or Inf"):
        write(torch.full((3, *shape), torch.nan))
    with pytest.raises(DataError, match="unexpected shape"):
        write(torch.zeros(2, *shape))
    with pytest.raises(DataError, match="unknown classes"):
        write(torch.full((1, *shape), 3))
    with pytest.raises(ConfigError, match="without affine"):
        write(torch.zeros(3, *shape), affine=None)
    assert not out.exists()


def test_no_training_case_and_no_foreground(tmp_path: Path) -> None:
    data = _data(tmp_path)
    with pytest.raises(ConfigError, match="at least one training case"):
        Preprocessing.fit(data, [])
    with pytest.raises(ConfigError, match="three numbers"):
        _fit(data, spacing=(1.0, 1.0))
    unlabelled = Case("a", data.training[0].images)
    with pytest.raises(DataError, match="no foreground in any training case"):
        Preprocessing.fit(data, [unlabelled])


def test_real_cases_return_to_their_own_voxels(hippocampus: Path, tmp_path: Path) -> None:
    data = read_datalist(hippocampus)
    cases = data.training[:5]
    preprocessing = Preprocessing.fit(data, cases)
    assert preprocessing.spacing == (1.0, 1.0, 1.0)
    for case, row in zip(cases, data.to_monai(cases), strict=True):
        item = preprocessing.transforms()(row)
        prediction = _one_hot(item["label"])
        path = preprocessing.restore(prediction, case=case, path=tmp_path / "a.nii.gz", affine=item["affine"])
        written, truth = nib.load(path), nib.load(case.label)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj))


def test_sheared_volumes_are_brought_onto_a_grid_of_right_angles(tmp_path: Path) -> None:
    data = _data(tmp_path, angle=0.0)
    case = data.training[0]
    image, label = nib.load(case.images[0]), nib.load(case.label)
    sheared = image.affine @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for source, path in ((image, case.images[0]), (label, case.label)):
        voxels = nib.Nifti1Image(np.asanyarray(source.dataobj), sheared)
        voxels.set_qform(None, code=0)  # a qform can't hold a shear
        nib.save(voxels, path)
    item = _fit(data).transforms()(data.to_monai()[0])
    axes = item["affine"][:3, :3].numpy()
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-6)
    assert item["label"].shape == item["image"].shape
    back = np.linalg.inv(nib.load(case.images[0]).affine) @ item["affine"].numpy()
    where = np.stack(np.meshgrid(*(np.arange(n) for n in item["image"].shape[1:]), [1], indexing="ij")).reshape(4, -1)
    voxels = image.get_fdata()
    normalised = (voxels - voxels.mean()) / voxels.std()
    expected = map_coordinates(normalised, (back @ where)[:3], order=1, mode="nearest")
    np.testing.assert_allclose(item["image"].numpy().ravel(), expected, atol=1e-3)
    masks = [(label.get_fdata() == k).astype(float) for k in range(3)]
    shares = [map_coordinates(mask, (back @ where)[:3], order=1, mode="nearest") for mask in masks]
    clear = np.diff(np.sort(shares, axis=0)[-2:], axis=0)[0] > 1e-3
    np.testing.assert_array_equal(item["label"].numpy().ravel()[clear], np.argmax(shares, axis=0)[clear])
