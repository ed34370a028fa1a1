# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Labels that resampling loses are foretold: exactly those that the real transforms lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from audit_helpers import edit_file, like
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd
from scipy.spatial.transform import Rotation

from monai_autoaug.data import Split, audit, read_datalist, write_phantom
from monai_autoaug.data.audit_resampling import lost, median_spacing
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.geometry import resampled_grid
from monai_autoaug.data.nifti import write_nifti
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.data.volume_transforms import ResampleLabeld


def anatomy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One large label and many small ones: single voxels, lines, sheets."""
    labels = np.zeros(shape, np.int32)
    labels[: shape[0] // 2] = 1
    for value in range(2, 14):
        at = [int(rng.integers(n)) for n in shape]
        size = [int(rng.choice([1, 1, 2, 4])) for _ in shape]
        labels[tuple(slice(a, a + s) for a, s in zip(at, size, strict=True))] = value
    labels[:, :, int(rng.integers(shape[2]))][4:9, 4:9] = 14
    return labels


def placed(rng: np.random.Generator, spacing: Any, oblique: bool) -> np.ndarray:
    """An affine with axes in any order and direction."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if oblique:
        axes = Rotation.from_euler("xyz", rng.normal(0, 10, 3), degrees=True).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, rng.normal(0, 20, 3)
    return affine


def resampled(labels: np.ndarray, affine: np.ndarray, spacing: Any, orientation: str) -> tuple[set[int], Any]:
    """The labels that are left once MONAI and the package's own transform have resampled, and the new shape."""
    item: Any = {
        key: MetaTensor(torch.as_tensor(labels[None]), affine=torch.as_tensor(affine)) for key in ("image", "label")
    }
    item = Orientationd(("image", "label"), axcodes=orientation, labels=None)(item)
    item = Spacingd("image", pixdim=spacing, mode="bilinear", padding_mode="border", dtype=np.float32)(item)
    item = ResampleLabeld("label", reference="image")(item)
    return {int(v) for v in item["label"].unique()}, tuple(item["label"].shape[1:])


@pytest.mark.parametrize("seed", range(8))
def test_exactly_what_the_transforms_lose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = anatomy(rng, (17, 14, 15))
    affine = placed(rng, rng.uniform(0.6, 2, 3), oblique=seed % 2 == 1)
    spacing, orientation = tuple(float(s) for s in rng.uniform(0.8, 3, 3).round(2)), ["RAS", "SAR", "LPI"][seed % 3]
    left, shape = resampled(labels, affine, spacing, orientation)
    to_source, size = resampled_grid(affine, labels.shape, spacing, orientation)
    assert size == shape
    counts = {int(v): int(n) for v, n in zip(*np.unique(labels, return_counts=True), strict=True)}
    assert set(lost(labels, to_source, size, counts)) == set(counts) - left


def test_something_is_lost_and_something_is_kept() -> None:
    """So that the comparison above compares."""
    gone = kept = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels = anatomy(rng, (17, 14, 15))
        affine = placed(rng, rng.uniform(0.6, 2, 3), oblique=seed % 2 == 1)
        counts = {int(v): 1 for v in np.unique(labels)}
        to_source, size = resampled_grid(affine, labels.shape, (2, 2, 2), "RAS")
        found = len(lost(labels, to_source, size, counts))
        gone, kept = gone + found, kept + len(counts) - found
    assert gone > 10
    assert kept > 10


def test_a_sheet_between_the_new_planes_is_lost_however_large_it_is() -> None:
    labels = np.zeros((60, 60, 9), np.int32)
    labels[:, :, 1] = 1
    assert lost(labels, np.diag([1.0, 1, 3, 1]), (60, 60, 3), {1: 3600}) == [1]
    assert lost(labels, np.diag([1.0, 1, 1, 1]), (60, 60, 9), {1: 3600}) == []


def spotted(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """A single voxel of a label in a corner of the volume that has none."""
    voxels = np.asanyarray(image.dataobj).copy()
    voxels[voxels == 2] = 0
    voxels[1, 1, 1] = 2
    return like(image, voxels)


def test_the_audit_warns_of_it(data: DataList) -> None:
    case = data.training[1]
    assert case.label is not None
    edit_file(case.label, spotted)
    found = [f for f in audit(data, spacing=(6.0, 6.0, 6.0)) if f.case == case.name]
    assert [(f.check, f.severity, f.case) for f in found] == [("lost_label", "warn", case.name)]
    assert found[0].file == str(case.label.relative_to(data.folder))
    assert 'loses the label "body"' in found[0].message
    assert found[0].expected == "at least one voxel of 6 x 6 x 6 mm"
    assert found[0].came.startswith("none of 1 voxels of ")
    assert "--spacing" in found[0].remedy
    assert audit(data, spacing=(0.5, 0.5, 0.5)) == []


def test_the_target_is_the_median_of_what_is_learned_from(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=5, size=16))
    parts = Split(data.training[:3], (), data.training[3:])
    for cases in (data.training, data.training[:3]):
        assert median_spacing(data.folder, cases, "RAS") == Preprocessing.fit(data, cases).spacing
    small = data.training[0]
    assert small.label is not None
    edit_file(small.label, spotted)
    coarse = [np.diag([9.0, 9, 9, 1])] * 2
    for case, matrix in zip(data.training[3:], coarse, strict=True):
        for path in (*case.images, case.label):
            edit_file(path, lambda i, m=matrix: like(i, np.asanyarray(i.dataobj), i.affine @ m))
    told = {f.check for f in audit(data, parts=parts) if f.case == small.name}
    assert told <= {"lost_label"}
    header = nib.load(small.images[0]).header
    header["pixdim"][1] = 0
    small.images[0].write_bytes(b"")
    assert median_spacing(data.folder, data.training[:3], "RAS") == Preprocessing.fit(data, data.training[1:3]).spacing


def test_no_target_without_a_header_that_can_be_used(data: DataList) -> None:
    for case in data.training:
        case.images[0].write_bytes(b"")
    assert median_spacing(data.folder, data.training, "RAS") is None
    assert {f.check for f in audit(data)} == {"readable"}


def test_a_label_that_is_not_resampled_loses_nothing(tmp_path: Path) -> None:
    """One voxel of each label, on the target's own grid."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels.flat[:4] = range(4)
    for name, voxels in (("images", labels.astype(np.int16)), ("labels", labels)):
        write_nifti(tmp_path / name / "a.nii", nib.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])))
    data = read_datalist(tmp_path)
    assert audit(data) == []
    assert {f.check for f in audit(replace(data), spacing=(3, 3, 3))} == {"lost_label"}
