# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A DataLoader over a stream of batches: worker processes change how fast batches come, never what they are."""

from __future__ import annotations

import contextlib
import random
import re
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.errors import AutoAugError, ConfigError, WorkerError

__all__ = ["loader", "stop_workers", "worker_faults"]

_DEAD = re.compile(r"DataLoader worker \(pid")  # what torch says of one that was killed, or has ended by itself


class _SeedWorker:
    """Seeds Python, numpy and torch in a worker process, for what runs outside a batch (picklable for spawn)."""

    def __init__(self, batches: PatchBatches) -> None:
        self.key = batches.seed, batches.rank, zlib.crc32(batches.stream.encode())

    def __call__(self, worker: int) -> None:
        seed, *key = self.key
        state = np.random.SeedSequence(seed, spawn_key=(*key, 2, worker)).generate_state(1)[0]
        random.seed(int(state))
        np.random.seed(int(state))  # noqa: NPY002
        torch.default_generator.manual_seed(int(state))


def loader(
    batches: PatchBatches, *, start: int = 0, stop: int | None = None, num_workers: int = 0, **options: Any
) -> DataLoader[Batch]:
    """A DataLoader over the batches ``start`` to ``stop``, in order, each made whole in one worker process.

    Args:
        batches: the stream.
        start: the number of the first batch: where a resumed run goes on.
        stop: one past the last batch; None: the stream's length.
        num_workers: worker processes; the batches are the same whatever the number.
        options: further options of ``torch.utils.data.DataLoader``: ``pin_memory``, ``prefetch_factor``,
            ``persistent_workers``, ``multiprocessing_context``, ``timeout``.

    Raises:
        ConfigError: the range lies outside the stream, or an option would change what the batches are.

    >>> items = [{"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8, dtype=torch.uint8)}]
    >>> batches = PatchBatches(items, patch_size=(4, 4), batch_size=2, seed=0, num_classes=2, length=10)
    >>> len(list(loader(batches, start=7)))
    3
    """
    last = len(batches) if stop is None else stop
    if not 0 <= start <= last <= len(batches):
        raise ConfigError(f"batches {start} to {last} of a stream of {len(batches)} can't be had")
    allowed = {"pin_memory", "pin_memory_device", "prefetch_factor", "persistent_workers", "multiprocessing_context"}
    if unknown := set(options) - allowed - {"timeout"}:
        raise ConfigError(f"options {sorted(unknown)} would change the batches; use {sorted(allowed | {'timeout'})}")
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, last),
        num_workers=num_workers,
        worker_init_fn=_SeedWorker(batches),
        # a generator of its own: a DataLoader draws its base seed from torch's global stream otherwise
        generator=torch.Generator().manual_seed(batches.seed),
        **options,
    )


@contextlib.contextmanager
def worker_faults() -> Iterator[None]:
    """Within the block a dead worker is a `WorkerError`, and an error in a worker says what one in this process would.

    torch tells of a dead worker wherever this process happens to be, or the connection to it breaks; of an error it
    tells by a traceback within the message.

    >>> with worker_faults():
    ...     raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    Traceback (most recent call last):
    monai_autoaug.errors.WorkerError: a process that makes patches has died ...
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not (_DEAD.search(str(error)) or (not isinstance(error, RuntimeError) and _between_processes(error))):
            raise
        why = str(error).strip() or type(error).__name__
        raise WorkerError(
            f"a process that makes patches has died ({why}). The system kills processes when memory runs out. To do:"
            " use fewer workers, smaller patches or batches, or see the system's log"
        ) from error
    except AutoAugError as error:
        _, mark, text = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")
        if not mark:
            raise
        raise type(error)(text.strip()) from error


def _between_processes(error: BaseException) -> bool:
    """Whether it was raised where processes talk to each other, and not where files are read."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.split(".")[0] == "multiprocessing" for name in modules)


def stop_workers(batches: Iterator[Any] | None) -> None:
    """End the processes behind an iterator of a DataLoader at once, also where a traceback still refers to it.

    Args:
        batches: any iterator; one without processes, or whose processes are to persist, is left alone.
    """
    # torch has no public way; where there is none any more, they end with the iterator
    stop = getattr(batches, "_shutdown_workers", None)
    if stop is None or getattr(batches, "_persistent_workers", False):
        return
    try:
        stop()
    except RuntimeError as error:  # that one is dead already, which may be why the others are to end
        if not _DEAD.search(str(error)):
            raise
