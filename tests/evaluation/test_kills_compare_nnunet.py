# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison through nnU-Net killed at any moment: the next command has the result of one that never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import (
    begin,
    chances,
    ended,
    needs_kill,
    said,
    same,
    server,
    temporary,
    used_by_all,
    waited,
)
from killed_comparisons import TIMES, cells, compare, kill, whole_so_far

from monai_autoaug.data import write_phantom
from monai_autoaug.evaluation.comparison.cells import CellFolder
from monai_autoaug.reading import read_json

pytestmark = needs_kill
OPTIONS = ("patch_size=[16, 16, 16]", "features=[4, 8]", "val_iterations_per_epoch=1", "save_every=1",
           "base_augmentation=none")  # fmt: skip


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both channels in one file, which nnU-Net is given as two."""
    return write_phantom(tmp_path_factory.mktemp("kills") / "data", cases=8, size=16, channels=2)


def forked_pools() -> None:
    """nnU-Net's pools fork: a spawned process spends many seconds on imports, and has no handler of signals."""
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    original = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: original("fork")  # type: ignore[assignment]


def start(processes: ForkServerContext, data: Path, folder: Path) -> BaseProcess:
    words = ["compare", "--data", data, "--host", "nnunet", "--methods", "none,adversarial:width=2:warm_up=0",
             "--seeds", 1, "--cases", 3, "--output", folder, "--epochs", 3, "--iterations", 2, "--test-cases", 3,
             "--validation-cases", 1, "--workers", 0, "--device", "cpu"]  # fmt: skip
    for option in OPTIONS:
        words += ["--option", option]
    given = [str(word) for word in words]
    return begin(processes, compare, given, folder.parent / f"{folder.name}.txt", forked_pools, COLUMNS="400")


def fold(cell: CellFolder) -> Path:
    (found,) = cell.run.glob("results/*/*/fold_0")
    return found


def values(cell: CellFolder) -> tuple[Any, ...]:
    """What must not depend on kills: of the cell's result all but times, and what it has learned."""
    evaluation, result = cell.read()
    del result["training"]["seconds"], result["inference"], result["peak_memory"]
    result["training"].pop("cpu_seconds", None)  # only known of a training that nothing interrupted
    content = torch.load(fold(cell) / "checkpoint_final.pth", weights_only=False)
    learned = {name: content[name] for name in ("network_weights", "optimizer_state", "autoaug")}
    log = [json.loads(line) for line in (fold(cell) / "autoaug.jsonl").read_text().splitlines()]
    return evaluation.to_dict(), result, learned, log, read_json(cell.config)


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for row in content["rows"]:
        for name in TIMES:
            del row[name]
    # a training that was killed knows nnU-Net's own clock alone
    content["notes"] = [note for note in content["notes"] if not note.startswith("Training times are CPU time")]
    return content


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.long)])
def test_a_comparison_killed_at_any_moment_ends_as_one_that_never_stopped(
    kills: int, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """The first folder is killed while nnU-Net plans and preprocesses, too; the others have its prepared data."""
    moments, done, number = chances(kills), 0, 0
    first = tmp_path / "whole"
    whole_seconds = ended(start(processes, data, first), used_by_all)
    whole = {cell.path.name: values(cell) for cell in cells(first)}
    assert len(whole) == 2
    ready = prepared(first, tmp_path / "ready")
    seconds = ended(start(processes, data, ready), used_by_all)
    as_whole(ready, first)
    while done < kills:
        number += 1
        folder, finished, most = tmp_path / f"killed_{number}", False, kills
        if number == 1:
            most = max(1, kills // 10)
        else:
            prepared(first, folder)
        while not finished:
            process = start(processes, data, folder)
            if done < most:
                latest = 0.8 * (whole_seconds if number == 1 else seconds)
                waited(process, moments.uniform(0, latest), moments, used_by_all)
                finished = not kill(process, moments, codes=(0, 1, 2))
                if process.exitcode == 2:
                    assert "was killed by signal 9 while it planned" in said(folder.parent / f"{folder.name}.txt")
                    finished = False
                done += not finished
            else:
                ended(process)
                finished = True
            if folder.exists():
                whole_so_far(folder, whole, values)
        as_whole(folder, first)


def prepared(whole: Path, folder: Path) -> Path:
    """A comparison that nnU-Net has prepared the data for, and no more."""
    shutil.copytree(whole / "nnunet", folder / "nnunet", symlinks=True)
    shutil.copyfile(whole / "comparison.json", folder / "comparison.json")
    return folder


def as_whole(folder: Path, whole: Path) -> None:
    """The same result, and nothing that killed processes have left."""
    assert "everything is in" in said(folder.parent / f"{folder.name}.txt")
    assert summary(folder) == summary(whole)
    assert (folder / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()
    assert not temporary(folder)
    assert not list((folder / "nnunet").glob("preparing_*"))
    for cell in cells(folder):
        same(values(cell), values(CellFolder(whole / "cells" / cell.path.name)))
        assert not (fold(cell) / "checkpoint_latest.pth").exists()
        assert not (cell.path / "test_images").exists()
