# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""NIfTI files, read strictly (whole stream, checksum, header as it is on disk) and written atomically.

SimpleITK fills a truncated file with zeros and MONAI falls back from nibabel to ITK when nibabel refuses; so every
file of this package is read here and nowhere else.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from monai.data.image_reader import NibabelReader
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray

from monai_autoaug.errors import DataError
from monai_autoaug.writing import write_whole

__all__ = [
    "Nifti",
    "StrictNibabelReader",
    "corner_shift",
    "is_nifti",
    "nifti_stem",
    "read_header",
    "read_nifti",
    "write_like",
    "write_nifti",
]

SUFFIXES = (".nii.gz", ".nii")
_CHUNK = 1 << 22
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_UNREADABLE = (HeaderDataError, HeaderTypeError, ImageFileError, ValueError, OverflowError, MemoryError)


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


def corner_shift(first: NDArray[Any], second: NDArray[Any], shape: Sequence[int]) -> float:
    """By how many mm two affines disagree at worst, over the corners of a volume of ``shape``.

    >>> corner_shift(np.eye(4), np.diag([1.0, 1.0, 1.5, 1.0]), (4, 4, 11))
    5.0
    """
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape[:3]), [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


@dataclass(frozen=True)
class Nifti:
    """One NIfTI file in memory.

    Args:
        path: where it came from.
        header: the header exactly as on disk (nibabel repairs some fields in ``image.header``, such as a zero spacing).
        image: nibabel's image; ``numpy.asanyarray(image.dataobj)`` gives the scaled voxels.
    """

    path: Path
    header: nib.Nifti1Header
    image: nib.Nifti1Image


def _open(path: Path) -> IO[bytes]:
    """Open the (decompressed) stream of a file."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _count(path: Path) -> int:
    """How many (decompressed) bytes can be read before the stream breaks."""
    total = 0
    try:
        with _open(path) as stream:
            while chunk := stream.read(_CHUNK):
                total += len(chunk)
    except _DAMAGED:
        return total
    return total


def _image_class(head: bytes, path: Path) -> type[nib.Nifti1Image]:
    """NIfTI-1 or NIfTI-2, by the size of the header that the first four bytes tell."""
    for size, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image)):
        if size in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
            return kind
    raise DataError(
        "is not a NIfTI file",
        file=path,
        expected="a NIfTI-1 or NIfTI-2 header",
        came=f"{len(head)} bytes that begin with {head[:8]!r}" if head else "an empty file",
        remedy="replace the file by the original, or convert it to NIfTI",
    )


def _parse_header(head: bytes, path: Path) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header, int]:
    """Image class, header as on disk, and the number of bytes up to the last voxel."""
    kind = _image_class(head, path)
    header_class = kind.header_class
    block = header_class.sizeof_hdr
    try:
        header = header_class(head[:block], check=False)
        shape = [int(n) for n in header.get_data_shape()]
        if any(n < 0 for n in shape):
            raise ValueError(f"negative size in {shape}")
        offset = max(int(header["vox_offset"]), header.single_vox_offset)
        size = offset + math.prod(shape) * header.get_data_dtype().itemsize
    except (*_UNREADABLE, KeyError) as error:
        raise DataError(
            f"has a header that can't be read ({error})", file=path, remedy="export or convert the file again"
        ) from error
    return kind, header, size


def _raise_io(path: Path, error: OSError) -> None:
    """Say in one sentence why a file can't be opened."""
    if path.is_symlink() and not path.exists():
        came = f"a link to {os.readlink(path)}, which is not there"
    else:
        came = error.strerror or str(error)
    raise DataError(
        "can't be opened", file=path, expected="a NIfTI file", came=came, remedy="check the path and its permissions"
    ) from error


def read_header(path: str | Path) -> nib.Nifti1Header:
    """The header of a file exactly as on disk, without reading its voxels.

    Raises:
        DataError: the file can't be opened or is no NIfTI file.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            head = stream.read(540)
    except _DAMAGED as error:
        raise _damaged(path, 0, error) from error
    except OSError as error:
        _raise_io(path, error)
    return _parse_header(head, path)[1]


def _damaged(path: Path, size: int, error: Exception | None) -> DataError:
    """A truncated or corrupted stream, with byte counts."""
    came = f"{_count(path):,} readable bytes in a file of {path.stat().st_size:,} bytes"
    return DataError(
        "is truncated or damaged" + (f" ({error})" if error else ""),
        file=path,
        expected=f"{size:,} bytes of header and voxels" if size else "a readable stream",
        came=came,
        remedy="copy or export the file again",
    )


def read_nifti(path: str | Path) -> Nifti:
    """Read a whole ``.nii`` or ``.nii.gz`` file, its checksum included.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, empty, truncated, corrupted or no NIfTI file; the message names byte counts.
    """
    path = Path(path)
    size = 0
    try:
        with _open(path) as stream:
            head = stream.read(540)
            kind, header, size = _parse_header(head, path)
            data = head + stream.read(max(size - len(head), 0))
            while stream.read(_CHUNK):  # to the end, so that gzip compares its checksum
                pass
    except _DAMAGED as error:
        raise _damaged(path, size, error) from error
    except OSError as error:
        _raise_io(path, error)
    except (MemoryError, OverflowError) as error:  # mostly a header that declares far more than the file holds
        if _count(path) < size:
            raise _damaged(path, size, None) from error
        raise DataError("does not fit into memory", file=path, came=f"{size:,} bytes") from error
    if len(data) < size:
        raise _damaged(path, size, None)
    try:
        image = kind.from_stream(BytesIO(data))
    except (*_UNREADABLE, KeyError) as error:
        raise DataError(
            f"has a header that can't be read ({error})", file=path, remedy="export or convert the file again"
        ) from error
    return Nifti(path, header, image)


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
    return _write_stream(Path(path), image.to_bytes())


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
    return _write_stream(Path(path), header.binaryblock + bytes(4) + data)


def _write_stream(path: Path, data: bytes) -> Path:
    """Write a NIfTI file's bytes, compressed if its name says so, to a temporary file, and rename it."""
    if not is_nifti(path):
        raise DataError("is not a NIfTI name", file=path, expected="a name ending in .nii or .nii.gz", came=path.name)
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    return write_whole(path, lambda file: file.write_bytes(data))


class StrictNibabelReader(NibabelReader):
    """MONAI's nibabel reader over `read_nifti`: no partial file, no silent change of the affine, singletons squeezed.

    MONAI's own reader replaces the sform by the qform when their spacings contradict ``pixdim``; here the affine is
    nibabel's (the sform where it has a code, else the qform), the one that predictions are written with.
    """

    def __init__(self) -> None:
        super().__init__(squeeze_non_spatial_dims=True)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """Read one file, or several to be stacked as channels."""
        if kwargs:
            raise TypeError(f"StrictNibabelReader.read takes no options, got {sorted(kwargs)}")
        files = [data] if isinstance(data, (str, Path)) else list(data)
        self.filenames = files
        images = [read_nifti(f).image for f in files]
        return images if len(images) > 1 else images[0]
