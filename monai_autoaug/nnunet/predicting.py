# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What nnU-Net's prediction starts and raises: processes that end with it, and faults in this package's words.

nnU-Net's processes for reading and writing each print a traceback at Ctrl-C, and go on for ever when the prediction is
killed: one of them only keeps queues for the others, which wait on these.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from monai_autoaug.errors import DataError, WorkerError
from monai_autoaug.nnunet.workers import end_with_parent
from monai_autoaug.writing import remove_leftovers

__all__ = ["faults_told", "tended_processes"]


def _tended(target: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """In a new process, before what it is for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the prediction that ends its processes
    end_with_parent()
    return target(*given, **named)


@contextlib.contextmanager
def tended_processes(output: Path | None = None) -> Iterator[None]:
    """Processes that are started within the block leave Ctrl-C to this one, and end when it does, however it ends.

    After an error they are ended at once: each would tell that the others are gone, below what a user is to read.

    Args:
        output: where they write; after an error nothing half-written is left there.
    """
    plain = BaseProcess.start
    started: list[BaseProcess] = []

    def start(process: BaseProcess) -> None:
        target = getattr(process, "_target", None)
        if target is not None:
            process._target = partial(_tended, target)  # type: ignore[attr-defined]
        plain(process)
        started.append(process)

    BaseProcess.start = start  # type: ignore[method-assign, assignment]
    try:
        yield
    except BaseException:
        for process in reversed(started):  # what keeps the queues was first
            process.kill()
            process.join()
        if output is not None and output.is_dir():
            remove_leftovers(output)
        raise
    finally:
        BaseProcess.start = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def faults_told() -> Iterator[None]:
    """Within the block what nnU-Net raises about images and its processes says what to do.

    Raises:
        DataError: an image can't be read.
        WorkerError: a process has died, or has failed and printed why.

    >>> try:
    ...     with faults_told():
    ...         raise RuntimeError("Background workers died. Look for the error message further up!")
    ... except WorkerError as error:
    ...     print(str(error).partition(" (")[0])
    a process that reads images or writes predictions has died
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "ImageFileReader" in text:  # of SimpleITK, whose last line says which file
            raise DataError(
                "an image can't be read", came=text.strip().splitlines()[-1].removeprefix("sitk::ERROR: "),
                expected="a whole file", remedy="put it back as it was, or take its case away",
            ) from error  # fmt: skip
        if "workers died" in text or "worker died" in text:
            raise WorkerError(
                "a process that reads images or writes predictions has died (an error of its own is printed above; the"
                " system kills processes when memory runs out). To do: use fewer of them (-npp 1 -nps 1, or 0 and 0 for"
                " none), or correct what is printed above"
            ) from error
        raise
