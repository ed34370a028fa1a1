# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Patches in order, each batch seeded, with what a learned augmentation needs to know of them.

nnU-Net's own loader objects make the patches (so any trainer's sampling and augmentation stays); here they are
recorded, seeded and served. Batch number k of a stream is a function of (seed, rank, stream, k) alone: the same in
the main process and in any number of workers, in this run and in a resumed one; where workers augment by a policy
that learns, of that policy too, as it was a fixed number of batches before. nnU-Net's own workers share one torch
stream, because batchgenerators seeds a forked worker for numpy only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.cutting import BoxRecorder
from monai_autoaug.nnunet.seeding import seeded
from monai_autoaug.nnunet.workers import Telling, Watch, begin_worker, check, started, told
from monai_autoaug.tensors import one_thread

if TYPE_CHECKING:
    from monai_autoaug.nnunet.worker_policy import SharedPolicy

__all__ = [
    "STREAMS", "Recorder", "RecordingLoader", "SeededLoader", "StockStream", "Stream", "second_loader", "seeded",
    "take_loader",
]  # fmt: skip

STREAMS = ("train", "val", "real", "meta", "unlabelled")  # a stream's seeds follow from its place: add at the end
_FINISHING = 1  # a batch's second random numbers: not 0, which SeedSequence can't tell from nothing


