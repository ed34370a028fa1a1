# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison as a whole: which cells there are, where they lie, and how long those of equal time train."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_autoaug.data import Case, DataList
from monai_autoaug.data.folders import read_unlabelled
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.evaluation.comparison.arms import Arm
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.comparison.setting import Parts, Setting, check_same, digest, fingerprint, read_kept
from monai_autoaug.methods.policy_schedule import PolicySchedule

__all__ = ["Plan", "plan", "unlabelled_images"]

SETTING = "comparison.json"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        folder: of the comparison.
        setting: what all arms have in common.
        datalist: the data set.
        data: its fingerprint.
        parts: which cases are for what.
        arms: what is compared.
        reference: name of the arm that all others are compared with.
        counts: numbers of training cases.
        seeds: of the trainings.
        equal_time: whether arms train a second time for as long as the reference takes.
        unlabelled: images without labels, for arms that learn from such.
    """

    folder: Path
    setting: Setting
    datalist: DataList
    data: str
    parts: Parts
    arms: tuple[Arm, ...]
    reference: str
    counts: tuple[int, ...]
    seeds: tuple[int, ...]
    equal_time: bool = False
    unlabelled: tuple[Case, ...] = ()

    @property
    def file(self) -> Path:
        """What all cells have in common, written once."""
        return self.folder / SETTING

    def begin(self) -> None:
        """Write what all cells have in common, or see that it is what is there.

        Raises:
            ConfigError: the folder holds a comparison of another setting.
        """
        content = self.setting.to_dict(self.data)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.file.exists():
            write_once(self.file, json.dumps(content, indent=1) + "\n")
        check_same(self.file, content)

    def check(self) -> None:
        """Refuse a folder that holds a comparison of another setting, or a cell of another configuration.

        Raises:
            ConfigError: it does.
        """
        if self.file.exists():
            check_same(self.file, self.setting.to_dict(self.data))
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(
                f"{self.folder} holds something else than a comparison; choose another folder with --output"
            )
        for cell in self.cells():
            self.place(cell).check(cell)

    def place(self, cell: Cell) -> CellFolder:
        """A cell's folder."""
        return CellFolder(self.folder / "cells" / cell.name)

    def cell(self, arm: Arm, count: int, seed: int, changes: Mapping[str, Any] | None = None) -> Cell:
        """One cell."""
        names = self.unlabelled_names if arm.learns_from_unlabelled else ()
        return Cell(arm, count, seed, self.setting, self.parts, self.data, changes, names)

    def cells(self) -> list[Cell]:
        """All of equal iterations: a whole seed first, so that there is soon something to see."""
        return [self.cell(a, n, s) for s in self.seeds for n in self.counts for a in self.arms]

    def equal_time_cells(self) -> list[Cell]:
        """Those of equal time whose length is known by now; the reference's are those of equal iterations."""
        if not self.equal_time:
            return []
        others = [arm for arm in self.arms if arm.name != self.reference]
        found = []
        for seed in self.seeds:
            for count in self.counts:
                for arm in others:
                    changes = self.changes(arm, count)
                    if changes:
                        found.append(self.cell(arm, count, seed, changes))
        return found

    def changes(self, arm: Arm, count: int) -> dict[str, Any] | None:
        """The options by which an arm takes the reference's time, decided once for a folder.

        Iterations are changed and epochs kept, so that the learning rate falls to its end. What learns a policy updates
        it as often an iteration as in the longer training: its default is a number of updates, with which a shorter
        training would take no less time.

        Returns:
            None: not all trainings of the arm and the reference have ended; empty: it takes that time already.
        """
        key = hashlib.sha256(f"{arm.name}\n{count}\n{self.reference}".encode()).hexdigest()[:16]
        file = self.folder / "equal_time" / f"{key}.json"
        if not file.exists():
            decided = self._equal_time(arm, count)
            if decided is None:
                return None
            write_once(file, json.dumps(decided, indent=1) + "\n")
        changes: dict[str, Any] = read_kept(file)["changes"]
        return changes

    def _equal_time(self, arm: Arm, count: int) -> dict[str, Any] | None:
        reference = next(a for a in self.arms if a.name == self.reference)
        results = []
        for seed in self.seeds:
            pair = [self.place(self.cell(a, count, seed)) for a in (arm, reference)]
            if not all(folder.done for folder in pair):
                return None
            results.append([folder.read()[1] for folder in pair])
        alike = [(a, b) for a, b in results if a["device"] == b["device"]]  # else times can't be compared
        ratio = statistics.median(training_time(b, (a, b)) / training_time(a, (a, b)) for a, b in alike or results)
        options = dict(self.setting.options) | dict(arm.options)
        name, default, epochs = "iterations", TrainOptions.iterations, options.get("epochs") or TrainOptions.epochs
        if self.setting.host == "nnunet":
            name, default, epochs = "iterations_per_epoch", 250, options.get("epochs") or 1000
        before = options.get(name) or default
        iterations = max(1, round(before * ratio))
        changes: dict[str, Any] = {} if iterations == before else {name: iterations}
        if changes and arm.method == "joint_policy" and "update_every" not in arm.method_options:
            changes["method_options"] = {"update_every": PolicySchedule(before * epochs).update_every}
        told = {"arm": arm.name, "cases": count, "reference": self.reference, "seeds": list(self.seeds)}
        return told | {"ratio": round(ratio, 4), "changes": changes}

    @cached_property
    def unlabelled_names(self) -> tuple[str, ...]:
        """What tells the unlabelled images from others: names of labelled cases, or a digest of other images."""
        return self.parts.unlabelled or (f"digest {digest(self.unlabelled)}",)

    def unlabelled_needed(self) -> bool:
        """Whether an arm learns from unlabelled images."""
        return any(arm.learns_from_unlabelled for arm in self.arms)


