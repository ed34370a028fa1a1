# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Meta-validation cases: what a policy learns from, given by a list or a data set, or drawn anew each epoch."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.errors import ConfigError, DataError

__all__ = ["EpochCases", "cases_of_another_set", "read_case_names"]

_KEY = zlib.crc32(b"meta split")


@dataclass(frozen=True)
class EpochCases:
    """A split of the training cases that is another one in each epoch, so that no case is lost to either part.

    It is a function of seed and epoch alone: the same in all processes and streams.

    Args:
        count: training cases.
        held: how many of them are meta-validation cases, at least 1 and less than ``count``.
        seed: of the splits.
        length: batches an epoch.
        part: whose cases these are.

    Raises:
        ConfigError: a number is out of range.

    >>> train, meta = (EpochCases(5, held=2, seed=0, length=10, part=p) for p in ("train", "meta"))
    >>> sorted([*train(37), *meta(30)]) == list(range(5)), list(meta(30)) == list(meta(39))
    (True, True)
    """

    count: int
    held: int
    seed: int
    length: int
    part: Literal["train", "meta"]

    def __post_init__(self) -> None:
        if not 1 <= self.held < self.count or self.seed < 0 or self.length < 1:
            raise ConfigError(
                f"of {self.count} training cases, 1 to {self.count - 1} can be meta-validation cases of an epoch, got"
                f" {self.held} (seed {self.seed}, {self.length} batches an epoch)"
            )

    def __call__(self, number: int) -> NDArray[np.int64]:
        """Places of the cases that batch ``number`` is drawn from, in ascending order."""
        key = np.random.SeedSequence(self.seed, spawn_key=(_KEY, number // self.length))
        order = np.random.default_rng(key).permutation(self.count)
        return np.sort(order[: self.held] if self.part == "meta" else order[self.held :]).astype(np.int64)


def read_case_names(path: Path) -> tuple[str, ...]:
    r"""Names of cases: a JSON list of them, or text with one a line.

    Args:
        path: the file; in text, empty lines and those that begin with # are left out.

    Raises:
        ConfigError: the file can't be read, or holds no names, or one twice.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "meta.txt"
    >>> _ = file.write_text("# site B\nliver_3\nliver_7\n")
    >>> read_case_names(file)
    ('liver_3', 'liver_7')
    """
    try:
        text = path.read_text(encoding="utf-8")
        listed = json.loads(text) if path.suffix.lower() == ".json" or text.lstrip().startswith("[") else None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: can't be read as a list of cases ({error}); give a JSON list of case names, a text file with one"
            " a line, or the folder of a data set"
        ) from error
    if listed is None:
        listed = [line.strip() for line in text.splitlines()]
        listed = [name for name in listed if name and not name.startswith("#")]
    if not isinstance(listed, list) or not listed or not all(isinstance(n, str) and n for n in listed):
        raise ConfigError(f"{path}: must hold a list of case names, at least one; got {str(listed)[:80]}")
    if len(set(listed)) < len(listed):
        raise ConfigError(f"{path}: names a case twice: {sorted({n for n in listed if listed.count(n) > 1})[0]}")
    return tuple(listed)


def cases_of_another_set(other: DataList, datalist: DataList) -> tuple[Case, ...]:
    """The labelled cases of another data set, for example of another site, for networks that learn on ``datalist``.

    Their names get the folder's name before them, so that they are told from the data set's own.

    Args:
        other: has the same channels, and labels of the same meaning.
        datalist: what is trained on.

    Raises:
        DataError: it doesn't fit; the message says in what.
    """

    def refuse(what: str, expected: object, came: object) -> DataError:
        return DataError(
            f"can't be used for meta-validation: has other {what} than the training data", file=other.folder,
            expected=expected, came=came, remedy="give a data set of the same task, prepared in the same way",
        )  # fmt: skip

    # a plain pair of folders tells neither names of channels nor of labels
    named = "folders" not in (other.layout, datalist.layout)
    if len(other.channels) != len(datalist.channels) or (named and other.channels != datalist.channels):
        raise refuse("channels", ", ".join(datalist.channels), ", ".join(other.channels))
    if named and (other.labels != datalist.labels or other.ignore_label != datalist.ignore_label):
        raise refuse("labels", datalist.labels, other.labels)
    values = {*datalist.label_values, *([] if datalist.ignore_label is None else [datalist.ignore_label])}
    if not set(other.label_values) <= values:
        raise refuse("label values", sorted(values), list(other.label_values))
    if not other.training:
        raise refuse("cases", "cases with a label", "none")
    return tuple(replace(c, name=f"{other.folder.resolve().name}/{c.name}") for c in other.training)
