# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison killed or stopped at any moment: what is there is whole, and the next command has the same result."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import (
    PATIENCE,
    begin,
    chances,
    complete,
    ended,
    gone,
    needs_kill,
    said,
    same,
    server,
    temporary,
    used_by_all,
    waited,
)
from killed_comparisons import TIMES, cells, compare, kill, nothing, whole_so_far

from monai_autoaug.data import write_phantom
from monai_autoaug.engines.folder import Run
from monai_autoaug.evaluation.comparison.cells import CellFolder
from monai_autoaug.reading import read_json

pytestmark = needs_kill


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("kills") / "data", cases=8, size=16)


def start(
    processes: ForkServerContext, data: Path, folder: Path, disturb: Callable[[], None] = nothing, epochs: int = 3
) -> BaseProcess:  # fmt: skip
    words = ["compare", "--data", data, "--methods", "none,adversarial:width=2:warm_up=0", "--seeds", 1, "--cases", 3,
             "--output", folder, "--epochs", epochs, "--iterations", 2, "--test-cases", 3, "--validation-cases", 1,
             "--option", "network_options={channels: [2, 4]}", "--option", "patch_size=[8, 8, 8]", "--option",
             "batch_size=2", "--device", "cpu"]  # fmt: skip
    given = [str(word) for word in words]
    return begin(processes, compare, given, folder.parent / f"{folder.name}.txt", disturb, COLUMNS="400")


def values(cell: CellFolder) -> tuple[Any, ...]:
    """What must not depend on kills: of the cell's result all but times, and what it has learned."""
    evaluation, result = cell.read()
    del result["training"]["seconds"], result["training"]["cpu_seconds"], result["inference"], result["peak_memory"]
    run = Run(cell.run)
    learned = {f.name: torch.load(f, weights_only=True) for f in sorted(run.folder.glob("*.pt"))}
    return evaluation.to_dict(), result, learned, read_json(cell.config)


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for row in content["rows"]:
        assert row["training_seconds"] > 0
        for name in TIMES:
            del row[name]
    return content


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_a_comparison_killed_at_any_moment_ends_as_one_that_never_stopped(
    kills: int, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    seconds = ended(start(processes, data, tmp_path / "whole"), used_by_all)
    whole = {cell.path.name: values(cell) for cell in cells(tmp_path / "whole")}
    assert len(whole) == 2
    moments, done, number = chances(kills), 0, 0
    while done < kills:
        number += 1
        folder, finished = tmp_path / f"killed_{number}", False
        while not finished:
            process = start(processes, data, folder)
            if done < kills:
                waited(process, moments.uniform(0, 0.8 * seconds), moments, used_by_all)
                finished = not kill(process, moments)
                done += not finished
            else:
                ended(process)
                finished = True
            if folder.exists():
                whole_so_far(folder, whole, values)
        as_whole(folder, tmp_path / "whole")


def as_whole(folder: Path, whole: Path) -> None:
    """The same result, the same files, and nothing that killed processes have left."""
    assert "everything is in" in said(folder.parent / f"{folder.name}.txt")
    assert summary(folder) == summary(whole)
    assert (folder / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()
    files = [{str(p.relative_to(f)) for p in f.rglob("*") if "claim." not in p.name} for f in (folder, whole)]
    assert files[0] == files[1]
    assert not temporary(folder)
    for cell in cells(folder):
        same(values(cell), values(CellFolder(whole / "cells" / cell.path.name)))


def until_trained(process: BaseProcess, folder: Path) -> None:
    """Wait for the first checkpoint of the first cell."""
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob("cells/*/run/checkpoint.pt")):
        assert process.exitcode is None, said(folder.parent / f"{folder.name}.txt")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_gives_the_cell_back(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    """From a terminal; the cell, in a group of its own, is ended by the command."""
    folder = tmp_path / "out"
    process = start(processes, data, folder, epochs=500)
    until_trained(process, folder)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert gone(process.pid, seconds=1)
    told = said(tmp_path / "out.txt")
    assert f"stopped; go on with: monai-autoaug compare --resume --output {folder}" in told
    assert "Traceback" not in told
    complete(folder)
    assert not temporary(folder)
    assert not list(folder.rglob("claim.*"))


def full_disk_for_a_checkpoint() -> None:
    """A disk that has room for anything but the first cell's second checkpoint."""
    original, seen = os.replace, []

    def replace(source: Any, target: Any, **given: Any) -> None:
        if Path(target).name == "checkpoint.pt":
            seen.append(target)
            if len(seen) == 2 and "none" in str(target):
                raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target, **given)

    os.replace = replace


def test_a_full_disk_in_a_cell(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    """The others are done; the same command goes on with it."""
    folder, whole = tmp_path / "out", tmp_path / "whole"
    ended(start(processes, data, whole))
    process = start(processes, data, folder, full_disk_for_a_checkpoint)
    process.join()
    told = said(tmp_path / "out.txt")
    assert process.exitcode == 1, told
    file = folder / "cells" / "none_3_0" / "run" / "checkpoint.pt"
    assert f"none_3_0 could not be done: {file}: No space left on device" in told
    assert "1 of 2 cells are done" in told
    assert "Traceback" not in told
    assert torch.load(file, weights_only=True)
    assert not temporary(folder)
    ended(start(processes, data, folder))
    as_whole(folder, whole)
