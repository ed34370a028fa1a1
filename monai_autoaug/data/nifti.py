# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""NIfTI files, read strictly: the whole stream, its checksum, and the header as it is on disk.

SimpleITK fills a truncated file with zeros and MONAI falls back from nibabel to ITK when nibabel refuses; so every
file of this package is read here and nowhere else.
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from monai.data.image_reader import NibabelReader
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from monai_autoaug.data.nifti_header import (
    GZIP,
    HEAD,
    SUFFIXES,
    UNREADABLE,
    is_nifti,
    nifti_stem,
    no_nifti,
    parse_header,
)
from monai_autoaug.data.nifti_writing import write_like, write_nifti
from monai_autoaug.errors import DataError

__all__ = [
    "SUFFIXES",
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

_CHUNK = 1 << 22
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_DEFLATE = 1032  # a byte of a deflated stream stands for this many at most


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
        further: bytes that follow the last voxel.
    """

    path: Path
    header: nib.Nifti1Header
    image: nib.Nifti1Image
    further: int = 0

    @property
    def proxy(self) -> Any:
        """Nibabel's ``ArrayProxy``: the bytes that were read, where the voxels are in them, slope and intercept."""
        return self.image.dataobj

    @property
    def stored(self) -> NDArray[Any]:
        """The voxels as they are stored, without slope and intercept: one axis, the first spatial axis runs fastest.

        It is a view of the bytes that were read, so it takes no memory.
        """
        proxy = self.proxy
        count = math.prod(proxy.shape)
        return np.frombuffer(proxy.file_like.getbuffer(), proxy.dtype, count, proxy.offset)

    def scaled(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A part of ``stored`` with slope and intercept, as nibabel applies them.

        Args:
            stored: voxels, any shape.
        """
        slope, inter = np.asanyarray(self.proxy.slope), np.asanyarray(self.proxy.inter)
        return np.asarray(apply_read_scaling(stored, slope, inter))


def _open(path: Path) -> IO[bytes]:
    """Open the (decompressed) stream of a file."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, a device never end
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return gzip.open(path, "rb") if _compressed(path) else path.open("rb")  # type: ignore[return-value]


def _compressed(path: Path) -> bool:
    """Whether a file is named as a compressed one."""
    return path.name.lower().endswith(".gz")


def _count(path: Path) -> int:
    """How many (decompressed) bytes can be read before the stream breaks."""
    total = 0
    try:
        with _open(path) as stream:  # `read` would lose all that it has of a chunk that breaks
            while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]  # of both kinds of streams
                total += len(chunk)
    except _DAMAGED:
        return total
    return total


def _io_error(path: Path, error: OSError) -> DataError:
    """Say in one sentence why a file can't be opened."""
    if path.is_symlink() and not path.exists():
        came = f"a link to {os.readlink(path)}, which is not there"
    else:
        came = error.strerror or str(error)
    return DataError(
        "can't be opened", file=path, expected="a NIfTI file", came=came, remedy="check the path and its permissions"
    )


def _damaged(path: Path, size: int, error: Exception | None) -> DataError:
    """A truncated or corrupted stream, with byte counts, or what the file is if it is no compressed one."""
    if _compressed(path):
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head[:2] != GZIP:
            return no_nifti(head, path, expected="a gzip stream that holds a NIfTI header")
    return DataError(
        "is truncated or damaged" + (f" ({error})" if error else ""),
        file=path,
        expected=f"{size:,} bytes of header and voxels" if size else "a gzip stream of bytes of header and voxels",
        came=f"{_count(path):,} readable bytes in a file of {path.stat().st_size:,} bytes",
        remedy="copy or export the file again",
    )


def _check_size(path: Path, size: int) -> None:
    """Refuse, before any memory is taken, a header that declares more than the file can hold, or than memory does."""
    there = path.stat().st_size
    if size > (there * _DEFLATE if _compressed(path) else there):
        raise _damaged(path, size, None)
    if size > _memory():
        raise _too_large(path, size)


def _too_large(path: Path, size: int) -> DataError:
    return DataError(
        "does not fit into memory", file=path, expected=f"at most {_memory():,} bytes", came=f"{size:,} bytes",
        remedy="use a machine with more memory, or store the volume in fewer or smaller voxels",
    )  # fmt: skip


def _memory() -> float:
    """Bytes of memory that this machine has; infinite where it doesn't tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def read_header(path: str | Path) -> nib.Nifti1Header:
    """The header of a file exactly as on disk, without reading its voxels.

    Raises:
        DataError: the file can't be opened or is no NIfTI file.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            head = stream.read(HEAD)
    except _DAMAGED as error:
        raise _damaged(path, 0, error) from error
    except OSError as error:
        raise _io_error(path, error) from error
    return parse_header(head, path)[1]


def read_nifti(path: str | Path) -> Nifti:
    """Read a whole ``.nii`` or ``.nii.gz`` file, its checksum included.

    Memory is taken only for what the file can hold by its size on disk, and for one volume: the stream behind the last
    voxel is read but not kept.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, empty, truncated, corrupted, too large for memory or no NIfTI file; the message
            names byte counts.
    """
    path = Path(path)
    size = 0
    try:
        with _open(path) as stream:
            head = stream.read(HEAD)
            kind, header, size = parse_header(head, path)
            _check_size(path, size)
            data, further = _read_stream(stream, head, size)
    except _DAMAGED as error:
        raise _damaged(path, size, error) from error
    except OSError as error:
        raise _io_error(path, error) from error
    except (MemoryError, OverflowError) as error:
        raise _too_large(path, size) from error
    if data.tell() < size:
        raise _damaged(path, size, None)
    try:
        image = kind.from_stream(data)
    except UNREADABLE as error:
        raise DataError(
            f"has a header that can't be read ({error})", file=path, expected="a NIfTI header as the standard has it",
            came=str(error), remedy="export or convert the file again",
        ) from error  # fmt: skip
    return Nifti(path, header, image, further)


def _read_stream(stream: IO[bytes], head: bytes, size: int) -> tuple[BytesIO, int]:
    """The bytes up to ``size``, and how many come behind them: to the end, so that gzip compares its checksum."""
    data, total = BytesIO(), len(head)
    data.write(head)
    while chunk := stream.read(_CHUNK):
        data.write(chunk[: max(size - total, 0)])
        total += len(chunk)
    return data, max(total - size, 0)


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
