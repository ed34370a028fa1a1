# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The fields of a dataset.json, each taken only as it can be meant; what is refused is named with its field."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.data.datalist import LARGEST_LABEL, Case, LabelValue
from monai_autoaug.data.names import name_fault
from monai_autoaug.data.nifti import nifti_stem
from monai_autoaug.errors import DataError
from monai_autoaug.reading import read_json

_LONGEST_PATH = 1000  # characters; a file system takes 4096 bytes, those of the data set's own folder included

__all__ = [
    "channel_files",
    "channel_names",
    "check_cases",
    "check_labels",
    "find",
    "label_value",
    "read_object",
    "rows",
    "table",
    "text",
]



def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        DataError: it can't be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"can't be read as JSON ({error})", file=path, expected="a JSON object", came=str(error),
            remedy="repair the file",
        ) from error  # fmt: skip
    if not isinstance(content, dict):
        raise DataError("is not a JSON object", file=path, expected="an object", came=type(content).__name__)
    return content


def text(value: object, file: Path, what: str) -> str:
    """A name that can be shown.

    Raises:
        DataError: it is none, or holds what a terminal would obey.
    """
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
        expected = "a name of up to 200 characters"
        raise DataError(f"has an unusable {what}", file=file, expected=expected, came=_short(value))
    return value


def table(value: object, file: Path, key: str, example: str) -> Mapping[str, Any]:
    """A JSON object in a field.

    Raises:
        DataError: it is another kind of value.
    """
    if not isinstance(value, Mapping):
        raise DataError(f'has no usable "{key}"', file=file, expected=f"such as {example}", came=_short(value))
    return value


def rows(value: object, file: Path, key: str) -> list[Any]:
    """A list in a field; nothing is an empty one.

    Raises:
        DataError: it is another kind of value.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f'has no usable "{key}"', file=file, expected="a list", came=_short(value))
    return value


def channel_names(value: object, file: Path, key: str) -> tuple[str, ...]:
    """The names of ``{"0": "T1", "1": "T2"}`` in the order of the numbers.

    Raises:
        DataError: they are not numbered from 0 on, or no names.
    """
    if isinstance(value, list):
        value = {str(i): name for i, name in enumerate(value)}
    named = table(value, file, key, '{"0": "MRI"}')
    if sorted(named) != sorted(str(i) for i in range(len(named))) or not named:
        raise DataError(
            f'numbers its "{key}" wrongly', file=file, expected="0, 1, ... without gaps", came=_short(list(named))
        )
    return tuple(text(named[str(i)], file, f'name in "{key}"') for i in range(len(named)))


def label_value(value: object, file: Path, name: str) -> int:
    """A label value that is whole and not negative.

    Raises:
        DataError: it is not.
    """
    digits = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > LARGEST_LABEL:
        raise DataError(
            f'gives the label "{name}" an unusable value', file=file, expected=f"0, 1, 2 ... {LARGEST_LABEL}",
            came=_short(value), remedy="number the labels so, in the files too",
        )  # fmt: skip
    return int(digits)


def check_labels(labels: Mapping[str, LabelValue], file: Path, ignore: int | None) -> None:
    """Refuse label tables that can't be meant: no background, a value twice, a misplaced ignore label.

    Raises:
        DataError: which it is.
    """
    single = [v for v in labels.values() if isinstance(v, int)]
    if 0 not in single:
        raise DataError(
            "declares no background", file=file, expected="a label with the value 0", came=dict(labels),
            remedy='add "background": 0 to its labels',
        )  # fmt: skip
    if len(set(single)) != len(single):
        raise DataError("gives two labels the same value", file=file, expected="distinct values", came=dict(labels))
    highest = max(max(v) if isinstance(v, tuple) else v for v in labels.values())
    if ignore is not None and ignore != highest + 1:
        raise DataError(
            "has an ignore label that is not the highest value plus one", file=file, expected=highest + 1, came=ignore,
            remedy="renumber the ignore label, in the files too",
        )  # fmt: skip


def find(folder: Path, name: object, file: Path, *, anywhere: bool = False) -> Path:
    """A file that a dataset.json names, relative to its folder.

    Args:
        folder: of the data set.
        name: the path.
        file: the dataset.json.
        anywhere: it may lie outside the folder, as in nnU-Net's table of cases, which was made for that.

    Raises:
        DataError: it is no path, one that can't be shown, or one that leaves the folder.
    """
    if not isinstance(name, str) or not name.isprintable() or _path_fault(name) or len(name) > _LONGEST_PATH:
        raise DataError("names a file wrongly", file=file, expected="a path of a NIfTI file", came=_short(name))
    plain = os.path.normpath(name)
    if not anywhere and (os.path.isabs(plain) or plain.startswith("..")):
        below = os.path.isabs(plain) and Path(plain).is_relative_to(os.path.abspath(folder))
        raise DataError(
            "names a file by an absolute path" if below else "names a file outside its folder", file=file,
            expected="a path relative to this file" if below else "a path below it", came=name,
            remedy="write all paths relative to dataset.json" if below else "copy the file into the data set's folder",
        )  # fmt: skip
    return folder / name


def _path_fault(name: str) -> str:
    """Why a path can't be meant: of its last part what `name_fault` says, of its folders what no system takes."""
    path = Path(name)
    folders = (part for part in path.parts[:-1] if part not in (path.anchor, ".", ".."))
    # a folder may begin with a dot or a hyphen, unlike a file that a result is called after
    faults = (name_fault("_" + part[1:] if part[0] in ".-" else part) for part in folders)
    return name_fault(path.name) or next(filter(None, faults), "")


def channel_files(image: Path, count: int) -> tuple[Path, ...]:
    """The file itself, or its ``_0000``, ``_0001`` ... where only those are there.

    Args:
        image: as a dataset.json names it.
        count: of the channels.
    """
    if image.exists() or image.is_symlink():
        return (image,)
    suffix = image.name[len(nifti_stem(image)) :]
    parts = tuple(image.with_name(f"{nifti_stem(image)}_{i:04d}{suffix}") for i in range(count))
    return parts if parts[0].exists() else (image,)


def check_cases(cases: Iterable[Case], file: Path) -> None:
    """Refuse an empty list, and a name that two cases share.

    Raises:
        DataError: which it is.
    """
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise DataError(
                "lists a case twice", file=file, expected="unique file names", came=case.name,
                remedy="take one of the two out of the list",
            )  # fmt: skip
        seen.add(case.name)
    if not seen:
        raise DataError("lists no training case", file=file, expected="at least one image with its label", came="none")


def _short(value: object) -> str:
    """The beginning of a value that may be very long."""
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."
