# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's raw data sets, and the images without labels that any dataset.json may list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.data.datalist import Case, DataList, LabelValue
from monai_autoaug.data.folders import as_unlabelled, list_nifti
from monai_autoaug.data.layout_fields import (
    channel_files,
    channel_names,
    check_cases,
    check_labels,
    find,
    label_value,
    rows,
    table,
    text,
)
from monai_autoaug.data.names import name_fault
from monai_autoaug.data.nifti import nifti_stem
from monai_autoaug.data.nifti_header import SUFFIXES
from monai_autoaug.errors import DataError

__all__ = ["read_nnunet", "unlabelled_images"]


def unlabelled_images(folder: Path, content: dict[str, Any], channels: int, file: Path) -> tuple[Case, ...]:
    """The images that a dataset.json lists as unlabelled: paths, or entries with the key image.

    Args:
        folder: that holds dataset.json.
        content: of it.
        channels: files of a case.
        file: the dataset.json.

    Raises:
        DataError: the list holds something else.
    """
    listed = rows(content.get("unlabelled"), file, "unlabelled")
    images = [find(folder, row.get("image") if isinstance(row, Mapping) else row, file) for row in listed]
    cases = [Case(nifti_stem(image), channel_files(image, channels)) for image in images]
    if cases:
        check_cases(cases, file)
    return as_unlabelled(cases)


def read_nnunet(folder: Path, content: dict[str, Any]) -> DataList:
    """Read nnU-Net's raw data set: channels in files of their own, regions, ignore label.

    Args:
        folder: that holds dataset.json.
        content: of it.

    Raises:
        DataError: what it declares is contradictory or missing.
    """
    file = folder / "dataset.json"
    channels = channel_names(content["channel_names"], file, "channel_names")
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        raise DataError(
            "declares files that are not NIfTI", file=file, expected=" or ".join(SUFFIXES), came=ending,
            remedy="convert the images and labels to NIfTI",
        )
    labels, order, ignore = _nnunet_labels(content, file)
    if content.get("dataset") is not None:
        listed = table(content["dataset"], file, "dataset", '{"case": {"images": [...], "label": ...}}')
        training = [_listed_case(folder, name, row, file) for name, row in listed.items()]
    else:
        training = _training_files(folder, ending, channels)
    check_cases(training, file)
    for case in training:
        if len(case.images) != len(channels):
            raise DataError(
                f"lists the case {case.name} with another number of image files than there are channels", file=file,
                expected=f"{len(channels)} ({', '.join(channels)})", came=[f.name for f in case.images],
            )  # fmt: skip
    test_folder = folder / "imagesTs"
    test = _grouped(test_folder, ending, len(channels)) if test_folder.is_dir() else {}
    unlabelled = unlabelled_images(folder, content, len(channels), file)
    return DataList(
        folder, "nnunet", channels, labels, order, ignore, tuple(training),
        tuple(Case(name, files) for name, files in test.items()), unlabelled,
    )  # fmt: skip


def _nnunet_labels(
    content: dict[str, Any], file: Path
) -> tuple[dict[str, LabelValue], tuple[int, ...] | None, int | None]:
    """Labels, the order in which regions are written, and the ignore label, as nnU-Net means them."""
    labels: dict[str, LabelValue] = {}
    for key, value in table(content.get("labels"), file, "labels", '{"background": 0}').items():
        name = text(key, file, "name of a label")
        if isinstance(value, list) and value:
            numbers = tuple(label_value(v, file, name) for v in value)
            labels[name] = numbers if len(numbers) > 1 else numbers[0]
        else:
            labels[name] = label_value(value, file, name)
    ignored = labels.pop("ignore", None)
    if isinstance(ignored, tuple):
        raise DataError("has an ignore label of several values", file=file, expected="one value", came=ignored)
    check_labels(labels, file, ignored)
    if not any(isinstance(v, tuple) for v in labels.values()):
        return labels, None, ignored
    regions = sum(v != 0 for v in labels.values())
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != regions:
        raise DataError(
            "has regions but no usable regions_class_order", file=file, expected=f"a list of {regions} label values",
            came=str(order)[:120], remedy="say which value each region writes, from the outermost to the innermost",
        )
    return labels, tuple(label_value(v, file, "regions_class_order") for v in order), ignored


def _listed_case(folder: Path, name: str, row: object, file: Path) -> Case:
    """A case of nnU-Net's explicit table ``dataset``, whose files may lie anywhere: that is what it is for."""
    if not isinstance(row, Mapping) or not isinstance(row.get("images"), list):
        raise DataError(
            "lists a case wrongly", file=file, expected='{"images": [...], "label": ...}', came=str(row)[:120]
        )
    if fault := name_fault(name):  # a prediction is called after its case
        raise DataError(
            "lists a case whose name can't be used", file=file, expected="letters, digits, - and _",
            came=f"a name that {fault}", remedy=f"rename the case {name[:80]!r}",
        )  # fmt: skip
    images = tuple(find(folder, f, file, anywhere=True) for f in row["images"])
    return Case(name, images, find(folder, row.get("label"), file, anywhere=True))


def _grouped(folder: Path, ending: str, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name -> the files of its channels, whether or not each exists (the audit names those that don't)."""
    names = sorted({nifti_stem(f)[:-5] for f in list_nifti(folder) if _is_channel(nifti_stem(f))})
    return {n: tuple(folder / f"{n}_{i:04d}{ending}" for i in range(channels)) for n in names}


def _is_channel(stem: str) -> bool:
    """Whether a name ends in a channel number such as ``_0000``."""
    return len(stem) > 5 and stem[-5] == "_" and stem[-4:].isascii() and stem[-4:].isdigit()


def _training_files(folder: Path, ending: str, channels: tuple[str, ...]) -> list[Case]:
    """The cases of imagesTr and labelsTr, which have to be the same."""
    for name in ("imagesTr", "labelsTr"):
        if not (folder / name).is_dir():
            raise DataError(f"has no folder {name}", file=folder, expected="imagesTr and labelsTr", came="not there")
    images = _grouped(folder / "imagesTr", ending, len(channels))
    labels = {nifti_stem(f): f for f in list_nifti(folder / "labelsTr")}
    alone = sorted(set(images) ^ set(labels))
    if alone:
        raise DataError(
            "has images without a label, or labels without an image", file=folder,
            expected="imagesTr/CASE_0000 and labelsTr/CASE for every case",
            came=f"{len(alone)} alone: {', '.join(alone[:5])}", remedy="complete or remove them",
        )
    return [Case(name, files, labels[name]) for name, files in images.items()]
