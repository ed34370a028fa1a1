# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a check looks at: a file, a case, or the data set. Each file is read once; a worker holds one case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data.datalist import Case, DataList, Split
from monai_autoaug.data.findings import Severity
from monai_autoaug.data.nifti import Nifti, read_nifti
from monai_autoaug.errors import DataError

__all__ = ["CaseSummary", "CaseView", "Check", "DataSetView", "Fault", "LabelCounts", "Volume"]

_LARGEST_LABEL = 1e9
_CHUNK = 1 << 20  # voxels that are converted at once


@dataclass(frozen=True)
class Fault:
    """What a check yields: a `Finding` without the names that the audit knows anyway.

    Args:
        message: what is wrong.
        expected: what was expected.
        came: what came.
        remedy: what to do.
        case: for checks of the data set: which case, "" for all.
        path: for checks of a case: which file.
    """

    message: str
    expected: object = ""
    came: object = ""
    remedy: str = ""
    case: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Check:
    """One row of the registry: a check is one function and one row.

    Args:
        name: stable, in snake case.
        severity: of every finding of this check.
        scope: what the function takes: "file" (`Volume`), "case" (`CaseView`) or "dataset" (`DataSetView`).
        function: yields a `Fault` a fault.
        unreadable: file checks only: also called for a file that could not be read.
    """

    name: str
    severity: Severity
    scope: Literal["file", "case", "dataset"]
    function: Callable[[Any], Iterable[Fault]]
    unreadable: bool = False


@dataclass(frozen=True)
class LabelCounts:
    """The values of a label file.

    Args:
        whole: value -> voxels, for values within 1e-3 of a whole number.
        fractional: up to five other values, or values beyond 1e9.
        num_fractional: how many voxels hold such a value.
        rounding: the largest distance of ``whole`` values to whole numbers.
    """

    whole: dict[int, int]
    fractional: list[float]
    num_fractional: int
    rounding: float


@dataclass
class Volume:
    """One file of a case.

    Args:
        path: the file.
        role: image or label.
        datalist: what the data set declares.
        channels: the volumes that the file has to hold.
        nifti: its content, or None if it could not be read.
        error: why not.
    """

    path: Path
    role: Literal["image", "label"]
    datalist: DataList
    channels: int
    nifti: Nifti | None = None
    error: DataError | None = None

    @classmethod
    def read(cls, path: Path, role: Literal["image", "label"], datalist: DataList, channels: int = 1) -> Volume:
        """Read a file, keeping the error if it can't be read."""
        try:
            return cls(path, role, datalist, channels, nifti=read_nifti(path))
        except DataError as error:
            return cls(path, role, datalist, channels, error=error)

    @property
    def content(self) -> Nifti:
        """What was read; only for checks that are not called for unreadable files."""
        if self.nifti is None:
            raise DataError("was not read", file=self.path)
        return self.nifti

    @property
    def header(self) -> nib.Nifti1Header:
        """The header as on disk."""
        return self.content.header

    @property
    def shape(self) -> tuple[int, ...]:
        """The declared shape, all axes."""
        return tuple(int(n) for n in self.header.get_data_shape())

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to mm, as nibabel reads it."""
        return np.asarray(self.content.image.affine, np.float64)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """The length of a voxel's edges in mm, by the affine."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def voxels(self) -> NDArray[Any] | None:
        """The scaled voxels, or None where they are no real numbers."""
        if self.header.get_data_dtype().kind not in "iuf":
            return None
        voxels = np.asanyarray(self.content.image.dataobj)
        return voxels if voxels.size else None

    @cached_property
    def label_counts(self) -> LabelCounts | None:
        """The label values and how many voxels hold them; None where the voxels are no finite numbers."""
        voxels = self.voxels
        if voxels is None:
            return None
        if voxels.dtype.kind == "f":
            voxels = voxels[np.isfinite(voxels)]
            whole = np.rint(voxels)
            distance = np.abs(voxels - whole)
            off = (distance > 1e-3) | (np.abs(voxels) > _LARGEST_LABEL)
            wrong, rounding = voxels[off], float(distance[~off].max(initial=0))
            values = whole[~off].astype(np.int64)
        else:
            values, wrong, rounding = voxels.reshape(-1), voxels[:0].reshape(-1), 0.0
        fractional = [float(v) for v in np.unique(wrong)[:5]]
        return LabelCounts(_count(values), fractional, int(wrong.size), rounding)


