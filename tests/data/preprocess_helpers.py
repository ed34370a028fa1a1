# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Volumes whose place is seen in their values, and SimpleITK's resampling of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  # the name that its own documentation uses
import torch
from scipy.spatial.transform import Rotation

from monai_autoaug.data import DataList, Preprocessing, read_datalist

ORIENTATIONS = ["RAS", "LPS", "PIL", "SAR", "ASL"]


def smooth_volume(shape: tuple[int, ...]) -> np.ndarray:
    """A smooth volume, so that interpolation errors are small and shifts are seen."""
    grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return (100 + 40 * np.sin(grid[0] + 2 * grid[1]) + 30 * np.cos(1.5 * grid[2] - grid[0])).astype(np.float32)


def ball_label(shape: tuple[int, ...]) -> np.ndarray:
    """Two touching half ellipsoids: labels 1 and 2."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = grid[0] ** 2 + (grid[1] * 1.2) ** 2 + (grid[2] * 1.1 - 0.1) ** 2 < 0.5
    return np.where(inside, np.where(grid[0] + 0.3 * grid[1] > 0.1, 2, 1), 0).astype(np.uint8)


def rotated_affine(codes: str, spacing: tuple[float, float, float], angle: float) -> np.ndarray:
    """A rotated affine whose axes point as ``codes`` say."""
    ornt = nib.orientations.axcodes2ornt(codes)
    axes = np.zeros((3, 3))
    axes[ornt[:, 0].astype(int), range(3)] = ornt[:, 1]
    turn = Rotation.from_euler("xyz", [angle, -angle / 2, angle / 3], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = (-30, 12, 55)
    return affine


def one_case(
    folder: Path, codes: str = "RAS", spacing: tuple[float, float, float] = (1.0, 1.3, 2.4), angle: float = 17.0,
    shape: tuple[int, ...] = (26, 22, 15), values: tuple[int, ...] = (0, 1, 2),
) -> DataList:
    """A data set of one case."""
    affine = rotated_affine(codes, spacing, angle)
    label = np.array(values)[ball_label(shape)].astype(np.uint16)
    for place, voxels in (("images", smooth_volume(shape)), ("labels", label)):
        (folder / place).mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, affine), folder / place / "a.nii.gz")
    return read_datalist(folder)


def fit(data: DataList, **options: Any) -> Preprocessing:
    return Preprocessing.fit(data, data.training, **options)


def one_hot(label: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(label[0]).long(), classes).movedim(-1, 0).float()


def to_sitk(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """The same volume for SimpleITK: axes reversed in memory, x and y of world coordinates negated (LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / spacing).flatten().tolist())
    return image


def resampled_by_sitk(voxels: np.ndarray, affine: np.ndarray, onto: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """SimpleITK's linear resampling; NaN outside the volume."""
    reference = to_sitk(np.zeros(shape, np.float32), onto)
    source = to_sitk(voxels.astype(np.float32), affine)
    return sitk.GetArrayFromImage(sitk.Resample(source, reference, sitk.Transform(), sitk.sitkLinear, np.nan)).T
