# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which process works in a cell, where several, perhaps on several machines, share a folder.

A claim is a file ``claim.N`` that is created where none was (``O_EXCL``, which network file systems keep, too); the one
with the highest number counts. Its holder touches it again and again. One that is no longer touched, or whose process
has ended on this machine, is stale: who wants the cell creates the next number, which only one can, and withdraws it if
there is a lower one whose holder is at work after all: it was created between looking and creating, after all that was
seen had been released. A holder that finds a higher number than its own, because it was away for long (a laptop that
slept), has lost the cell and stops. A claim without content is of a process that was killed between creating and
writing it, and is stale soon.

Ages are measured by the clock of the file system, because those of machines differ. Nothing depends on locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["HEARTBEAT", "STALE", "Claim", "holder"]

HEARTBEAT = 20.0  # seconds between two touches
STALE = 300.0  # seconds without one; network file systems hand times out up to a minute late
UNWRITTEN = 60.0  # seconds until a claim that says nothing is stale; to write one takes hundredths
_LOOKS = 3
_NAME = re.compile(r"^claim\.([0-9]+)$")


@dataclass
class Claim:
    """A cell that is ours, until it is released or lost.

    Args:
        path: of the claim's file.
        lost: called once when another process has taken the cell over.
        heartbeat: seconds between two touches.
    """

    path: Path
    lost: Callable[[], object]
    heartbeat: float = HEARTBEAT
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    is_lost: bool = False

    @classmethod
    def take(
        cls,
        folder: Path,
        *,
        done: Callable[[], bool] = lambda: False,
        lost: Callable[[], object] = lambda: None,
        stale: float = STALE,
        heartbeat: float = HEARTBEAT,
    ) -> Claim | None:
        """Claim a folder, which is there.

        Args:
            folder: of the cell.
            done: whether there is nothing left to be done in it.
            lost: called once, from a thread, when another process has taken it over.
            stale: seconds after which a claim that isn't touched no longer counts.
            heartbeat: seconds between two touches of ours.

        Returns:
            The claim; None: another process has it, or it is done.

        Raises:
            OSError: disk full, no permission.

        >>> folder = Path(tempfile.mkdtemp())
        >>> claim = Claim.take(folder)
        >>> Claim.take(folder) is None
        True
        >>> claim.release(); [*folder.iterdir()]
        []
        """
        number, alive = _newest(folder, stale)
        if alive or done():
            return None
        path = folder / f"claim.{number + 1}"
        try:
            opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        try:
            with os.fdopen(opened, "w", encoding="utf-8") as file:
                json.dump(_myself(), file)
        except OSError as error:  # a full disk: nobody is to wait for what isn't held
            path.unlink(missing_ok=True)
            error.filename = error.filename or str(path)
            raise
        others = [other for other, _ in _claims(folder) if other != number + 1]
        # of other processes, between our looking and our creating
        if done() or any(other > number or _at_work(folder, other, stale) for other in others):
            path.unlink(missing_ok=True)
            return None
        claim = cls(path, lost, heartbeat)
        claim._thread = threading.Thread(target=claim._beat, name=f"heartbeat of {folder.name}", daemon=True)
        claim._thread.start()
        return claim

    def _beat(self) -> None:
        number = int(self.path.name.rpartition(".")[2])
        while not self._over.wait(self.heartbeat):
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                if _highest(self.path.parent) > number or not self.path.exists():
                    self.is_lost = True
                    self.lost()
                    return
                os.utime(self.path)  # by the file system's clock

    def release(self, *, all_of_them: bool = False) -> None:
        """Give the cell back.

        Args:
            all_of_them: also remove stale claims of others: the cell is done.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        names = [name for _, name in _claims(self.path.parent)] if all_of_them else []
        for name in {self.path.name, *names}:
            (self.path.parent / name).unlink(missing_ok=True)


def holder(folder: Path, *, stale: float = STALE) -> str | None:
    """The machine and process that works in a cell; None: nobody does.

    Args:
        folder: of the cell; need not be there.
        stale: as for `Claim.take`.
    """
    number, alive = _newest(folder, stale) if folder.is_dir() else (0, False)
    if not alive:
        return None
    content = _read(folder / f"claim.{number}")
    return "another process" if content is None else f"process {content['process']} on {content['machine']}"


def _myself() -> dict[str, Any]:
    return {
        "machine": platform.node(), "process": os.getpid(), "begun": _begun(os.getpid()), "space": _space(),
        "token": secrets.token_hex(8),
    }  # fmt: skip


def _begun(process: int) -> str | None:
    """When a process began, in the system's own unit, so that another one with its number isn't taken for it.

    None: it has ended, also where nobody has asked how yet (a zombie, which in a container without init stays).
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return None


def _space() -> str | None:
    """Which processes this one can see: containers and machines may share a name, but see none of each other's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _claims(folder: Path) -> list[tuple[int, str]]:
    found = ((_NAME.match(entry.name), entry.name) for entry in os.scandir(folder))
    return sorted((int(match[1]), name) for match, name in found if match)


def _highest(folder: Path) -> int:
    return max((number for number, _ in _claims(folder)), default=0)


def _newest(folder: Path, stale: float) -> tuple[int, bool]:
    """The highest number and whether its process is at work."""
    number = 0
    for _ in range(_LOOKS):
        number = _highest(folder)
        if number == 0:
            return 0, False
        alive = _at_work(folder, number, stale)
        if alive is not None:
            return number, alive
    # a network file system lists for a while what has gone; by then another process may have begun at 1 again
    return number, True


def _at_work(folder: Path, number: int, stale: float) -> bool | None:
    """Whether the process of a claim is; None: the claim is gone."""
    path = folder / f"claim.{number}"
    content = _read(path)
    try:
        age = _now(folder) - path.stat().st_mtime
    except FileNotFoundError:  # just released
        return None
    return age < (stale if content else min(stale, UNWRITTEN)) and not _ended(content)


def _read(path: Path) -> dict[str, Any] | None:
    """A claim's content; None where it is just being written, or gone."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"machine", "process"} <= set(content) else None


def _ended(content: dict[str, Any] | None) -> bool:
    """Whether it is sure that a claim's process has ended: only of one that this process could see."""
    if content is None or content.get("machine") != platform.node():
        return False
    if _space() is None or content.get("space") != _space():
        return False
    begun = _begun(int(content["process"]))
    return begun is None or begun != content.get("begun")


def _now(folder: Path) -> float:
    """What the file system's clock says."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        return os.fstat(file.fileno()).st_mtime
