# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Comparisons without training: a data set of names, and a runner that makes results up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_autoaug.data import Case, DataList
from monai_autoaug.engines.progress import Listener
from monai_autoaug.evaluation import METRICS, Evaluation
from monai_autoaug.evaluation.comparison import Plan, Setting, plan
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder

STRUCTURES = ("head", "tail")
DEVICE = {"kind": "cpu", "name": "a processor"}


def datalist(folder: Path, cases: int = 24) -> DataList:
    """Files of a few bytes; nothing reads them as images."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(cases):
        files = [folder / f"{kind}_{number:03d}.nii.gz" for kind in ("image", "label")]
        for file in files:
            file.write_bytes(b"x" * (10 + number))
        found.append(Case(f"case_{number:03d}", (files[0],), files[1]))
    labels = {"background": 0, "head": 1, "tail": 2}
    return DataList(folder, "decathlon", ("MRI",), labels, training=tuple(found))


def small_plan(root: Path, arms: Sequence[str] = ("none", "adversarial"), **changes: Any) -> Plan:
    given: dict[str, Any] = {"counts": (4,), "seeds": (0, 1)} | changes
    setting = given.pop("setting", Setting(test_cases=8, validation_cases=2))
    return plan(datalist(root / "data"), root / "out", setting, arms=arms, **given)


def write_result(cell: Cell, folder: CellFolder, gain: float, seconds: float = 10.0) -> None:
    """Values of every test case: the same difficulty for all arms, and what an arm gains."""
    names = cell.parts.test
    difficulty = np.random.default_rng(0).normal(0.8, 0.05, (len(names), 1))
    noise = np.random.default_rng([cell.seed, cell.cases]).normal(0, 0.002, (len(names), len(STRUCTURES)))
    values = {
        m: difficulty + noise + gain if METRICS[m].higher_is_better else 5 - 10 * (difficulty + noise + gain)
        for m in METRICS
    }
    Evaluation(names, STRUCTURES, values).save(folder.evaluation)
    result = {
        "version": 1, "hash": cell.config["hash"],
        "training": {"seconds": seconds, "cpu_seconds": seconds, "iterations": 100},
        "inference": {"seconds": 2.0, "cpu_seconds": 2.0, "cases": len(names)},
        "peak_memory": {"host_mib": 700.0 + seconds, "device_mib": None},
        "device": DEVICE, "versions": {"torch": "2.8"}, "learned": {}, "warnings": [],
    }  # fmt: skip
    folder.result.write_text(json.dumps(result))


def making_up(
    gains: Mapping[str, float], seconds: Mapping[str, float] | None = None, pause: float = 0.0,
    seen: list[str] | None = None, fails: Callable[[Cell], None] = lambda cell: None,
) -> Callable[[Cell, CellFolder, threading.Event, Listener], None]:  # fmt: skip
    """A runner that trains nothing; training time is by iteration where the length is changed."""

    def execute(cell: Cell, folder: CellFolder, stop: threading.Event, listener: Listener) -> None:
        if seen is not None:
            seen.append(cell.name)
        fails(cell)
        if pause:
            time.sleep(pause)
        if not stop.is_set():
            write_result(cell, folder, gains.get(cell.arm.name, 0.0), (seconds or {}).get(cell.arm.name, 10.0))

    return execute
