# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells: one training of one arm, in a folder with its configuration and its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_autoaug.errors import DataError
from monai_autoaug.evaluation.comparison.arms import Arm
from monai_autoaug.evaluation.comparison.setting import Parts, Setting, check_same
from monai_autoaug.evaluation.result import Evaluation
from monai_autoaug.reading import MALFORMED, read_json
from monai_autoaug.writing import write_text

__all__ = ["Cell", "CellFolder", "file_name"]

EQUAL_TIME = "equal_time"
VERSION = 1
_LONGEST = 80  # letters of a folder's name


def file_name(text: str) -> str:
    """A name of a file or folder for what has an arm's name in it.

    >>> file_name("task_driven/affine:p=0.5_10")
    'task_driven--affine_p=0.5_10'
    """
    plain = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", text.replace("/", "--"))
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}_{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Cell:
    """One training: an arm, a number of training cases, a seed.

    Args:
        arm: what is trained.
        cases: how many training cases.
        seed: of the training, and of which cases these are.
        setting: of the comparison.
        parts: of the data set.
        data: its fingerprint.
        changes: of the options, by which the arm takes the time of another; None: it has the comparison's length.
        unlabelled: names of the cases whose images are taken as unlabelled, or a digest of other images, where the arm
            learns from such.
    """

    arm: Arm
    cases: int
    seed: int
    setting: Setting
    parts: Parts
    data: str
    changes: Mapping[str, Any] | None = None
    unlabelled: tuple[str, ...] = ()

    @property
    def equal(self) -> str:
        """What this cell has in common with the others: "iterations" or "time"."""
        return "iterations" if self.changes is None else "time"

    @property
    def name(self) -> str:
        """Of its folder."""
        words = [self.arm.name, str(self.cases), str(self.seed)]
        if self.changes is not None:
            words.append(EQUAL_TIME)
        return file_name("_".join(words))

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that decides the result, as JSON values, and their hash."""
        changes = dict(self.changes or {})
        method_options = dict(self.arm.method_options) | changes.pop("method_options", {})
        content = {
            "version": VERSION,
            "arm": self.arm.name,
            "equal": self.equal,
            "method": self.arm.method,
            "method_options": method_options,
            "options": dict(self.setting.options) | dict(self.arm.options) | changes,
            "trainer": self.arm.trainer,
            "seed": self.seed,
            "train": list(self.parts.train(self.cases, self.seed)),
            "validation": list(self.parts.validation),
            "unlabelled": list(self.unlabelled),
            "test": list(self.parts.test),
            "setting": {n: v for n, v in self.setting.to_dict(self.data).items() if n != "options"},
        }
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain | {"hash": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]}


@dataclass(frozen=True)
class CellFolder:
    """A cell's folder.

    ``config.json`` all that decides the result; ``claim.N`` the process that works in it (`claims`); ``progress.json``
    where that is; ``log.txt`` what it prints; ``run/`` the training (host "monai"); ``evaluation.json`` the values of
    all test cases; ``result.json``, written last: what training and prediction took.

    Args:
        path: where it is.
    """

    path: Path

    @property
    def config(self) -> Path:
        """All that decides the result."""
        return self.path / "config.json"

    @property
    def progress(self) -> Path:
        """Where the process that works in it is."""
        return self.path / "progress.json"

    @property
    def log(self) -> Path:
        """What that process has printed."""
        return self.path / "log.txt"

    @property
    def run(self) -> Path:
        """The training's folder."""
        return self.path / "run"

    @property
    def predictions(self) -> Path:
        """Of the test cases; removed when they have been evaluated."""
        return self.path / "predictions"

    @property
    def evaluation(self) -> Path:
        """Values of all test cases."""
        return self.path / "evaluation.json"

    @property
    def result(self) -> Path:
        """What training and prediction took; where it is, the cell is done."""
        return self.path / "result.json"

    @property
    def done(self) -> bool:
        """Whether the cell has its result."""
        return self.result.exists()

    def check(self, cell: Cell) -> None:
        """Refuse a folder that holds a cell of another configuration.

        Raises:
            ConfigError: it does; the message says what differs.
        """
        if self.config.exists():
            check_same(self.config, cell.config)

    def begin(self, cell: Cell) -> None:
        """Write the configuration, if it isn't there.

        Raises:
            ConfigError: another one is there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config.exists():
            write_text(self.config, json.dumps(cell.config, indent=1) + "\n")
        self.check(cell)

    def read(self) -> tuple[Evaluation, dict[str, Any]]:
        """What came out of the cell.

        Raises:
            DataError: a file is damaged.
        """
        evaluation = Evaluation.load(self.evaluation)
        try:
            result = read_json(self.result)
            for key in ("training", "inference", "peak_memory"):
                result[key].keys()
        except (OSError, *MALFORMED) as error:
            raise DataError(
                f"is no result of a cell ({type(error).__name__}: {error})", file=self.result,
                remedy=f"remove the folder {self.path.name}; the same command makes it again",
            ) from error  # fmt: skip
        return evaluation, result
