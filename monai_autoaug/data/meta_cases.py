# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Meta-validation cases: what a policy learns from, given by a list or a data set, or drawn anew each epoch."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.reading import MEBIBYTE, read_json, read_text

__all__ = ["EpochCases", "MetaSplit", "cases_of_another_set", "read_case_names"]

_KEY = zlib.crc32(b"meta split")  # no other random numbers of the seed are these
T = TypeVar("T", int, str)


@dataclass(frozen=True)
class MetaSplit(Generic[T]):
    """Which cases train the network in an epoch and which are its meta-validation cases, the same for every host.

    It is a function of seed and epoch alone: the same on all ranks, in all workers and streams, and in a resumed run.

    Args:
        cases: names or places; some of them are drawn for meta-validation, none if ``listed`` says which.
        held: how many are drawn, at least 1 and less than there are; 0 with ``listed``.
        seed: of the draws, 0 or more.
        resampled: draw anew for each epoch, so that no case is lost to either part.
        listed: meta-validation cases that aren't drawn; ``cases`` all train, and none of them is among these.

    Raises:
        ConfigError: a number is out of range, or ``listed`` doesn't go with the rest.

    >>> split = MetaSplit(("a", "b", "c", "d"), held=1)
    >>> split.training(0), split.meta(0), split.meta(1)
    (('a', 'c', 'd'), ('b',), ('b',))
    """

    cases: tuple[T, ...]
    held: int = 0
    seed: int = 0
    resampled: bool = False
    listed: tuple[T, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.cases)
        if self.listed and (self.held or self.resampled or not count or set(self.listed) & set(self.cases)):
            raise ConfigError(
                f"listed meta-validation cases are none of the training cases, and none are drawn beside them; got"
                f" {count} to train on, {self.held} to draw, resampled {self.resampled}"
            )
        if self.seed < 0 or not (self.listed or 1 <= self.held < count):
            raise ConfigError(
                f"of {count} training cases, 1 to {count - 1} can be meta-validation cases of an epoch, got"
                f" {self.held} (seed {self.seed})"
            )

    def meta(self, epoch: int) -> tuple[T, ...]:
        """The meta-validation cases of an epoch, in the order of all."""
        if self.listed:
            return self.listed
        key = np.random.SeedSequence(self.seed, spawn_key=(_KEY, epoch if self.resampled else 0))
        drawn = np.random.default_rng(key).permutation(len(self.cases))[: self.held]
        return tuple(self.cases[place] for place in sorted(drawn.tolist()))

    def training(self, epoch: int) -> tuple[T, ...]:
        """The cases that train the network in an epoch, in the order of all."""
        held = set(self.meta(epoch))
        return tuple(case for case in self.cases if case not in held)


@dataclass(frozen=True)
class EpochCases(Generic[T]):
    """The cases that batch number ``n`` of a stream is drawn from, where they change from epoch to epoch.

    Args:
        split: by epoch.
        length: batches an epoch, at least 1.
        part: whose cases these are.

    Raises:
        ConfigError: the length is out of range.

    >>> split = MetaSplit(tuple(range(5)), held=2, resampled=True)
    >>> train, meta = (EpochCases(split, length=10, part=p) for p in ("train", "meta"))
    >>> sorted([*train(37), *meta(30)]) == list(range(5)), meta(30) == meta(39)
    (True, True)
    """

    split: MetaSplit[T]
    length: int
    part: Literal["train", "meta"]

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"an epoch must have at least 1 batch, got {self.length}")

    @property
    def count(self) -> int:
        """Of how many cases both parts are made."""
        return len(self.split.cases)

    def __call__(self, number: int) -> tuple[T, ...]:
        """Of batch ``number``, in the order of all cases."""
        epoch = number // self.length
        return self.split.meta(epoch) if self.part == "meta" else self.split.training(epoch)


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
        text = read_text(path, largest=MEBIBYTE)
        listed = read_json(path) if path.suffix.lower() == ".json" or text.lstrip().startswith("[") else None
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
        raise ConfigError(f"{path}: names a case twice: {min(n for n, k in Counter(listed).items() if k > 1)}")
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
