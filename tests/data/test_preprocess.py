# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessing agrees with SimpleITK's resampling and nnU-Net's normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, PersistentDataset
from preprocess_helpers import (
    ORIENTATIONS,
    fit,
    one_case,
    resampled_by_sitk,
)

from monai_autoaug.data import Case, Preprocessing, read_datalist, write_phantom
from monai_autoaug.errors import ConfigError, DataError


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_image_is_resampled_as_by_simpleitk(tmp_path: Path, codes: str) -> None:
    data = one_case(tmp_path, codes)
    item = fit(data, spacing=(1.5, 1.1, 1.9)).transforms()(data.to_monai()[0])
    image, affine = item["image"], item["image"].affine.numpy()
    assert "".join(nib.aff2axcodes(affine)) == "RAS"
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.5, 1.1, 1.9), atol=1e-6)
    source = nib.load(data.training[0].images[0])
    voxels = source.get_fdata()
    expected = resampled_by_sitk((voxels - voxels.mean()) / voxels.std(), source.affine, affine, image.shape[1:])
    inside = np.isfinite(expected)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(image[0].numpy()[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_label_moves_with_the_image(tmp_path: Path, codes: str) -> None:
    data = one_case(tmp_path, codes)
    item = fit(data, spacing=(1.5, 1.1, 1.9)).transforms()(data.to_monai()[0])
    label = item["label"]
    assert label.dtype == torch.uint8
    assert label.shape == item["image"].shape
    torch.testing.assert_close(label.affine, item["image"].affine)
    source = nib.load(data.training[0].label)
    voxels = np.asanyarray(source.dataobj)
    shares = [resampled_by_sitk(voxels == k, source.affine, label.affine.numpy(), label.shape[1:]) for k in range(3)]
    ordered = np.sort(shares, axis=0)
    clear = np.isfinite(shares[0]) & (ordered[-1] - ordered[-2] > 1e-3)
    np.testing.assert_array_equal(label[0].numpy()[clear], np.argmax(shares, axis=0)[clear])


@pytest.mark.parametrize("scheme", ["zscore", "ct"])
def test_normalisation_equals_nnunets(tmp_path: Path, scheme: str) -> None:
    theirs = pytest.importorskip("nnunetv2.preprocessing.normalization.default_normalization_schemes")
    data = replace(one_case(tmp_path), channels=("CT" if scheme == "ct" else "MRI",))
    preprocessing = fit(data)
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
    data = one_case(tmp_path)
    found = fit(data).statistics[0]
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
        cases += one_case(tmp_path / str(i), codes, tuple(map(float, spacing)), 5.0, (30, 30, 30)).training
    data = replace(read_datalist(tmp_path / "0"), training=tuple(cases))
    preprocessing = fit(data)
    assert preprocessing.spacing == (1.5, 2.5, 3.5)
    assert preprocessing.median_shape == (30, 30, 30)
    assert fit(data, spacing=(1, 1, 1)).spacing == (1.0, 1.0, 1.0)


def test_ignored_and_undeclared_labels(tmp_path: Path) -> None:
    data = one_case(tmp_path, values=(0, 4, 9))
    preprocessing = fit(data)
    assert preprocessing.label_values == (0, 4, 9)
    assert preprocessing.label_names == ("background", "label_4", "label_9")
    narrow = fit(replace(data, labels={"background": 0, "label_4": 4}))
    with pytest.raises(DataError, match=r"a: holds undeclared label values; expected \(0, 4\), came \[9\.0\]"):
        narrow.transforms()(data.to_monai()[0])
    ignoring = fit(replace(data, labels={"background": 0, "label_4": 4}, ignore_label=9))
    label = ignoring.transforms()(data.to_monai()[0])["label"]
    assert label.unique().tolist() == [0, 1, 2]
    assert ignoring.patch_options["ignore_label"] == 2


@pytest.mark.parametrize("kind", ["truncated", "shape", "place", "channels"])
def test_bad_files_are_named_and_not_read_by_itk_instead(tmp_path: Path, kind: str) -> None:
    data = one_case(tmp_path)
    preprocessing, case = fit(data), data.training[0]
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
    data = one_case(tmp_path)
    case = data.training[0]
    image = nib.load(case.label)
    moved = image.affine.copy()
    moved[:3, 3] += 0.01
    moved[:3, :3] *= 1.0005
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), moved), case.label)
    for spacing in (0.77, 1.0, 1.31):
        item = fit(data, spacing=(spacing,) * 3).transforms()(data.to_monai()[0])
        assert item["image"].shape == item["label"].shape


def test_files_of_one_volume_big_endian_and_scaled(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    preprocessing, case = fit(data), data.training[0]
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
        items.append(fit(data).transforms()(data.to_monai()[0]))
    assert items[0]["image"].shape[0] == 2
    torch.testing.assert_close(items[0]["image"].as_tensor(), items[1]["image"].as_tensor())


def test_cached_and_persistent_items_are_the_same(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    transforms, rows = fit(data).transforms(), data.to_monai()
    plain = transforms(rows[1])
    assert transforms.get_index_of_first(lambda t: getattr(t, "R", None) is not None) is None  # nothing is random
    persistent = PersistentDataset(rows, transforms, cache_dir=tmp_path / "cache")
    for item in (CacheDataset(rows, transforms, progress=False)[1], persistent[1], persistent[1]):
        for key in ("image", "label"):
            assert np.array_equal(np.asarray(item[key]), np.asarray(plain[key]))
        torch.testing.assert_close(item["affine"], plain["image"].affine)
        torch.testing.assert_close(item["spacing"], torch.tensor(fit(data).spacing), atol=2e-3, rtol=0)


def test_image_can_be_inverted_by_monai_too(tmp_path: Path) -> None:
    data = one_case(tmp_path, "LPS")
    transforms = fit(data).transforms(keys=("image",))
    item = transforms(data.to_monai()[0])
    back = transforms.inverse({"image": item["image"]})["image"]
    np.testing.assert_allclose(back.affine, nib.load(data.training[0].images[0]).affine, atol=1e-6)


def test_no_training_case_and_no_foreground(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    with pytest.raises(ConfigError, match="at least one training case"):
        Preprocessing.fit(data, [])
    with pytest.raises(ConfigError, match="three numbers"):
        fit(data, spacing=(1.0, 1.0))
    unlabelled = Case("a", data.training[0].images)
    with pytest.raises(DataError, match="no foreground in any training case"):
        Preprocessing.fit(data, [unlabelled])
