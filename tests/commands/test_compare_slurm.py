# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The SLURM array of docs/: its tasks share the cells of one comparison."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import PATIENCE, begin, command, complete, needs_kill, said, server
from forked_cells import Forked

from monai_autoaug.data import write_phantom
from monai_autoaug.evaluation.comparison import scheduling
from monai_autoaug.evaluation.comparison.cells import CellFolder

SCRIPT = Path(__file__).parents[2] / "docs" / "compare_slurm.sh"
ARMS = ("none", "random", "random:mode=affine")
SMALL = ["--methods", ",".join(ARMS), "--seeds", "2", "--cases", "3", "--epochs", "1", "--iterations", "2",
         "--test-cases", "2", "--validation-cases", "1", "--option", "network_options={channels: [2, 4]}", "--option",
         "patch_size=[8, 8, 8]", "--option", "batch_size=2", "--device", "cpu"]  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def task(number: int, folder: Path, *options: str, **given: str) -> subprocess.CompletedProcess[str]:
    """What the script would run as a task of an array of two."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    file = programs / "monai-autoaug"
    file.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    file.chmod(0o755)
    own = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(number),
           "SLURM_ARRAY_TASK_MIN": "0"}  # fmt: skip
    return subprocess.run(
        [shutil.which("bash") or "bash", str(SCRIPT), *options], env=own | given, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def words(number: int, folder: Path, data: Path) -> list[str]:
    done = task(number, folder, *SMALL, DATA=str(data), OUTPUT=str(folder / "with space"))
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_what_is_run(tmp_path: Path) -> None:
    first, second = (words(number, tmp_path, Path("data")) for number in (0, 1))
    assert first == ["compare", "--data", "data", "--output", str(tmp_path / "with space"), *SMALL]
    assert second == [*first[:5], "--no-wait", *SMALL]  # only the first task waits for the others
    for given in ({"DATA": "data"}, {"OUTPUT": "out"}):
        done = task(0, tmp_path, **given)
        assert done.returncode != 0
        assert "which all nodes see" in done.stderr


class Noted(Forked):
    """Cells are noted with the task that they are begun by; no task goes on before both have begun one."""

    def __init__(self, command: list[str], **given: Any) -> None:
        log = Path(os.environ["BEGUN"])
        with log.open("a") as file:
            file.write(f"{os.environ['SLURM_ARRAY_TASK_ID']} {Path(command[3]).name}\n")
        deadline = time.monotonic() + PATIENCE
        while len({line.split()[0] for line in log.read_text().splitlines()}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        super().__init__(command, **given)


def as_task(words: list[str], output: Path) -> None:
    scheduling.subprocess.Popen = Noted  # type: ignore[misc, assignment]
    command(words, output)


@needs_kill
def test_two_tasks_at_once_train_each_cell_once(tmp_path: Path) -> None:
    data, begun, output = write_phantom(tmp_path / "data", cases=7, size=16), tmp_path / "begun.txt", []
    processes = []
    for number in (0, 1):
        output.append(tmp_path / f"said_{number}.txt")
        given = {"SLURM_ARRAY_TASK_ID": str(number), "BEGUN": str(begun), "COLUMNS": "400"}
        processes.append(begin(server(), as_task, words(number, tmp_path, data), output[number], **given))
    for number, process in enumerate(processes):
        process.join(timeout=PATIENCE)
        assert process.exitcode == 0, said(output[number])
    lines = [line.split() for line in begun.read_text().splitlines()]
    folder = tmp_path / "with space"
    cells = {path.name for path in (folder / "cells").iterdir()}
    assert len(cells) == 2 * len(ARMS)
    assert sorted(name for _, name in lines) == sorted(cells)  # each once
    assert {number for number, _ in lines} == {"0", "1"}
    complete(folder)
    for path in (folder / "cells").iterdir():
        assert CellFolder(path).done
        assert not list(path.glob("claim.*"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["done"] == summary["total"] == len(cells)
    assert {row["arm"] for row in summary["rows"]} == set(ARMS)
