# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A split that is given by the names of its cases, as a file: what several trainings have in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_autoaug.data.datalist import Case
from monai_autoaug.errors import ConfigError
from monai_autoaug.reading import read_json
from monai_autoaug.writing import write_text

__all__ = ["SplitFile"]

_KEYS = ("train", "validation", "unlabelled")


@dataclass(frozen=True)
class SplitFile:
    """Names of the cases that train and validate; all others of the data set are left alone.

    Args:
        train: cases to learn from, those of meta-validation included.
        validation: cases that validate.
        unlabelled: cases whose labels are not looked at, for methods that learn from unlabelled images, too.

    Raises:
        ConfigError: there are no cases to train on or to validate with, or one has two purposes.

    >>> SplitFile(("a", "b"), ("b",))
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: a split names b twice; each case has one purpose
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train or not self.validation:
            raise ConfigError("a split must name at least one case to train on and one to validate with")
        counts = Counter((*self.train, *self.validation, *self.unlabelled))
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ConfigError(f"a split names {', '.join(twice[:5])} twice; each case has one purpose")

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        content = {key: list(getattr(self, key)) for key in _KEYS}
        return write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> SplitFile:
        """Read what `save` wrote, or a person did.

        Raises:
            ConfigError: it can't be read, or is no such split.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"split {path}: can't be read ({error})") from error
        lists = isinstance(content, dict) and all(
            isinstance(names, list) and all(isinstance(n, str) for n in names) for names in content.values()
        )
        if not lists or set(content) - set(_KEYS):
            raise ConfigError(f"split {path}: must hold lists of names by {', '.join(_KEYS)}, and nothing else")
        return cls(**{key: tuple(names) for key, names in {"train": (), "validation": (), **content}.items()})

    def choose(self, cases: Sequence[Case]) -> tuple[tuple[Case, ...], tuple[Case, ...], tuple[Case, ...]]:
        """The cases of each purpose, in the order of the names; unlabelled ones without their labels.

        Args:
            cases: the labelled cases of the data set.

        Raises:
            ConfigError: a case is not there.

        >>> [len(part) for part in SplitFile(("b",), ("a",)).choose([Case("a", ()), Case("b", ()), Case("c", ())])]
        [1, 1, 0]
        """
        by_name = {case.name: case for case in cases}
        unknown = sorted({*self.train, *self.validation, *self.unlabelled} - set(by_name))
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ConfigError(f"split: there are no labelled cases {', '.join(unknown[:5])}{more} in the data set")
        return (
            tuple(by_name[name] for name in self.train),
            tuple(by_name[name] for name in self.validation),
            tuple(replace(by_name[name], label=None) for name in self.unlabelled),
        )
