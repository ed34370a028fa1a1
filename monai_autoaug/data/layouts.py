# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The three layouts a data set comes in: Decathlon, nnU-Net raw, and a plain pair of folders, told apart by content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.data.datalist import Case, DataList, LabelValue
from monai_autoaug.data.folders import as_unlabelled, group_channels, list_nifti, read_pair_of_folders
from monai_autoaug.data.nifti import SUFFIXES, is_nifti, nifti_stem
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
    content = _read_json(path)
    if "channel_names" in content:
        return _read_nnunet(folder, content)
    if isinstance(content.get("training"), list):
        return _read_decathlon(folder, content)
    raise DataError(
        "is neither a Decathlon nor an nnU-Net dataset.json",
        file=path,
        expected='a list "training" (Decathlon) or "channel_names" (nnU-Net)',
        came=f"the keys {sorted(content)}",
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


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read as JSON ({error})", file=path, remedy="repair the file") from error
    if not isinstance(content, dict):
        raise DataError("is not a JSON object", file=path, expected="an object", came=type(content).__name__)
    return content


def _names(table: object, file: Path, key: str) -> tuple[str, ...]:
    """The names of ``{"0": "T1", "1": "T2"}`` in the order of the numbers."""
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, Mapping) or not table:
        raise DataError(f'has no usable "{key}"', file=file, expected='such as {"0": "MRI"}', came=table)
    try:
        numbers = sorted(int(k) for k in table)
    except (TypeError, ValueError) as error:
        message = f'numbers its "{key}" wrongly'
        raise DataError(message, file=file, expected="keys 0, 1, ...", came=list(table)) from error
    if numbers != list(range(len(numbers))):
        raise DataError(f'numbers its "{key}" wrongly', file=file, expected="0, 1, ... without gaps", came=numbers)
    by_number = {int(k): str(v) for k, v in table.items()}
    return tuple(by_number[n] for n in numbers)


def _integer(value: object, file: Path, name: str) -> int:
    """A non-negative whole label value."""
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise DataError(f'gives the label "{name}" an unusable value', file=file, expected="0, 1, 2 ...", came=value)
    return number


def _check_labels(labels: Mapping[str, LabelValue], file: Path, ignore: int | None) -> None:
    """Refuse label tables that can't be meant: no background, a value twice, a misplaced ignore label."""
    single = [v for v in labels.values() if isinstance(v, int)]
    if 0 not in single:
        raise DataError(
            "declares no background", file=file, expected="a label with the value 0", came=dict(labels),
            remedy='add "background": 0 to its labels',
        )
    if len(set(single)) != len(single):
        raise DataError("gives two labels the same value", file=file, expected="distinct values", came=dict(labels))
    highest = max(max(v) if isinstance(v, tuple) else v for v in labels.values())
    if ignore is not None and ignore != highest + 1:
        raise DataError(
            "has an ignore label that is not the highest value plus one", file=file, expected=highest + 1, came=ignore,
            remedy="renumber the ignore label, in the files too",
        )


def _find(folder: Path, name: object, file: Path) -> Path:
    """A path that a dataset.json names, relative to its folder."""
    if not isinstance(name, str) or not name:
        raise DataError("names a file wrongly", file=file, expected="a path", came=name)
    return folder / name


def _read_decathlon(folder: Path, content: dict[str, Any]) -> DataList:
    """The Medical Segmentation Decathlon's dataset.json (also in nnU-Net's first form, with ``_0000`` in the names)."""
    file = folder / "dataset.json"
    channels = _names(content.get("modality", {"0": "image"}), file, "modality")
    table = content.get("labels")
    if not isinstance(table, Mapping):
        raise DataError('has no "labels"', file=file, expected='such as {"0": "background"}', came=table)
    labels: dict[str, LabelValue] = {str(name): _integer(value, file, str(name)) for value, name in table.items()}
    if len(labels) != len(table):
        raise DataError("gives two labels the same name", file=file, came=list(table.values()))
    _check_labels(labels, file, None)
    training = []
    for row in content["training"]:
        if not isinstance(row, Mapping) or not {"image", "label"} <= set(row):
            raise DataError('has an entry of "training" without image and label', file=file, came=row)
        image = _find(folder, row["image"], file)
        files = _channel_files(image, len(channels))
        training.append(Case(nifti_stem(image), files, _find(folder, row["label"], file)))
    test = []
    for row in content.get("test") or ():
        image = _find(folder, row["image"] if isinstance(row, Mapping) else row, file)
        test.append(Case(nifti_stem(image), _channel_files(image, len(channels))))
    _check_cases(training, file)
    return DataList(
        folder, "decathlon", channels, labels, training=tuple(training), test=tuple(test),
        unlabelled=_unlabelled(folder, content, len(channels), file),
    )  # fmt: skip


