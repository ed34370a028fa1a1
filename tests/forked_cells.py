# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells of a comparison in forked processes: a new process of Python spends many seconds on imports, these none.

All else is real: a group of their own, the pipe by which they end with their parent, the log, the signals.
"""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from typing import IO, Any


class Forked:
    """Takes the place of `subprocess.Popen` for ``python -m monai_autoaug.evaluation.comparison.child``."""

    def __init__(self, command: list[str], *, stdin: int, stdout: IO[bytes], stderr: int, **group: Any) -> None:
        assert (stdin, stderr) == (subprocess.PIPE, subprocess.STDOUT)
        assert command[1:3] == ["-m", "monai_autoaug.evaluation.comparison.child"]
        assert group
        self.returncode: int | None = None
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(write)
            _run(command[3:], read, stdout.fileno())
        os.close(read)
        self.stdin = os.fdopen(write, "wb")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a cell", timeout or 0.0)
            time.sleep(0.005)
        return code


def _run(words: list[str], stdin: int, stdout: int) -> None:
    """What the process does; it never comes back."""
    code = 1
    try:
        os.setpgid(0, 0)
        for own, target in ((stdin, 0), (stdout, 1), (stdout, 2)):
            os.dup2(own, target)
        from monai_autoaug.evaluation.comparison import child

        code = child.main(words)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
