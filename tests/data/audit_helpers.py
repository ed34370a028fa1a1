# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ways to spoil a NIfTI file."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

Edit = Callable[[nib.Nifti1Image], nib.Nifti1Image]


def edit_file(path: Path, edit: Edit) -> None:
    """Load a file, change it, write it again."""
    image = nib.load(path)
    image = type(image)(np.asanyarray(image.dataobj), image.affine, image.header)
    nib.save(edit(image), path)


def like(image: nib.Nifti1Image, voxels: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    """Other voxels, or another affine, in both forms."""
    affine = image.affine if affine is None else affine
    out = type(image)(voxels, affine, dtype=voxels.dtype)
    out.set_sform(affine, code=1)
    return out


def set_voxel(position: tuple[int, int, int], value: float, dtype: Any = np.float32) -> Edit:
    """One voxel gets a value."""

    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        voxels = np.asanyarray(image.dataobj).astype(dtype)
        voxels[position] = value
        return like(image, voxels)

    return edit


def moved(matrix: np.ndarray) -> Edit:
    """The same voxels elsewhere."""
    return lambda image: like(image, np.asanyarray(image.dataobj), image.affine @ matrix)


def shift(mm: float) -> Edit:
    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        affine = image.affine.copy()
        affine[0, 3] += mm
        return like(image, np.asanyarray(image.dataobj), affine)

    return edit


def sheared(cosine: float) -> Edit:
    """A shear that only the sform can hold."""

    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        zooms = np.array(image.header.get_zooms()[:3])
        axes = image.affine[:3, :3] / zooms
        axes[:, 1] = cosine * axes[:, 0] + np.sqrt(1 - cosine**2) * axes[:, 1]
        affine = image.affine.copy()
        affine[:3, :3] = axes * zooms
        out = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
        out.set_qform(None, code=0)
        return out

    return edit


def coded(sform: int, qform: int) -> Edit:
    def edit(image: nib.Nifti1Image) -> nib.Nifti1Image:
        image.set_sform(image.affine, code=sform)
        image.set_qform(image.affine, code=qform)
        return image

    return edit


def contradiction(image: nib.Nifti1Image) -> nib.Nifti1Image:
    turned = image.affine.copy()
    turned[:3, :2] = turned[:3, 1::-1]
    image.set_qform(turned, code=1)
    return image


def on(edit: Edit) -> Callable[[Path], None]:
    """An edit of the loaded image, as an edit of the file."""
    return lambda path: edit_file(path, edit)


def header(offset: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of the header on disk."""

    def edit(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[offset : offset + len(value)] = value
        path.write_bytes(gzip.compress(bytes(content)))

    return edit


def float_bytes(value: float) -> bytes:
    return np.float32(value).tobytes()


def structured(image: nib.Nifti1Image) -> nib.Nifti1Image:
    voxels = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nib.Nifti1Image(voxels, image.affine)


def volumes(count: int) -> Edit:
    return lambda image: like(image, np.stack([np.asanyarray(image.dataobj)] * count, -1))


def voxels(function: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda image: like(image, function(np.asanyarray(image.dataobj)))
