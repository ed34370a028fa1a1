# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells one after the other: those that are done are left alone, those that others work on come last."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from monai_autoaug.child_processes import OWN_GROUP, end
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.errors import AutoAugError
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.comparison.claims import HEARTBEAT, STALE, Claim, holder
from monai_autoaug.evaluation.comparison.working import Place

__all__ = ["CellError", "Execute", "in_a_process", "run_cells", "state_of"]

POLL = 2.0  # seconds between two looks at what others work on


class CellError(AutoAugError):
    """A cell that can't be done; the others can.

    >>> issubclass(CellError, AutoAugError)
    True
    """


Execute = Callable[[Cell, CellFolder, threading.Event, Listener], None]
"""Does a cell, or what is left of it; ends soon, without a result, once the event is set.

Raises `CellError`, or another `AutoAugError`, where the cell can't be done.
"""


def state_of(folder: CellFolder, *, stale: float = STALE) -> str:
    """In words: "done", "process 7 on host works on it", "begun" or "to do"."""
    if folder.done:
        return "done"
    who = holder(folder.path, stale=stale)
    if who is not None:
        return f"{who} works on it"
    return "begun" if folder.config.exists() else "to do"


def run_cells(
    cells: Sequence[Cell],
    folders: Callable[[Cell], CellFolder],
    execute: Execute,
    *,
    listener: Listener = unheard,
    wait: bool = True,
    stale: float = STALE,
    heartbeat: float = HEARTBEAT,
    poll: float = POLL,
) -> dict[str, str]:
    """Do all cells that are left, in their order; several processes with the same cells share them.

    Args:
        cells: what there is to do.
        folders: where each is.
        execute: does one, such as `in_a_process`.
        listener: hears how many are done, and of the one that is worked on.
        wait: for cells that others work on, and take over those whose process has died; False: leave them.
        stale: see `claims.Claim.take`.
        heartbeat: likewise.
        poll: seconds between two looks at what others work on.

    Returns:
        Name of each cell that could not be done -> why.

    Raises:
        ConfigError: a folder holds a cell of another configuration; found before any cell is begun.
    """
    failed: dict[str, str] = {}
    for cell in cells:
        folders(cell).check(cell)

    def tell(note: str | None = None) -> list[Cell]:
        left = [cell for cell in cells if not folders(cell).done and cell.name not in failed]
        listener(Progress("cells", len(cells) - len(left), len(cells), note=note))
        return left

    left = tell()
    while left:
        begun = False
        for cell in left:
            folder = folders(cell)
            if folder.done:
                continue
            told = f"{cell.arm.name}, {cell.cases} cases, seed {cell.seed}, equal {cell.equal}"
            outcome = _attempt(cell, folder, execute, listener, partial(tell, told), stale, heartbeat)
            if outcome is not None:
                begun = True
                if outcome:
                    failed[cell.name] = outcome
                    listener(Progress("cells", 0, len(cells), note=f"{told}: failed. {outcome}"))
                tell()
        left = tell()
        if left and not begun:  # others work on all that is left
            if not wait:
                break
            time.sleep(poll)
    return failed


def _attempt(
    cell: Cell, folder: CellFolder, execute: Execute, listener: Listener, begin: Callable[[], object], stale: float,
    heartbeat: float,
) -> str | None:  # fmt: skip
    """Do a cell if it is free.

    Returns:
        None: another process has it, or has taken it over; "": done; else why it can't be done.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    claim = Claim.take(folder.path, done=lambda: folder.done, lost=stop.set, stale=stale, heartbeat=heartbeat)
    if claim is None:
        return None
    try:
        begin()
        folder.begin(cell)
        execute(cell, folder, stop, listener)
        if claim.is_lost:
            return None
        return "" if folder.done else "it ended without a result"
    except AutoAugError as error:
        return None if claim.is_lost else str(error)
    finally:
        stop.set()
        claim.release(all_of_them=folder.done)


def in_a_process(place: Place, *, poll: float = 0.3) -> Execute:
    """Do cells in processes of their own, whose memory is theirs alone.

    Args:
        place: where.
        poll: seconds between two looks at where the process is.
    """

    def execute(cell: Cell, folder: CellFolder, stop: threading.Event, listener: Listener) -> None:
        command = [sys.executable, "-m", "monai_autoaug.evaluation.comparison.child", str(folder.path), place.to_json()]
        with folder.log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(  # noqa: S603  # our own module
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, **OWN_GROUP
            )
            try:
                _follow(process, folder.progress, stop, listener, poll)
            finally:
                end(process)
        if stop.is_set():
            return
        if process.returncode != 0:
            raise CellError(_reason(folder.log, start, process.returncode))

    return execute


def _follow(
    process: subprocess.Popen[bytes], file: Path, stop: threading.Event, listener: Listener, poll: float
) -> None:
    """Hand on where a process is, until it ends or is to stop."""
    heard = b""
    while process.poll() is None and not stop.is_set():
        with contextlib.suppress(OSError, ValueError, TypeError):
            content = file.read_bytes()
            if content != heard:
                heard = content
                listener(Progress(**json.loads(content)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(poll)


def _reason(log: Path, start: int, code: int) -> str:
    """Why a process has failed: the message it ended with, or the end of what it printed."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if told:
        return "\n".join(lines[told[-1] :]).removeprefix("error: ").strip()
    signalled = f"signal {-code}" if code < 0 else f"code {code}"
    end = "; ".join(line.strip() for line in lines[-3:] if line.strip())
    memory = " (if the machine has too little memory, lower batch or patch size)" if code == -9 else ""
    return f"its process ended with {signalled}{memory}; {log.parent.name}/{log.name} ends with: {end}"
