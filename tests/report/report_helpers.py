# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Trainings of a second whose folders the tests of reports read, and what is in a page."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from monai_autoaug.commands import complete
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import TrainOptions

SMALL: dict[str, Any] = {
    "iterations": 2, "patch_size": (16, 16, 16), "validation_cases": 5, "device": "cpu",
    "network_options": {"channels": [4, 8]},
}  # fmt: skip
LEARNED = {"joint_policy": {"update_every": 1, "warm_up": 0, "pool": 2}, "adversarial": {"warm_up": 0}, "random": {}}


def make_runs(folder: Path) -> dict[str, Path]:
    """A data set whose cases have telling names, and a run of each method on it."""
    data = write_phantom(folder / "patient_files" / "data", cases=10, size=20)
    runs = {}
    for method, options in LEARNED.items():
        output = runs[method] = folder / "runs" / f"of_{method}"
        given = TrainOptions(data, output, method=method, epochs=2, method_options=options, **SMALL)
        complete(given, listener=lambda progress: None)
    return runs


def copied(run: Path, folder: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(run, folder / run.name))


def names_of(run: Path) -> list[str]:
    """Names of the cases of a run."""
    split = json.loads((run / "config.json").read_text())["split"]
    return [name for part in split.values() for name in part]


class Outline(HTMLParser):
    """Headings, ids, links, pictures and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.levels.append(int(tag[1]))
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if tag == "a" and name == "href":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        if not {"style"} & set(self._open[-1:]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