def _count(values: NDArray[Any]) -> dict[int, int]:
    """Value -> how often, without sorting where the values span little."""
    if not values.size:
        return {}
    low, high = int(values.min()), int(values.max())
    if high - low < 1 << 20:
        counts = np.bincount(values.reshape(-1).astype(np.int64) - low)
        return {int(i) + low: int(counts[i]) for i in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {int(v): int(n) for v, n in zip(found, counts, strict=True)}


@dataclass(frozen=True)
class CaseSummary:
    """What remains of a case once its voxels are gone.

    Args:
        name: the case.
        labelled: whether it has a label file.
        counts: label value -> voxels; None if the label was not read.
        spacing: mm, sorted; None if the image was not read.
        digest: of the image's voxels; equal for equal images; "" if the image was not read, or is
            constant: blank images are equal without one being a copy of the other.
    """

    name: str
    labelled: bool
    counts: dict[int, int] | None
    spacing: tuple[float, ...] | None
    digest: str


@dataclass
class CaseView:
    """One case with all its files read.

    Args:
        name: the case.
        images: in the order of the channels.
        label: or None.
    """

    name: str
    images: list[Volume]
    label: Volume | None

    @classmethod
    def read(cls, case: Case, datalist: DataList) -> CaseView:
        """Read the files of a case."""
        single = len(datalist.channels) if len(case.images) == 1 else 1
        images = [Volume.read(f, "image", datalist, single) for f in case.images]
        return cls(case.name, images, Volume.read(case.label, "label", datalist) if case.label else None)

    @property
    def volumes(self) -> list[Volume]:
        """All files."""
        return [*self.images, *([self.label] if self.label is not None else [])]

    @property
    def pairs(self) -> list[tuple[Volume, Volume]]:
        """The first image with each other file that has to lie on the same voxels, as far as they can be compared."""
        good = [v for v in self.volumes if v.nifti is not None and len(v.shape) >= 3 and np.isfinite(v.affine).all()]
        return [(good[0], other) for other in good[1:]] if good[:1] == self.images[:1] else []

    def summary(self) -> CaseSummary:
        """What the checks of the whole data set need."""
        counts = self.label.label_counts if self.label is not None and self.label.nifti is not None else None
        digest, spacing = "", None
        if all(v.voxels is not None if v.nifti is not None else False for v in self.images):
            content, constant = hashlib.blake2b(digest_size=16), True
            for volume in self.images:
                content.update(repr(volume.shape).encode())
                voxels = np.asarray(volume.voxels).reshape(-1, order="F")  # as in the file: no copy
                constant = constant and bool(voxels.min() == voxels.max())
                for start in range(0, voxels.size, _CHUNK):
                    # numbers, not bytes: the same image may be stored as int16 and as float32, and 0 as -0
                    with np.errstate(over="ignore"):  # told by the check "overflow"
                        content.update(np.add(voxels[start : start + _CHUNK], 0, dtype=np.float32).data)
            digest = "" if constant else content.hexdigest()
            spacing = tuple(sorted(float(s) for s in self.images[0].spacing))
        return CaseSummary(self.name, self.label is not None, counts.whole if counts else None, spacing, digest)


@dataclass
class DataSetView:
    """All cases together.

    Args:
        datalist: what is declared.
        parts: how the training cases are split, if that is known.
        cases: what each case left behind.
    """

    datalist: DataList
    parts: Split | None = None
    cases: list[CaseSummary] = field(default_factory=list)