class Recorder:
    """A loader's transforms that also note each patch's class at the centre and where the image must stay 0.

    Args:
        transforms: what is applied to each patch; a transform in it may leave the key ``outside`` in the data.

    Attributes:
        sampled: what each patch was cut for, which `BoxRecorder` adds.
    """

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms
        self.centres: list[int] = []
        self.sampled: list[int] = []
        self.outside: list[torch.Tensor] = []

    def __call__(self, **data: Any) -> dict[str, Any]:
        """Apply the transforms to a patch, ``image`` and ``segmentation``; note what is known before and after."""
        label = data["segmentation"][0]
        self.centres.append(int(label[tuple(n // 2 for n in label.shape)]))
        result: dict[str, Any] = data if self.transforms is None else self.transforms(**data)
        outside = result.pop("outside", None)
        if outside is not None:
            self.outside.append(outside)
        return result

    def take(self) -> dict[str, torch.Tensor]:
        """What was noted since the last call, stacked over the batch."""
        noted = {"center_class": torch.tensor(self.centres, dtype=torch.int64)}
        if self.sampled:
            noted["sampled"] = torch.tensor(self.sampled, dtype=torch.int64)
        if self.outside:
            noted["outside"] = torch.stack(self.outside)
        self.centres, self.sampled, self.outside = [], [], []
        return noted


class RecordingLoader:
    """An nnU-Net loader whose batches also say what a `Recorder` noted.

    Args:
        loader: nnU-Net's loader; its transforms are recorded.
    """

    def __init__(self, loader: nnUNetDataLoader) -> None:
        self.loader = loader
        if not isinstance(loader.transforms, Recorder):
            loader.transforms = Recorder(loader.transforms)
        loader.get_bbox = BoxRecorder(loader)

    def __iter__(self) -> RecordingLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        batch: dict[str, Any] = next(self.loader)
        batch.update(self.loader.transforms.take())
        return batch

    def restrict(self, cases: Sequence[str]) -> None:
        """Draw from these cases only."""
        self.loader.indices = list(cases)

    def set_thread_id(self, thread_id: int) -> None:
        """Called by a worker before its first batch."""
        begin_worker()
        self.loader.set_thread_id(thread_id)


class SeededLoader:
    """Batches ``start + worker``, ``start + worker + workers``, ...: what one of several workers serves.

    Args:
        loader: a `RecordingLoader`.
        seed: the run's seed.
        rank: this process's rank.
        stream: one of `STREAMS`.
        start: number of the first batch of the stream.
        workers: how many workers share the stream.
        cases: names of the cases that a batch is drawn from, by its number; None: those of the loader.
        finish: what is done to a batch, given its number, itself and random numbers of its own; it may end the stream
            by StopIteration. None: nothing.
    """

    def __init__(
        self, loader: RecordingLoader, *, seed: int, rank: int, stream: str, start: int = 0, workers: int = 1,
        cases: Callable[[int], Sequence[str]] | None = None,
        finish: Callable[[int, dict[str, Any], torch.Generator], dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.loader, self.cases, self.finish = loader, cases, finish
        self.key = (seed, rank, STREAMS.index(stream))
        self.start, self.workers = start, max(1, workers)
        self.number = start

    def __iter__(self) -> SeededLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = self.batch(self.number)
        self.number += self.workers
        return batch

    def set_thread_id(self, thread_id: int) -> None:
        """Called by a worker before its first batch: its share of the stream."""
        torch.set_num_threads(1)
        self.number = self.start + thread_id
        self.loader.set_thread_id(thread_id)

    def batch(self, number: int) -> dict[str, Any]:
        """Batch ``number`` of the stream."""
        if self.cases is not None:
            self.loader.restrict(self.cases(number))
        with seeded(*self.key, number), one_thread():
            raw = next(self.loader)
            return raw if self.finish is None else self.finish(number, raw, self.generator(number))

    def generator(self, number: int) -> torch.Generator:
        """The random numbers with which batch ``number`` is finished."""
        words = np.random.SeedSequence((*self.key, number, _FINISHING)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0]))


class Stream:
    """A stream of seeded batches in order, from the main process or from workers.

    Args:
        loader: where the batches come from.
        seed: the run's seed.
        rank: this process's rank.
        stream: one of `STREAMS`.
        workers: worker processes; 0: the main process makes the batches.
        start: number of the first batch, for a resumed run.
        pin_memory: hand over pinned tensors, for a GPU.
        cases: see `SeededLoader`.
        policy: augments the batches where they are made; None: nothing does.
    """

    def __init__(
        self,
        loader: RecordingLoader,
        *,
        seed: int,
        rank: int,
        stream: str,
        workers: int = 0,
        start: int = 0,
        pin_memory: bool = False,
        cases: Callable[[int], Sequence[str]] | None = None,
        policy: SharedPolicy | None = None,
    ) -> None:
        self.position, self.policy, self.name = start, policy, stream
        self.source = SeededLoader(
            loader, seed=seed, rank=rank, stream=stream, start=start, workers=workers, cases=cases,
            finish=None if policy is None else policy.augment,
        )  # fmt: skip
        self._augmenter: MultiThreadedAugmenter | None = None
        self._watch: Watch | None = None
        if workers > 0:
            self._augmenter = MultiThreadedAugmenter(
                Telling(self.source), None, workers, num_cached_per_queue=2 if workers <= 4 else 1,
                pin_memory=pin_memory, wait_time=0.002,
            )  # fmt: skip

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        if self.policy is not None:  # before anything waits for the batch, which may wait for this
            self.policy.publish(self.position)
        if self._augmenter is not None:
            self._watch = started(self._augmenter, self._watch)
        with told(self.name, self.position, self._watch):
            batch: dict[str, Any] = next(self.source if self._augmenter is None else self._augmenter)
        batch = check(batch, self.name, self.position)
        self.position += 1
        return batch

    def close(self) -> None:
        """Stop the workers."""
        if self.policy is not None:
            self.policy.close()
        if self._watch is not None:
            self._watch.end()
        if self._augmenter is not None:
            self._augmenter._finish()


class StockStream:
    """A stream as nnU-Net serves it: unseeded, in whatever order the workers finish.

    Args:
        loader: where the batches come from.
        workers: worker processes; 0: the main process makes the batches.
        cached: batches that wait ready.
        start: number of batches drawn before, for the record.
        pin_memory: hand over pinned tensors, for a GPU.
        stream: its name, for messages.
    """

    def __init__(
        self, loader: RecordingLoader, *, workers: int = 0, cached: int = 6, start: int = 0, pin_memory: bool = False,
        stream: str = "train",
    ) -> None:  # fmt: skip
        self.position, self.name = start, stream
        self._watch: Watch | None = None
        self._augmenter: SingleThreadedAugmenter | NonDetMultiThreadedAugmenter
        if workers == 0:
            self._augmenter = SingleThreadedAugmenter(loader, None)
        else:
            self._augmenter = NonDetMultiThreadedAugmenter(
                data_loader=Telling(loader), transform=None, num_processes=workers, num_cached=cached, seeds=None,
                pin_memory=pin_memory, wait_time=0.002,
            )  # fmt: skip

    def __iter__(self) -> StockStream:
        return self

    def __next__(self) -> dict[str, Any]:
        if isinstance(self._augmenter, NonDetMultiThreadedAugmenter):
            self._watch = started(self._augmenter, self._watch)
        with told(self.name, self.position, self._watch):
            batch: dict[str, Any] = next(self._augmenter)
        batch = check(batch, self.name, self.position)
        self.position += 1
        return batch

    def close(self) -> None:
        """Stop the workers."""
        if self._watch is not None:
            self._watch.end()
        if isinstance(self._augmenter, NonDetMultiThreadedAugmenter):
            self._augmenter._finish()


def take_loader(augmenter: Any, stream: str) -> RecordingLoader:
    """nnU-Net's loader object out of the augmenter that a trainer's ``get_dataloaders`` put around it.

    Args:
        augmenter: a single-threaded augmenter.
        stream: its name, for the message.

    Raises:
        ConfigError: the trainer serves its patches by other means.
    """
    loader = getattr(augmenter, "data_loader", None)
    if not isinstance(loader, nnUNetDataLoader):
        raise ConfigError(
            f"the {stream} patches of this trainer come from {type(loader or augmenter).__name__}, not from"
            " nnU-Net's loader, so they can't be seeded and say nothing of their cases; set loader: stock and"
            " method: none, or use another trainer"
        )
    return RecordingLoader(loader)


def second_loader(first: RecordingLoader) -> RecordingLoader:
    """An independent loader of the same patches, for the stream "real"."""
    loader = copy.copy(first.loader)
    loader.transforms = Recorder(first.loader.transforms.transforms)
    return RecordingLoader(loader)
