# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Predictions return to the grid of the image they were made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from preprocess_helpers import (
    ORIENTATIONS,
    fit,
    one_case,
    one_hot,
    resampled_by_sitk,
)
from scipy.ndimage import map_coordinates

from monai_autoaug.data import Preprocessing, read_datalist, write_phantom
from monai_autoaug.data.restore import to_grid
from monai_autoaug.errors import ConfigError, DataError


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_restored_probabilities_agree_with_simpleitk(tmp_path: Path, codes: str) -> None:
    data = one_case(tmp_path, codes)
    case = data.training[0]
    preprocessing = fit(data, spacing=(1.5, 1.1, 1.9))
    item = preprocessing.transforms()(data.to_monai()[0])
    probabilities = torch.softmax(4 * one_hot(item["label"]) + torch.randn(3, *item["label"].shape[1:]), 0)
    affine = item["image"].affine
    path = preprocessing.restore(probabilities, case=case, path=tmp_path / "out" / "a.nii.gz", affine=affine)
    written, source = nib.load(path), nib.load(case.images[0])
    shares = [resampled_by_sitk(p.numpy(), affine.numpy(), source.affine, source.shape) for p in probabilities]
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
    data = one_case(tmp_path, codes, values=(0, 5, 300))
    case = data.training[0]
    preprocessing = fit(data)
    item = preprocessing.transforms()(data.to_monai()[0])
    prediction = item["label"].as_tensor() if as_classes else one_hot(item["label"])
    affine = item["image"].affine.numpy()
    written = nib.load(preprocessing.restore(prediction, case=case, path=tmp_path / "a.nii", affine=affine))
    truth = nib.load(case.label)
    assert written.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj))
    assert written.header["sform_code"] == truth.header["sform_code"]
    np.testing.assert_array_equal(written.affine, truth.affine)


@pytest.mark.parametrize("as_classes", [False, True])
def test_round_trip_with_resampling_is_close(tmp_path: Path, as_classes: bool) -> None:
    data = one_case(tmp_path, "LIP", shape=(40, 36, 30), spacing=(1.0, 1.1, 1.5))
    preprocessing = fit(data, spacing=(1.3, 1.0, 0.9))
    item = preprocessing.transforms()(data.to_monai()[0])
    shares = MetaTensor(one_hot(item["label"].as_tensor()), affine=item["image"].affine)
    prediction = item["label"] if as_classes else shares
    path = preprocessing.restore(prediction, case=data.training[0], path=tmp_path / "a.nii.gz")
    ours, truth = (np.asanyarray(nib.load(f).dataobj) for f in (path, data.training[0].label))
    for k in (1, 2):
        assert 2 * np.sum((ours == k) & (truth == k)) / (np.sum(ours == k) + np.sum(truth == k)) > 0.97


def test_regions_are_written_as_nnunet_writes_them(tmp_path: Path) -> None:
    labels = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")
    folder = write_phantom(tmp_path, cases=1, size=16, layout="nnunet", regions=True, ignore=True)
    content = json.loads((folder / "dataset.json").read_text())
    data = read_datalist(folder)
    preprocessing = fit(data)
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


def test_predictions_that_cannot_be_written(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    preprocessing, case = fit(data), data.training[0]
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


def test_real_cases_return_to_their_own_voxels(hippocampus: Path, tmp_path: Path) -> None:
    data = read_datalist(hippocampus)
    cases = data.training[:5]
    preprocessing = Preprocessing.fit(data, cases)
    assert preprocessing.spacing == (1.0, 1.0, 1.0)
    for case, row in zip(cases, data.to_monai(cases), strict=True):
        item = preprocessing.transforms()(row)
        prediction = one_hot(item["label"])
        path = preprocessing.restore(prediction, case=case, path=tmp_path / "a.nii.gz", affine=item["affine"])
        written, truth = nib.load(path), nib.load(case.label)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj))


def test_sheared_volumes_are_brought_onto_a_grid_of_right_angles(tmp_path: Path) -> None:
    data = one_case(tmp_path, angle=0.0)
    case = data.training[0]
    image, label = nib.load(case.images[0]), nib.load(case.label)
    sheared = image.affine @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for source, path in ((image, case.images[0]), (label, case.label)):
        voxels = nib.Nifti1Image(np.asanyarray(source.dataobj), sheared)
        voxels.set_qform(None, code=0)  # a qform can't hold a shear
        nib.save(voxels, path)
    item = fit(data).transforms()(data.to_monai()[0])
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
