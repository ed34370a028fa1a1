# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Processes that are begun in a group of their own, so that they can be ended with all that they have begun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

__all__ = ["OWN_GROUP", "end"]

# of subprocess.Popen; a new session would begin with the scheduler's share of a program that is not niced
OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
_GRACE = 20.0  # seconds that a process has to end when it is told to


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has begun, if it is still there.

    Args:
        process: begun with `OWN_GROUP`.

    >>> process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **OWN_GROUP)
    >>> end(process); process.returncode is None
    False
    """
    for sign, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL if os.name != "nt" else signal.SIGTERM, None)):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            if os.name == "nt":
                process.terminate()
            else:
                os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.stdin is not None:
        process.stdin.close()
