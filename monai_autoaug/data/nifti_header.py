# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The first bytes of a file: whether it is NIfTI, what it is otherwise, and how large a header says that it is."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from monai_autoaug.errors import DataError

__all__ = ["GZIP", "HEAD", "SUFFIXES", "UNREADABLE", "is_archive", "is_nifti", "nifti_stem", "no_nifti", "parse_header"]

SUFFIXES = (".nii.gz", ".nii")
GZIP = b"\x1f\x8b"
HEAD = 544  # bytes up to which every kind of file below shows what it is; a NIfTI-2 header has 540
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".bz2", ".xz", ".zst")
# what nibabel raises on a header that it can't read
UNREADABLE = (HeaderDataError, HeaderTypeError, ImageFileError, ValueError, OverflowError, KeyError, TypeError)
# position, bytes, what begins so, what to do with it
_UNPACK = "unpack it with a program that you trust, and look at what comes out; this package unpacks nothing"
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, GZIP, "a gzip stream", "call it .nii.gz if it is a compressed NIfTI file"),
    (128, b"DICM", "a DICOM file", "convert the series to NIfTI"),
    (0, b"NRRD", "an NRRD file", "convert it to NIfTI"),
    (0, b"ObjectType", "a MetaImage file", "convert it to NIfTI"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    (0, b"<", "a web page or XML", "download the file itself"),
)


def is_nifti(path: str | Path) -> bool:
    """Whether the name is that of a NIfTI file (hidden files, such as macOS' ``._case.nii.gz``, are not).

    >>> is_nifti("case.nii.gz"), is_nifti("case.nii"), is_nifti("._case.nii.gz"), is_nifti("case.png")
    (True, True, False, False)
    """
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def nifti_stem(path: str | Path) -> str:
    """The file name without its NIfTI suffix.

    >>> nifti_stem("imagesTr/case.01.nii.gz")
    'case.01'
    """
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive, which this package never unpacks.

    >>> is_archive("Task04.tar"), is_archive("case.nii.gz")
    (True, False)
    """
    name = Path(path).name.lower()
    return name.endswith(ARCHIVES) and not name.endswith(SUFFIXES)


def _header_class(head: bytes) -> type[nib.Nifti1Image] | None:
    """NIfTI-1 or NIfTI-2, by the size of the header that the first four bytes tell."""
    for size, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image)):
        if len(head) >= size and size in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
            return kind
    return None


def no_nifti(head: bytes, path: Path, *, expected: str = "a NIfTI-1 or NIfTI-2 header") -> DataError:
    """That a file is none, and what it is as far as its first bytes tell.

    Args:
        head: its first bytes.
        path: the file.
        expected: what they should be.

    >>> print(no_nifti(b"PK" + bytes([3, 4]), Path("a.nii")))
    a.nii: is not a NIfTI file; expected a NIfTI-1 or NIfTI-2 header, came a zip archive. To do: unpack ...
    """
    remedy = "replace the file by the original, or convert it to NIfTI"
    if not head:
        return DataError("is not a NIfTI file", file=path, expected=expected, came="an empty file", remedy=remedy)
    came = f"{len(head)} bytes that begin with {head[:8]!r}"
    if _header_class(head) is not None:
        came, remedy = "a NIfTI file that is not compressed", "call it .nii"
    for place, mark, what, todo in _KINDS:
        if head[place : place + len(mark)] == mark:
            came, remedy = what, todo
            break
    return DataError("is not a NIfTI file", file=path, expected=expected, came=came, remedy=remedy)


def parse_header(head: bytes, path: Path) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header, int]:
    """Read a header as it is on disk.

    Args:
        head: the first `HEAD` bytes.
        path: the file, for messages.

    Returns:
        Image class, header without any repair, and the number of bytes up to the last voxel.

    Raises:
        DataError: it is none, or holds sizes or a voxel type that can't be.
    """
    kind = _header_class(head)
    if kind is None:
        raise no_nifti(head, path)
    header_class = kind.header_class
    try:
        header = header_class(head[: header_class.sizeof_hdr], check=False)
        shape = [int(n) for n in header.get_data_shape()]
        if any(n < 0 for n in shape):
            raise ValueError(f"negative size in {shape}")
        if bytes(header["magic"]).startswith(b"ni"):
            raise ValueError("the voxels are said to be in another file, an .img")
        offset = max(int(header["vox_offset"]), header.single_vox_offset)
        size = offset + math.prod(shape) * header.get_data_dtype().itemsize
    except UNREADABLE as error:
        raise DataError(
            f"has a header that can't be read ({error})", file=path, expected="a NIfTI header as the standard has it",
            came=str(error), remedy="export or convert the file again",
        ) from error  # fmt: skip
    return kind, header, size
