# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A plain pair of folders of NIfTI files: which image belongs to which label, by name, and which labels there are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai_autoaug.data.audit_facts import label_counts, numeric
from monai_autoaug.data.datalist import LARGEST_LABEL, Case, DataList, LabelValue
from monai_autoaug.data.names import leaves_folder
from monai_autoaug.data.nifti import is_nifti, nifti_stem, read_nifti
from monai_autoaug.errors import DataError

__all__ = ["as_unlabelled", "group_channels", "list_nifti", "read_pair_of_folders", "read_unlabelled"]

IMAGE_FOLDERS = frozenset("images image imgs img imagestr images_tr scans scan volumes volume".split())
LABEL_FOLDERS = frozenset(
    "labels label labelstr labels_tr masks mask segs seg segmentations segmentation annotations gt".split()
)
TEST_FOLDERS = frozenset("imagests images_ts".split())
UNLABELLED_FOLDERS = frozenset("unlabelled unlabeled".split())
_ROLE = re.compile(
    r"(?<![a-z0-9])(images?|imgs?|scans?|volumes?|vols?|labels?|labs?|masks?|segs?|segmentations?|annotations?|gt)(?![a-z0-9])"
)


def list_nifti(folder: Path) -> list[Path]:
    """The NIfTI files of a folder by name, hidden ones left out."""
    return sorted((f for f in folder.iterdir() if is_nifti(f) and not f.is_dir()), key=lambda f: f.name)


def _numbered(files: Sequence[Path]) -> tuple[Case, ...] | None:
    """Cases of files that all end in ``_0000``, ``_0001`` ... without gaps; None if some don't."""
    groups: dict[str, dict[int, Path]] = {}
    for file in files:
        match = re.fullmatch(r"(.+)_(\d{4})", nifti_stem(file))
        if match is None:
            return None
        groups.setdefault(match[1], {})[int(match[2])] = file
    if any(set(g) != set(range(len(g))) for g in groups.values()):
        return None
    return tuple(Case(name, tuple(g[i] for i in range(len(g)))) for name, g in sorted(groups.items()))


def _single(files: Iterable[Path]) -> tuple[Case, ...]:
    """A case a file."""
    return tuple(Case(nifti_stem(f), (f,)) for f in files)


def group_channels(files: Sequence[Path], folder: Path, *, channels: int | None = None) -> tuple[Case, ...]:
    """Files -> cases: ``CASE_0000``, ``CASE_0001`` ... are one case where all files are named so.

    Args:
        files: NIfTI files.
        folder: named in messages.
        channels: the number of files a case must have, if known; a case may also be one 4D file.

    Raises:
        DataError: no file, or channels are missing.

    >>> [c.name for c in group_channels([Path("a_0000.nii"), Path("a_0001.nii")], Path("."))]
    ['a']
    >>> [c.name for c in group_channels([Path("a_0000.nii"), Path("a_0001.nii")], Path("."), channels=1)]
    ['a_0000', 'a_0001']
    """
    if not files:
        raise DataError("holds no NIfTI file", file=folder, expected=".nii or .nii.gz files", came="none")
    grouped = _numbered(files)
    sizes = {len(c.images) for c in grouped or ()}
    if grouped is None or (channels == 1 and sizes != {1}):
        cases = _single(files)
    elif len(sizes) == 1 and channels in (None, *sizes):
        cases = grouped
    else:
        wrong = [c for c in grouped if len(c.images) != (channels or max(sizes))]
        raise DataError(
            "has another number of channels than expected", file=wrong[0].name,
            expected=f"{channels or max(sizes)} files", came=[f.name for f in wrong[0].images],
            remedy="name the channels of every case CASE_0000, CASE_0001 ...",
        )
    _refuse_twins(cases, folder)
    return cases


def _refuse_twins(cases: Iterable[Case], folder: Path) -> None:
    """Refuse ``case.nii`` beside ``case.nii.gz``."""
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise DataError("holds two files of the same name", file=folder, came=case.name, remedy="remove one")
        seen.add(case.name)


def _candidates(folder: Path, names: frozenset[str]) -> list[Path]:
    """The sub-folders whose name is one of ``names``."""
    return sorted(d for d in folder.iterdir() if d.is_dir() and d.name.lower() in names)


def _one_folder(folder: Path, names: frozenset[str], role: str) -> Path:
    """The one sub-folder whose name says that it holds images, or labels."""
    found = _candidates(folder, names)
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"is no data set: which folder holds the {role} can't be told",
        file=folder,
        expected=f"dataset.json, or one folder of {role} with a name such as {', '.join(sorted(names)[:4])}",
        came=[d.name for d in found] or sorted(d.name for d in folder.iterdir())[:8] or "an empty folder",
        remedy="lay the data out as images/ and labels/ with equal file names, or add a dataset.json",
    )


