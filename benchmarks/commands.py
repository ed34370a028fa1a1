# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Commands as processes of their own, and what they cost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# a new session would begin with the scheduler's share of a program that is not niced
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
_running: set[int] = set()  # leaders of process groups
_stopped = threading.Event()


@dataclass(frozen=True)
class Cost:
    """What a command cost."""

    cpu_seconds: float
    wall_seconds: float


def stop() -> None:
    """End the commands that run, with all the processes that they have started, and begin no other."""
    _stopped.set()
    for leader in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGTERM)


def end_with_me() -> None:
    """When this process is told to end, its commands end, too; else they would go on without it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))


def run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed, and the message has the end of its output; or `stop` was called.
    """
    if _stopped.is_set():
        raise RuntimeError("stopped")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=dict(environment), stdout=file, stderr=subprocess.STDOUT, **_OWN_GROUP)
        _running.add(process.pid)
        try:
            # its CPU time and that of its children; RUSAGE_CHILDREN would mix commands that run side by side
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            stop()
            process.wait()
            raise
        finally:
            _running.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; {log} ends with\n{tail}")
    return Cost(round(usage.ru_utime + usage.ru_stime, 1), round(time.perf_counter() - start, 1))


def code_version() -> str:
    """The commit of the code that runs, and whether it has been changed since."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown"
    found = subprocess.run([git, "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"
