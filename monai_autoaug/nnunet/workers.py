# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The processes behind a stream of patches: seeded, ended with the training, and their faults told in its words.

batchgenerators prints an error where it happens and says elsewhere that a worker has died; one that is killed while it
hands a batch over is never noticed, and the training waits for ever. Here an error comes instead of the batch, and a
thread sees to it that a dead worker ends the wait.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from monai_autoaug.errors import AutoAugError, DataError, WorkerError

__all__ = ["Telling", "Watch", "begin_worker", "check", "end_with_parent", "started", "told"]

_FAULT = "fault"  # the only key of what comes instead of a batch
_OFTEN = 0.5  # seconds between two looks at the workers


def begin_worker() -> None:
    """Called in a worker before its first batch: random numbers of its own, and it ends with its parent.

    batchgenerators has seeded numpy; torch's and Python's numbers are those of the parent, the same in all workers.
    """
    words = np.random.randint(0, 2**31, 2)  # noqa: NPY002  # the generator that batchgenerators has seeded
    torch.default_generator.manual_seed(int(words[0]))
    random.seed(int(words[1]))
    end_with_parent()  # were it killed, batchgenerators' workers would go on for ever


def end_with_parent() -> None:
    """Let this process end at once when the one that began it does, or tells it to, however that ends.

    A handler of SIGTERM that was inherited by a fork would run in the main thread only, which may wait for ever if the
    signal has reached the thread that is begun here.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Telling:
    """A loader in a worker: what goes wrong comes to the main process instead of a batch.

    Args:
        loader: makes the batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Telling:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            batch: dict[str, Any] = next(self.loader)
        except StopIteration:
            raise
        except Exception as error:  # loaders and transforms raise all kinds; the main process stops for each
            return {_FAULT: _described(error)}
        return batch

    def set_thread_id(self, thread_id: int) -> None:
        """Called by a worker before its first batch."""
        self.loader.set_thread_id(thread_id)


def _described(error: Exception) -> str:
    """What has happened, without a traceback."""
    return str(error) if isinstance(error, AutoAugError) else f"{type(error).__name__}: {error}"


class Watch(threading.Thread):
    """Ends the wait for a batch when a worker has died, or when nobody takes batches from them any more.

    Args:
        augmenter: of batchgenerators, whose workers have been started.
    """

    def __init__(self, augmenter: Any) -> None:
        super().__init__(daemon=True, name="monai_autoaug: watches workers")
        self._processes = list(augmenter._processes)
        self._abort = augmenter.abort_event
        names = ("pin_memory_thread", "results_loop_thread")
        self._collector: threading.Thread = next(t for n in names if (t := getattr(augmenter, n, None)) is not None)
        self._ended = threading.Event()

    def run(self) -> None:
        """Look again and again, until `end`."""
        while not self._ended.wait(_OFTEN):
            if not self._collector.is_alive() or any(p.exitcode is not None for p in self._processes):
                self._abort.set()
                return

    def end(self) -> None:
        """Look no longer: the workers are about to be ended."""
        self._ended.set()

    def deaths(self) -> str:
        """How workers have died, as far as the system tells."""
        codes = {p.exitcode for p in self._processes} - {None, 0}
        first = codes - {-signal.SIGTERM} or codes  # by which those were ended that would not end themselves
        return " and ".join(sorted(map(_death, first))) or "without saying why"


def started(augmenter: Any, watch: Watch | None) -> Watch:
    """The watch over an augmenter's workers, which are started if they aren't running.

    Args:
        augmenter: of batchgenerators.
        watch: the one so far.
    """
    if watch is not None:
        return watch
    augmenter._start()
    watch = Watch(augmenter)
    watch.start()
    return watch


def _death(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"by signal {-code} ({signal.Signals(-code).name})"
    return f"by signal {-code}"


@contextlib.contextmanager
def told(stream: str, number: int, watch: Watch | None) -> Iterator[None]:
    """Within the block a batch is made or waited for, and what goes wrong with it says so.

    Args:
        stream: its name.
        number: of the batch.
        watch: of its workers, if it has any.

    Raises:
        DataError: the batch can't be made.
        WorkerError: a worker has died.
    """
    try:
        yield
    except (AutoAugError, StopIteration):
        raise
    except Exception as error:  # loaders and transforms raise all kinds
        if watch is None:
            raise _unmade(stream, number, _described(error)) from error
        raise WorkerError(
            f"a process that makes patches ({stream}) has died {watch.deaths()}, at batch {number} or a little after."
            " The system kills processes when memory runs out. To do: use fewer workers (nnUNet_n_proc_DA), smaller"
            " patches or batches, or see the system's log"
        ) from error


def check(batch: dict[str, Any], stream: str, number: int) -> dict[str, Any]:
    """A batch as it is.

    Raises:
        DataError: it is what `Telling` has given instead of one.
    """
    if batch.keys() == {_FAULT}:
        raise _unmade(stream, number, batch[_FAULT])
    return batch


def _unmade(stream: str, number: int, why: str) -> DataError:
    return DataError(
        f"batch {number} of the {stream} patches can't be made ({why})",
        remedy="see that all preprocessed cases are there and can be read",
    )
