# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""NIfTI files, written in one step: no half-written file is ever seen, and the same image gives the same bytes."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
from numpy.typing import NDArray

from monai_autoaug.data.nifti_header import is_nifti
from monai_autoaug.errors import DataError
from monai_autoaug.writing import write_whole

__all__ = ["write_like", "write_nifti", "write_stream"]


def write_nifti(path: str | Path, image: nib.Nifti1Image) -> Path:
    """Write an image to a temporary file beside ``path`` and rename it, so that no half-written file is ever seen.

    The same image gives the same bytes (no time stamp in the gzip header).

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; missing folders are made.
        image: nibabel's image.

    Returns:
        The path written.

    Raises:
        DataError: the name is not that of a NIfTI file.
    """
    return write_stream(Path(path), image.to_bytes())


def write_like(path: str | Path, voxels: NDArray[Any], header: nib.Nifti1Header) -> Path:
    """Write voxels under the geometry of another file: shape, qform, sform, codes and spacing bit for bit.

    What is not geometry (description, intent, display range, extensions, which may name a patient) is not copied.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        voxels: of the shape that the header tells, trailing axes of several volumes left out; an integer type.
        header: the other file's header as on disk (`read_header`).

    Returns:
        The path written.

    Raises:
        DataError: the name is not that of a NIfTI file, or the voxels don't fit the header.
    """
    header = header.copy()
    shape = tuple(header.get_data_shape())
    if math.prod(shape[3:]) == 1:
        voxels = voxels.reshape(voxels.shape[:3] + shape[3:])
    else:
        shape = shape[:3]
        header.set_data_shape(shape)
    if voxels.shape != shape:
        raise DataError("does not fit the header", file=path, expected=shape, came=voxels.shape)
    header.set_data_dtype(voxels.dtype)
    for name in ("scl_inter", "cal_max", "cal_min", "intent_code", "intent_p1", "intent_p2", "intent_p3", "vox_offset"):
        header[name] = 0
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        if name in header.keys():  # NIfTI-2 has no db_name
            header[name] = b""
    header["scl_slope"], header["magic"], header["vox_offset"] = 1, header.single_magic, header.single_vox_offset
    data = voxels.astype(voxels.dtype.newbyteorder(header.endianness)).tobytes(order="F")
    # four bytes 0 say that no extension follows
    return write_stream(Path(path), header.binaryblock + bytes(4) + data)


def write_stream(path: Path, data: bytes) -> Path:
    """Write a NIfTI file's bytes, compressed if its name says so, to a temporary file, and rename it.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; missing folders are made.
        data: header, extensions and voxels.

    Returns:
        The path written.

    Raises:
        DataError: the name is not that of a NIfTI file.
    """
    if not is_nifti(path):
        raise DataError("is not a NIfTI name", file=path, expected="a name ending in .nii or .nii.gz", came=path.name)
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    return write_whole(path, lambda file: file.write_bytes(data))
