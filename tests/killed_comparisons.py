# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of killed comparisons by either host share."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fault_helpers import children, command, complete, gone, same
from forked_cells import Forked

from monai_autoaug.evaluation import Evaluation
from monai_autoaug.evaluation.comparison.cells import CellFolder
from monai_autoaug.evaluation.comparison.claims import holder

TIMES = ("training_seconds", "training_ratio", "inference_seconds", "host_mib")


def nothing() -> None:
    """An undisturbed machine."""


def compare(words: list[str], output: Path, disturb: Callable[[], None]) -> None:
    """The command in this process, whose cells are forked ones."""
    own = subprocess.Popen
    child = ["-m", "monai_autoaug.evaluation.comparison.child"]

    def begun(words: list[str], **given: Any) -> Any:
        return (Forked if words[1:3] == child else own)(words, **given)

    subprocess.Popen = begun  # type: ignore[misc, assignment]
    disturb()
    command(words, output)


def kill(process: BaseProcess, moments: random.Random, *, codes: tuple[int, ...] = (0, 1)) -> bool:
    """Kill the command, or what it has begun, or both; False: it had ended.

    Args:
        process: the command.
        moments: draws who is killed.
        codes: that it may end with by itself.
    """
    assert process.pid is not None
    who = moments.choice(("command", "cell", "both"))
    cells = children(process.pid) if who != "command" and process.exitcode is None else []
    for pid in cells:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if who != "cell" or not cells:
        process.kill()
    process.join()
    assert gone(process.pid)  # a cell ends with its command
    assert process.exitcode in (*codes, -signal.SIGKILL)
    return process.exitcode != 0


def cells(folder: Path) -> Iterator[CellFolder]:
    for path in sorted(folder.glob("cells/*")):
        yield CellFolder(path)


def whole_so_far(
    folder: Path, whole: dict[str, tuple[Any, ...]], values: Callable[[CellFolder], tuple[Any, ...]]
) -> None:
    """After a kill: no half file, no half cell that counts as done, no claim of one that is dead.

    Args:
        folder: of the comparison.
        whole: ``values`` of the cells of one that never stopped; the first of them is the evaluation.
        values: what of a cell must not depend on kills.
    """
    complete(folder)
    for cell in cells(folder):
        assert holder(cell.path) is None
        if cell.done:
            same(values(cell), whole[cell.path.name], cell.path.name)
        elif cell.evaluation.exists():
            assert Evaluation.load(cell.evaluation).to_dict() == whole[cell.path.name][0]
