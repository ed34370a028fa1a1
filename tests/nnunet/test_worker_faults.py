# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A worker that dies and a case that is gone end the training with one message, and nobody waits for ever."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loading import alive, streams

from monai_autoaug.errors import DataError, WorkerError
from monai_autoaug.nnunet import workers as processes
from monai_autoaug.nnunet.loading import StockStream, Stream

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # batchgenerators' collector
]


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    made: list[Any] = []
    yield made
    for stream in made:
        stream.close()


def stream_of(kind: str, tiny: Any, workers: int = 2) -> Any:
    _, made = streams(tiny)
    if kind == "stock":
        return StockStream(made["train"].source.loader, workers=workers)
    return Stream(made["train"].source.loader, seed=0, rank=0, stream="train", workers=workers)


def draw(stream: Any, seconds: float = 30) -> None:
    """Ask for batches until something goes wrong."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        next(stream)
    pytest.fail("nothing went wrong")


@pytest.mark.parametrize("kind", ["seeded", "stock"])
def test_a_worker_that_dies_is_told(kind: str, tiny: Any, closing: list[Any]) -> None:
    stream = stream_of(kind, tiny)
    closing.append(stream)
    next(stream)
    pids = [p.pid for p in stream._augmenter._processes]
    os.kill(pids[0], signal.SIGKILL)
    message = r"\(train\) has died by signal 9 \(SIGKILL\), at batch \d+ .*To do: use fewer workers"
    with pytest.raises(WorkerError, match=message):
        draw(stream)
    assert not any(map(alive, pids))


def test_nobody_waits_for_a_worker_that_died_in_the_middle_of_a_batch(tiny: Any, closing: list[Any]) -> None:
    """The thread that collects batches can fail, or be stuck in half a message, without telling anyone."""
    stream = stream_of("seeded", tiny)
    closing.append(stream)
    next(stream)

    def broken(**given: Any) -> Any:
        raise ConnectionResetError

    for queue in stream._augmenter._queues:
        queue.get = broken
    start = time.monotonic()
    with pytest.raises(WorkerError, match="has died without saying why"):
        draw(stream)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["seeded", "stock"])
def test_a_case_that_is_gone_is_named(
    kind: str, workers: int, tiny: Any, closing: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    stream = stream_of(kind, tiny, workers)
    closing.append(stream)
    next(stream)
    files = sorted(Path(tiny.preprocessed / tiny.name).rglob("case_*.b2nd"))
    for file in files:
        file.rename(file.with_suffix(".gone"))
    capfd.readouterr()
    try:
        with pytest.raises(DataError, match=r"batch \d+ of the train patches can't be made \(.*case_\d.*\)\. To do:"):
            draw(stream)
    finally:
        for file in files:
            file.with_suffix(".gone").rename(file)
    stream.close()
    assert "Traceback" not in capfd.readouterr().err


def numbers(_: Any = None) -> tuple[float, float, float]:
    return float(np.random.rand()), float(torch.rand(())), random.random()  # noqa: NPY002, S311


class Numbers:
    """A loader that gives a few random numbers of its process."""

    def __next__(self) -> dict[str, Any]:
        time.sleep(0.01)
        return {"numbers": numbers(), "process": os.getpid()}

    def set_thread_id(self, thread_id: int) -> None:
        processes.begin_worker()


def test_streams_of_workers_differ_for_numpy_torch_and_python(closing: list[Any]) -> None:
    """nnU-Net's own workers all have the same torch stream."""
    stream = StockStream(Numbers(), workers=3)  # type: ignore[arg-type]  # all that is asked of a loader
    closing.append(stream)
    first: dict[int, tuple[float, ...]] = {}
    deadline = time.monotonic() + 20
    while len(first) < 3 and time.monotonic() < deadline:
        batch = next(stream)
        first.setdefault(batch["process"], batch["numbers"])
    assert len(first) == 3
    for kind in zip(*first.values(), strict=True):
        assert len(set(kind)) == 3


def test_the_watch_ends_with_its_stream(tiny: Any) -> None:
    stream = stream_of("seeded", tiny)
    next(stream)
    watch = stream._watch
    assert watch in threading.enumerate()
    stream.close()
    watch.join(timeout=5)
    assert not watch.is_alive()
