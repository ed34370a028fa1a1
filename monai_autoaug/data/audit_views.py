# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a check looks at: a file, a case, or the data set. A worker holds the voxels of one file at a time."""

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

from monai_autoaug.data.audit_facts import Intensities, LabelCounts, intensities, label_counts, numeric
from monai_autoaug.data.datalist import Case, DataList, Split
from monai_autoaug.data.findings import Severity
from monai_autoaug.data.names import leaves_folder
from monai_autoaug.data.nifti import Nifti, read_nifti
from monai_autoaug.errors import DataError

__all__ = ["CaseSummary", "CaseView", "Check", "DataSetView", "Fault", "Target", "Volume"]


@dataclass(frozen=True)
class Fault:
    """What a check yields: a `Finding` without the names that the audit knows anyway.

    Args:
        message: what is wrong.
        expected: what was expected.
        came: what came.
        remedy: what to do.
        case: for checks of the data set: which case, "" for all.
        path: for checks of a case or of the data set: which file.
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
class Target:
    """The grid that volumes are resampled to before a network sees them.

    Args:
        spacing: mm a voxel, in the order of the orientation's axes.
        orientation: the direction of the axes.
    """

    spacing: tuple[float, float, float]
    orientation: str = "RAS"


@dataclass(eq=False)
class Volume:
    """One file of a case.

    Args:
        path: the file.
        role: image or label.
        datalist: what the data set declares.
        channels: the volumes that the file has to hold.
        target: what it will be resampled to, if that is known.
        nifti: its content; None if it could not be read, or was let go.
        error: why it could not be read.
        leaves: the file is a link that leaves the data set's folder, and was not opened.
    """

    path: Path
    role: Literal["image", "label"]
    datalist: DataList
    channels: int
    target: Target | None = None
    nifti: Nifti | None = None
    error: DataError | None = None
    leaves: bool = False

    @classmethod
    def read(
        cls,
        path: Path,
        role: Literal["image", "label"],
        datalist: DataList,
        channels: int = 1,
        target: Target | None = None,
    ) -> Volume:
        """Read a file, keeping the error if it can't be read."""
        found = cls(path, role, datalist, channels, target)
        if leaves_folder(path, datalist.folder):
            found.leaves = True
            return found
        try:
            nifti = found.nifti = read_nifti(path)
            found._header, found._affine = nifti.header, np.asarray(nifti.image.affine, np.float64)
        except DataError as error:
            found.error = error
        return found

    def release(self) -> None:
        """Let the voxels go; header, affine and what was found out of the voxels remain."""
        self.__dict__.setdefault("intensities", None)
        self.__dict__.setdefault("label_counts", None)
        self.nifti = None

    @property
    def usable(self) -> bool:
        """Whether the file could be read."""
        return self.error is None and not self.leaves

    @property
    def header(self) -> nib.Nifti1Header:
        """As on disk."""
        return self._header

    @property
    def shape(self) -> tuple[int, ...]:
        """The declared shape, all axes."""
        return tuple(int(n) for n in self._header.get_data_shape())

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to mm, as nibabel reads it."""
        return self._affine

    @property
    def spacing(self) -> NDArray[np.float64]:
        """The length of a voxel's edges in mm, by the affine."""
        return np.linalg.norm(self._affine[:3, :3], axis=0)

    @cached_property
    def intensities(self) -> Intensities | None:
        """Of an image; None where the voxels are no real numbers."""
        good = self.role == "image" and self.nifti is not None and numeric(self.nifti)
        return intensities(self.nifti) if good and self.nifti is not None else None

    @cached_property
    def label_counts(self) -> LabelCounts | None:
        """Of a label; None where the voxels are no real numbers."""
        good = self.role == "label" and self.nifti is not None and numeric(self.nifti)
        return label_counts(self.nifti) if good and self.nifti is not None else None

    _header: nib.Nifti1Header = field(init=False, repr=False)
    _affine: NDArray[np.float64] = field(init=False, repr=False)


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
        extreme: the largest intensity, whatever its sign.
        extreme_file: the file that holds it.
        file: the first image.
    """

    name: str
    labelled: bool
    counts: dict[int, int] | None
    spacing: tuple[float, ...] | None
    digest: str
    extreme: float = 0.0
    extreme_file: Path | None = None
    file: Path | None = None


@dataclass
class CaseView:
    """One case with all its files looked at; their voxels are gone.

    Args:
        name: the case.
        images: in the order of the channels.
        label: or None.
    """

    name: str
    images: list[Volume]
    label: Volume | None

    @classmethod
    def read(
        cls, case: Case, datalist: DataList, look: Callable[[Volume], None], target: Target | None = None
    ) -> CaseView:
        """Read the files of a case, one at a time.

        Args:
            case: its files.
            datalist: what is declared.
            look: called with each file while its voxels are there.
            target: see `Volume`.
        """
        single = len(datalist.channels) if len(case.images) == 1 else 1

        def looked(path: Path, role: Literal["image", "label"], channels: int = 1) -> Volume:
            volume = Volume.read(path, role, datalist, channels, target)
            look(volume)
            volume.release()
            return volume

        images = [looked(file, "image", single) for file in case.images]
        return cls(case.name, images, looked(case.label, "label") if case.label else None)

    @property
    def volumes(self) -> list[Volume]:
        """All files."""
        return [*self.images, *([self.label] if self.label is not None else [])]

    @property
    def pairs(self) -> list[tuple[Volume, Volume]]:
        """The first image with each other file that has to lie on the same voxels, as far as they can be compared."""
        good = [v for v in self.volumes if v.usable and len(v.shape) >= 3 and np.isfinite(v.affine).all()]
        return [(good[0], other) for other in good[1:]] if good and good[0] is self.images[0] else []

    def summary(self) -> CaseSummary:
        """What the checks of the whole data set need."""
        counts = self.label.label_counts if self.label is not None else None
        known = [(v, v.intensities) for v in self.images if v.intensities is not None]
        digest, spacing = "", None
        if self.images and len(known) == len(self.images):
            if any(i.digest for _, i in known):
                parts = "".join(i.digest or repr(i.constant) for _, i in known)
                digest = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
            spacing = tuple(sorted(float(s) for s in self.images[0].spacing))
        extremes = [(max(-i.low, i.high), v.path) for v, i in known]
        extreme, file = max(extremes, key=lambda e: e[0], default=(0.0, None))
        whole, first = counts.whole if counts else None, self.images[0].path if self.images else None
        return CaseSummary(self.name, self.label is not None, whole, spacing, digest, extreme, file, first)


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