def read_pair_of_folders(folder: Path) -> DataList:
    """Read ``images/`` and ``labels/`` (or the like); the label values are what the label files hold.

    Args:
        folder: the folder that holds both.

    Raises:
        DataError: the folders, or the label of an image, can't be told without guessing.
    """
    image_folder = _one_folder(folder, IMAGE_FOLDERS, "images")
    label_folder = _one_folder(folder, LABEL_FOLDERS, "labels")
    training = _match(list_nifti(image_folder), list_nifti(label_folder), folder)
    count = len(training[0].images)
    test: tuple[Case, ...] = ()
    if _candidates(folder, TEST_FOLDERS):
        test_folder = _one_folder(folder, TEST_FOLDERS, "test images")
        test = group_channels(list_nifti(test_folder), test_folder, channels=count)
    unlabelled: tuple[Case, ...] = ()
    if _candidates(folder, UNLABELLED_FOLDERS):
        unlabelled = read_unlabelled(_one_folder(folder, UNLABELLED_FOLDERS, "unlabelled images"), count)
    channels = tuple(f"channel_{i}" for i in range(count)) if count > 1 else ("image",)
    labels: dict[str, LabelValue] = {"background": 0}
    labels.update({f"label_{v}": v for v in _values(training, folder) if v})
    return DataList(folder, "folders", channels, labels, training=training, test=test, unlabelled=unlabelled)


def read_unlabelled(folder: Path, channels: int) -> tuple[Case, ...]:
    """The images of a folder as cases whose names no labelled case has.

    Args:
        folder: of NIfTI files.
        channels: files of a case, see `group_channels`.

    Raises:
        DataError: it is no folder, holds no image, or channels are missing.
    """
    if not folder.is_dir():
        raise DataError("is not a folder", file=folder, expected="a folder of unlabelled images", came="none")
    return as_unlabelled(group_channels(list_nifti(folder), folder, channels=channels))


def as_unlabelled(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Cases under names that labelled ones don't have.

    >>> as_unlabelled([Case("a", ())])[0].name
    'unlabelled/a'
    """
    return tuple(Case(f"unlabelled/{case.name}", case.images) for case in cases)


def _without_role(stem: str) -> str:
    """A name without the words that say what a file is, so that ``img_007`` and ``007-Label`` are both ``007``.

    >>> _without_role("img_007"), _without_role("007-Label"), _without_role("patient_1_seg")
    ('007', '007', 'patient_1')
    """
    return re.sub(r"[\W_]+", "_", _ROLE.sub(" ", stem.lower().replace("_", " "))).strip("_")


def _match(files: Sequence[Path], labels: Sequence[Path], folder: Path) -> tuple[Case, ...]:
    """Give each image its label: by equal names, else by equal names once words such as ``img`` and ``seg`` are gone.

    Names that end in ``_0000`` are read as channels first, and as plain names where that fits no label.
    """
    if not files or not labels:
        came = f"{len(files)} images, {len(labels)} labels"
        raise DataError("holds no pair of images and labels", file=folder, expected=".nii or .nii.gz files", came=came)
    grouped = _numbered(files)
    readings = [_single(files)]
    if grouped is not None and len({len(c.images) for c in grouped}) == 1:
        readings.insert(0, grouped)
    rules: tuple[Callable[[str], str], ...] = (str, _without_role)
    for rule in rules:
        by_name: dict[str, list[Path]] = {}
        for file in labels:
            by_name.setdefault(rule(nifti_stem(file)), []).append(file)
        for cases in readings:
            keys = [rule(c.name) for c in cases]
            unique = len(set(keys)) == len(keys) and all(len(found) == 1 for found in by_name.values())
            if unique and set(keys) == set(by_name):
                return tuple(Case(c.name, c.images, by_name[k][0]) for c, k in zip(cases, keys, strict=True))
    raise _no_match(readings[0], labels, folder)


def _no_match(cases: Sequence[Case], labels: Sequence[Path], folder: Path) -> DataError:
    """Say which images and labels are alone."""
    images = {_without_role(c.name): c.name for c in cases}
    masks = {_without_role(nifti_stem(f)): f.name for f in labels}
    alone = [images[k] for k in images if k not in masks] + [masks[k] for k in masks if k not in images]
    came = f"{len(cases)} images, {len(labels)} labels"
    came += f", without a partner: {', '.join(sorted(alone)[:5])}" if alone else ", several with the same name"
    return DataError(
        "images and labels can't be matched by name", file=folder, expected="one label file of the same name an image",
        came=came, remedy="give image and label the same file name",
    )


def _values(cases: Sequence[Case], folder: Path) -> list[int]:
    """All whole, non-negative values of the label files; the audit reports the files and voxels that hold others."""
    labels = [c.label for c in cases if c.label is not None and not leaves_folder(c.label, folder)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        found = pool.map(_values_of, labels)
    return sorted(set().union(*found))


def _values_of(path: Path) -> set[int]:
    """The label values of one file."""
    try:
        nifti = read_nifti(path)
    except DataError:  # named by the audit, which reports every broken file and not only the first
        return set()
    return {v for v in label_counts(nifti).whole if 0 <= v <= LARGEST_LABEL} if numeric(nifti) else set()