def training_time(result: Mapping[str, Any], together: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of a training: of CPU time where all ``together`` ran on the CPU and have it, else on the wall.

    On a CPU that others use, too, the clock on the wall measures them as well.
    """
    trainings = [r["training"] for r in together]
    cpu = all(r["device"]["kind"] == "cpu" for r in together) and all(t.get("cpu_seconds") for t in trainings)
    return float(result["training"]["cpu_seconds" if cpu else "seconds"])


def plan(
    datalist: DataList,
    folder: Path,
    setting: Setting,
    *,
    arms: Sequence[str],
    counts: Sequence[str | int] = ("all",),
    seeds: Sequence[int] = (0, 1, 2),
    reference: str | None = None,
    equal_time: bool = False,
    unlabelled: Path | None = None,
) -> Plan:
    """See that everything that is asked for can be had.

    Args:
        datalist: the data set.
        folder: of the comparison.
        setting: what all arms have in common.
        arms: names, see `arms.known_arms`.
        counts: numbers of training cases; "all": all that are not kept for something else.
        seeds: of the trainings.
        reference: one of the arms; None: "nnunet" if it is among them, else the first.
        equal_time: see `Plan`.
        unlabelled: a folder of images without labels; None: those of `Setting`, or those that the data set lists.

    Raises:
        ConfigError: an arm, a number of cases or the reference can't be had, or nothing would be compared.
        DataError: the data set can't be used.
    """
    found = tuple(Arm.find(name, setting.host) for name in dict.fromkeys(arms))
    if len(found) < 2:
        raise ConfigError(f"a comparison needs at least two arms, got {', '.join(a.name for a in found) or 'none'}")
    names = [arm.name for arm in found]
    reference = reference or ("nnunet" if "nnunet" in names else names[0])
    if reference not in names:
        raise ConfigError(
            f"the reference {reference!r} is none of the arms ({', '.join(names)}); add it to --methods"
            f"{did_you_mean(reference, names)}"
        )
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds must be different numbers of 0 or more, got {list(seeds)}")
    parts = Parts.of(datalist.training, setting)
    images = unlabelled_images(datalist, parts, found, unlabelled)
    numbers = tuple(dict.fromkeys(parts.count(text) for text in counts))
    if not numbers:
        raise ConfigError("--cases names no number of training cases")
    return Plan(
        folder, setting, datalist, fingerprint(datalist), parts, found, reference, numbers, tuple(seeds), equal_time,
        images,
    )  # fmt: skip


def unlabelled_images(
    datalist: DataList, parts: Parts, arms: Sequence[Arm], folder: Path | None = None
) -> tuple[Case, ...]:
    """The images without labels that arms learn from; none where no arm does.

    Args:
        datalist: the data set.
        parts: of it.
        arms: that are compared.
        folder: of images without labels; None: those of `Setting`, or those that the data set lists.

    Raises:
        ConfigError: there are none, or they are chosen twice.
        DataError: the folder can't be used.
    """
    wanting = next((arm.name for arm in arms if arm.learns_from_unlabelled), None)
    if wanting is None:
        return ()
    if folder is not None:
        if parts.unlabelled:
            raise ConfigError("--unlabelled and --unlabelled-cases both choose unlabelled images; give one of them")
        return read_unlabelled(folder, len(datalist.channels))
    if parts.unlabelled:
        by_name = {case.name: case for case in datalist.training}
        return tuple(by_name[name] for name in parts.unlabelled)
    if datalist.unlabelled:
        return datalist.unlabelled
    raise ConfigError(
        f"arm {wanting!r} learns from unlabelled images, too: give their folder (--unlabelled), or take labelled cases"
        " as such (--unlabelled-cases)"
    )


def write_once(path: Path, text: str) -> None:
    """Write a file that is not there, whole; of several processes the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        beside.write_text(text, encoding="utf-8")
        try:
            os.link(beside, path)  # in one step, and never over another file
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
                raise
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:  # no links here
                file.write(text)
    finally:
        beside.unlink(missing_ok=True)