def _unlabelled(folder: Path, content: dict[str, Any], channels: int, file: Path) -> tuple[Case, ...]:
    """The images that a dataset.json lists as unlabelled: paths, or entries with the key image."""
    listed = content.get("unlabelled") or []
    if not isinstance(listed, list):
        raise DataError('has no usable "unlabelled"', file=file, expected="a list of image files", came=listed)
    images = [_find(folder, row.get("image") if isinstance(row, Mapping) else row, file) for row in listed]
    cases = [Case(nifti_stem(image), _channel_files(image, channels)) for image in images]
    if cases:
        _check_cases(cases, file)
    return as_unlabelled(cases)


def _channel_files(image: Path, count: int) -> tuple[Path, ...]:
    """The file itself, or its ``_0000``, ``_0001`` ... where only those are there."""
    if image.exists() or image.is_symlink():
        return (image,)
    suffix = image.name[len(nifti_stem(image)) :]
    parts = tuple(image.with_name(f"{nifti_stem(image)}_{i:04d}{suffix}") for i in range(count))
    return parts if parts[0].exists() else (image,)


def _read_nnunet(folder: Path, content: dict[str, Any]) -> DataList:
    """nnU-Net's raw data set: channels in files of their own, regions, ignore label."""
    file = folder / "dataset.json"
    channels = _names(content["channel_names"], file, "channel_names")
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        raise DataError(
            "declares files that are not NIfTI", file=file, expected=" or ".join(SUFFIXES), came=ending,
            remedy="convert the images and labels to NIfTI",
        )
    labels, order, ignore = _nnunet_labels(content, file)
    listed = content.get("dataset")
    if isinstance(listed, Mapping):
        training = [_listed_case(folder, str(name), row, file) for name, row in listed.items()]
    else:
        training = _training_files(folder, ending, channels)
    _check_cases(training, file)
    for case in training:
        if len(case.images) != len(channels):
            raise DataError(
                "has another number of image files than there are channels", file=case.name,
                expected=f"{len(channels)} ({', '.join(channels)})", came=[f.name for f in case.images],
            )
    test_folder = folder / "imagesTs"
    test = _grouped(test_folder, ending, len(channels)) if test_folder.is_dir() else {}
    return DataList(
        folder, "nnunet", channels, labels, order, ignore, tuple(training),
        tuple(Case(name, files) for name, files in test.items()), _unlabelled(folder, content, len(channels), file),
    )  # fmt: skip


def _nnunet_labels(
    content: dict[str, Any], file: Path
) -> tuple[dict[str, LabelValue], tuple[int, ...] | None, int | None]:
    """Labels, the order in which regions are written, and the ignore label, as nnU-Net means them."""
    table = content.get("labels")
    if not isinstance(table, Mapping):
        raise DataError('has no "labels"', file=file, expected='such as {"background": 0}', came=table)
    labels: dict[str, LabelValue] = {}
    for name, value in table.items():
        if isinstance(value, list):
            numbers = tuple(_integer(v, file, str(name)) for v in value)
            labels[str(name)] = numbers if len(numbers) > 1 else numbers[0]
        else:
            labels[str(name)] = _integer(value, file, str(name))
    ignored = labels.pop("ignore", None)
    if isinstance(ignored, tuple):
        raise DataError("has an ignore label of several values", file=file, expected="one value", came=ignored)
    _check_labels(labels, file, ignored)
    if not any(isinstance(v, tuple) for v in labels.values()):
        return labels, None, ignored
    regions = sum(v != 0 for v in labels.values())
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != regions:
        raise DataError(
            "has regions but no usable regions_class_order", file=file, expected=f"a list of {regions} label values",
            came=order, remedy="say which value each region writes, from the outermost to the innermost",
        )
    return labels, tuple(_integer(v, file, "regions_class_order") for v in order), ignored


def _listed_case(folder: Path, name: str, row: object, file: Path) -> Case:
    """A case of nnU-Net's explicit table ``dataset``."""
    if not isinstance(row, Mapping) or not isinstance(row.get("images"), list):
        raise DataError("lists a case wrongly", file=file, expected='{"images": [...], "label": ...}', came=row)
    images = tuple(_find(folder, f, file) for f in row["images"])
    return Case(name, images, _find(folder, row.get("label"), file))


def _grouped(folder: Path, ending: str, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name -> the files of its channels, whether or not each exists (the audit names those that don't)."""
    names = sorted({nifti_stem(f)[:-5] for f in list_nifti(folder) if _is_channel(nifti_stem(f))})
    return {n: tuple(folder / f"{n}_{i:04d}{ending}" for i in range(channels)) for n in names}


def _is_channel(stem: str) -> bool:
    """Whether a name ends in a channel number such as ``_0000``."""
    return len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdigit()


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


def _check_cases(cases: Iterable[Case], file: Path) -> None:
    """Refuse an empty list and a name that two cases share."""
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise DataError("lists a case twice", file=file, expected="unique file names", came=case.name)
        seen.add(case.name)
    if not seen:
        raise DataError("lists no training case", file=file, expected="at least one image with its label", came="none")
