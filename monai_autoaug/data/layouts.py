# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The three layouts a data set comes in: Decathlon, nnU-Net raw, and a plain pair of folders, told apart by content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.data.datalist import Case, DataList, LabelValue
from monai_autoaug.data.folders import group_channels, list_nifti, read_pair_of_folders
from monai_autoaug.data.layout_fields import (
    channel_files,
    channel_names,
    check_cases,
    check_labels,
    find,
    label_value,
    read_object,
    rows,
    table,
    text,
)
from monai_autoaug.data.layout_nnunet import read_nnunet, unlabelled_images
from monai_autoaug.data.nifti import is_nifti, nifti_stem
from monai_autoaug.data.nifti_header import is_archive
from monai_autoaug.errors import DataError

__all__ = ["read_datalist", "read_images"]


def read_datalist(folder: str | Path) -> DataList:
    """Read a data set in any of three layouts, without being told which.

    - Decathlon: ``dataset.json`` with a list ``training`` (a file with several channels is 4D); nnU-Net's old form of
      it, where the files end in ``_0000``, too;
    - nnU-Net raw: ``dataset.json`` with ``channel_names``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``;
      labels that are lists of values are regions, and ``ignore`` is the ignore label, as nnU-Net means it;
    - a pair of folders such as ``images`` and ``labels``, matched by file name; label values are found by reading.

    Images without labels that a method may learn from are listed in dataset.json by the key ``unlabelled`` (paths), or
    lie in a folder ``unlabelled`` beside the pair.

    Args:
        folder: the data set's folder (or its ``dataset.json``).

    Raises:
        DataError: the folder holds none of these, or what it declares is contradictory or missing.
    """
    folder = Path(folder)
    if folder.name == "dataset.json":
        folder = folder.parent
    _refuse_archive(folder)
    if not folder.is_dir():
        raise DataError(
            "is not a folder", file=folder, expected="a folder that holds a data set", came=_what(folder),
            remedy="give the folder that holds dataset.json, or images/ and labels/",
        )
    path = folder / "dataset.json"
    if not path.is_file():
        if list_nifti(folder):
            raise DataError(
                "holds NIfTI files itself: it is a folder of images or of labels, not a data set", file=folder,
                remedy="give the folder above it, which holds dataset.json, or images/ and labels/",
            )
        return read_pair_of_folders(folder)
    content = read_object(path)
    if "channel_names" in content:
        return read_nnunet(folder, content)
    if isinstance(content.get("training"), list):
        return _read_decathlon(folder, content)
    raise DataError(
        "is neither a Decathlon nor an nnU-Net dataset.json",
        file=path,
        expected='a list "training" (Decathlon) or "channel_names" (nnU-Net)',
        came=f"the keys {sorted(content)[:20]}",
        remedy="complete dataset.json, or remove it so that images/ and labels/ are matched by name",
    )


def read_images(path: str | Path, *, channels: int | None = None) -> tuple[Case, ...]:
    """The images to be predicted: one file, or all NIfTI files of a folder.

    Files named ``CASE_0000``, ``CASE_0001`` ... are the channels of one case where every case has the same number.

    Args:
        path: a file or a folder.
        channels: the number of channels a case must have in separate files, if known; 1 also allows 4D files.

    Raises:
        DataError: nothing is found, or channels are missing.
    """
    path = Path(path)
    _refuse_archive(path)
    if is_nifti(path) and not path.is_dir():
        if not path.exists() and not path.is_symlink():
            raise DataError("does not exist", file=path, remedy="check the path")
        return (Case(nifti_stem(path), (path,)),)
    if not path.is_dir():
        raise DataError(
            "is neither a folder nor a NIfTI file", file=path, expected="a folder, or a .nii or .nii.gz file",
            came=_what(path), remedy="convert the images to NIfTI" if path.exists() else "check the path",
        )
    files = list_nifti(path)
    below = [d.name for d in sorted(path.iterdir()) if d.is_dir() and list_nifti(d)] if not files else []
    if below:
        raise DataError(
            "holds no NIfTI file itself", file=path, expected=".nii or .nii.gz files", came=f"the folders {below[:5]}",
            remedy="give the one that holds the images",
        )
    return group_channels(files, path, channels=channels)


def _what(path: Path) -> str:
    """Say what a path that is no folder is."""
    return "a file" if path.is_file() else "nothing (it does not exist)"


def _refuse_archive(path: Path) -> None:
    """Refuse a file that would have to be unpacked."""
    if is_archive(path) and path.is_file():
        raise DataError(
            "is an archive, which this package never unpacks", file=path, expected="a folder", came=path.name,
            remedy="unpack it with a program that you trust, look at what comes out, and give that folder",
        )  # fmt: skip


def _read_decathlon(folder: Path, content: dict[str, Any]) -> DataList:
    """The Medical Segmentation Decathlon's dataset.json (also in nnU-Net's first form, with ``_0000`` in the names)."""
    file = folder / "dataset.json"
    channels = channel_names(content.get("modality", {"0": "image"}), file, "modality")
    declared = table(content.get("labels"), file, "labels", '{"0": "background"}')
    labels: dict[str, LabelValue] = {}
    for value, name in declared.items():
        labels[text(name, file, "name of a label")] = label_value(value, file, str(name))
    if len(labels) != len(declared):
        raise DataError(
            "gives two labels the same name", file=file, expected="distinct names", came=list(declared.values())
        )
    check_labels(labels, file, None)
    training = []
    for row in rows(content["training"], file, "training"):
        if not isinstance(row, Mapping) or not {"image", "label"} <= set(row):
            raise DataError(
                'has an entry of "training" without image and label', file=file,
                expected='{"image": path, "label": path}', came=str(row)[:120],
            )  # fmt: skip
        image = find(folder, row["image"], file)
        label = find(folder, row["label"], file)
        training.append(Case(nifti_stem(image), channel_files(image, len(channels)), label))
    test = []
    for row in rows(content.get("test"), file, "test"):
        image = find(folder, row.get("image") if isinstance(row, Mapping) else row, file)
        test.append(Case(nifti_stem(image), channel_files(image, len(channels))))
    check_cases(training, file)
    if test:
        check_cases(test, file)
    return DataList(
        folder, "decathlon", channels, labels, training=tuple(training), test=tuple(test),
        unlabelled=unlabelled_images(folder, content, len(channels), file),
    )  # fmt: skip
