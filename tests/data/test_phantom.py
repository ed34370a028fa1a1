# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The synthetic data set: same seed, same bytes; anatomy, geometry and contrast vary between subjects."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.errors import ConfigError


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second, other = (
        _digest(write_phantom(tmp_path / name, cases=2, size=24, seed=seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    images = [f for f in first if f.startswith("imagesTr")]
    assert len(images) == 2
    assert all(first[f] != other[f] for f in images)


def test_more_cases_keep_the_first_ones(tmp_path: Path) -> None:
    few, many = _digest(write_phantom(tmp_path / "a", cases=1)), _digest(write_phantom(tmp_path / "b", cases=2))
    del few["dataset.json"], many["dataset.json"]
    assert few.items() <= many.items()


def test_anatomy_and_geometry(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=8))
    volumes, contrasts, directions = [], [], set()
    for case in data.training:
        image, label = nib.load(case.images[0]), nib.load(case.label)
        voxels, classes = np.asanyarray(image.dataobj), np.asanyarray(label.dataobj)
        assert image.shape == label.shape
        assert all(abs(n - s) <= 3 for n, s in zip(image.shape, (48, 48, 36), strict=True))
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)
        zooms = np.array(image.header.get_zooms())
        assert zooms[2] / zooms[0] > 1.15  # anisotropic
        direction = image.affine[:3, :3] / zooms
        np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-5)  # a rotation
        assert np.abs(direction).max(axis=0).min() < 0.9999
        directions.add(nib.aff2axcodes(image.affine)[0])
        assert set(np.unique(classes)) == {0, 1, 2, 3}
        hook, count = components(np.isin(classes, (1, 2)))
        assert np.bincount(hook.ravel())[1:].max() > 0.95 * (hook > 0).sum()  # one piece, but for a stray voxel
        volumes.append([(classes == k).sum() for k in (1, 2, 3)])
        tissue = voxels[(classes == 0) & (voxels > 0.4 * np.median(voxels[classes > 0]))].mean()
        contrasts.append([voxels[classes == k].mean() / tissue for k in (1, 2, 3)])
    assert directions == {"R", "L"}
    spread = np.std(volumes, axis=0) / np.mean(volumes, axis=0)
    assert np.all(spread > 0.1)
    assert np.all(np.std(contrasts, axis=0) > 0.02)
    assert np.all(np.mean(volumes, axis=0) > 150)


def test_two_channels_share_the_anatomy(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=1, size=24, layout="nnunet", channels=2))
    first, second = (np.asanyarray(nib.load(f).dataobj).astype(float) for f in data.training[0].images)
    classes = np.asanyarray(nib.load(data.training[0].label).dataobj)
    inside = first > np.median(first[classes > 0]) * 0.4

    def ratio(x: np.ndarray) -> float:
        return x[classes == 3].mean() / x[inside & (classes == 0)].mean()

    assert ratio(first) < 0.95 < 1.1 < ratio(second)  # the round structure is dark in one and bright in the other


def test_regions_and_ignore(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=1, size=24, layout="nnunet", regions=True, ignore=True))
    classes = np.asanyarray(nib.load(data.training[0].label).dataobj)
    assert data.regions == ((1, 2), (1,), (3,))
    assert np.all(classes[:, :, 2] == data.ignore_label)
    assert not np.any(classes[:, :, 0] == data.ignore_label)


@pytest.mark.parametrize(
    "options", [{"cases": 0}, {"size": 8}, {"channels": 3}, {"layout": "bids"}, {"regions": True}, {"ignore": True}]
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        write_phantom(tmp_path, **options)


def test_leftovers_of_another_set_are_refused(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=2, size=16)
    write_phantom(tmp_path, cases=2, size=16)
    with pytest.raises(ConfigError, match="phantom_001"):
        write_phantom(tmp_path, cases=1, size=16)
