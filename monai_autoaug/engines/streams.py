# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data loaders as streams: a second, independent one over the same data, and one that goes on where a run stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler, SequentialSampler

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.precision import rank

__all__ = ["RealStream", "second_loader", "starting_at"]

_REAL = "real"


class _StartingAt(Sampler[int]):
    """The numbers of a range, the first time from somewhere within it."""

    def __init__(self, numbers: range, start: int) -> None:
        self.numbers, self.start = numbers, start

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(self.numbers[start:])

    def __len__(self) -> int:
        return len(self.numbers)


def _options(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader runs, without what decides what it yields."""
    names = ["num_workers", "pin_memory", "timeout", "multiprocessing_context"]
    options = {name: getattr(loader, name) for name in names}
    if loader.num_workers > 0:
        options |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return options


def starting_at(loader: Any, iteration: int) -> Any:
    """The same stream of `PatchBatches` from batch number ``iteration`` on; any other loader as it is.

    Args:
        loader: what the engine iterates over.
        iteration: batches that have been taken from it.

    >>> items = [{"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8, dtype=torch.uint8)}]
    >>> batches = PatchBatches(items, patch_size=(4, 4), batch_size=2, seed=0, num_classes=2, length=10)
    >>> len(list(starting_at(patch_loader(batches), 7)))
    3
    """
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, PatchBatches) or not iteration:
        return loader
    numbers = loader.sampler
    if not isinstance(numbers, range):
        raise ConfigError("a loader of PatchBatches must go through a range of batches in order to be resumed")
    return DataLoader(
        loader.dataset, batch_size=None, sampler=_StartingAt(numbers, iteration % len(numbers)),
        worker_init_fn=loader.worker_init_fn, generator=loader.generator, **_options(loader),
    )  # fmt: skip


def second_loader(loader: Any, seed: int) -> DataLoader[Any]:
    """A loader over the same data as ``loader``, in an independent order of its own.

    Raises:
        ConfigError: it can't be made from this kind of loader.

    >>> from torch.utils.data import TensorDataset
    >>> first = DataLoader(TensorDataset(torch.arange(6)), batch_size=2)
    >>> len(second_loader(first, seed=0))
    3
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"a second stream of training batches can't be made from a {type(loader).__name__} without a map-style data"
            " set; give one as real_data_loader"
        )
    if isinstance(loader.dataset, PatchBatches):
        batches = copy.copy(loader.dataset)
        batches.stream = _REAL
        return patch_loader(batches, **_options(loader))
    if loader.batch_size is None or loader.batch_sampler is None:
        raise ConfigError(
            "a second stream of training batches can't be made with a batch_sampler; give one as real_data_loader"
        )
    generator = torch.Generator().manual_seed(seed)
    sampler = _independent(loader.sampler, loader.dataset, generator)
    enough = len(sampler) >= loader.batch_size  # type: ignore[arg-type]  # map-style samplers have a length
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, sampler=sampler, drop_last=enough, collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn, generator=generator, **_options(loader),
    )  # fmt: skip


def _independent(sampler: Any, dataset: Any, generator: torch.Generator) -> Sampler[Any]:
    """A sampler like ``sampler`` whose random numbers come from ``generator``."""
    if isinstance(sampler, DistributedSampler):
        sampler = copy.copy(sampler)
        sampler.shuffle, sampler.seed = True, sampler.seed + 1
        return sampler
    if isinstance(sampler, SequentialSampler):
        return RandomSampler(dataset, generator=generator)
    if not hasattr(sampler, "generator"):
        raise ConfigError(
            f"a second stream of training batches can't be made with a {type(sampler).__name__}; give one as"
            " real_data_loader"
        )
    sampler = copy.copy(sampler)
    sampler.generator = generator
    return sampler


class RealStream:
    """The second stream of training batches, drawn only when a method asks for it.

    A data set of files begins anew each epoch in an order that depends on seed, rank and epoch alone; `PatchBatches`
    run on through the epochs, and how many were taken is part of a checkpoint.

    Args:
        loader: where batches come from.
        convert: what makes them a `Batch` on the device.
        seed: of the order.
        own: whether the loader was made by `second_loader`; a user's own loader keeps its own order.

    >>> stream = RealStream([1, 2], lambda x: x, seed=0)
    >>> [stream.next() for _ in range(3)]
    [1, 2, 1]
    """

    def __init__(self, loader: Iterable[Any], convert: Callable[[Any], Batch], *, seed: int, own: bool = True) -> None:
        self.loader, self.convert, self.seed, self.own = loader, convert, seed, own
        self.taken = 0
        self._epoch = 0
        self._iterator: Iterator[Any] | None = None

    @property
    def numbered(self) -> bool:
        """Whether batches have numbers of their own, so that the stream runs on through the epochs."""
        return isinstance(self.loader, DataLoader) and isinstance(self.loader.dataset, PatchBatches)

    def start_epoch(self, epoch: int) -> None:
        """Begin anew, unless batches are numbered."""
        self._epoch = epoch
        if not self.numbered:
            self._iterator = None

    def next(self) -> Batch:
        """The next batch; the stream never ends.

        Raises:
            DataError: the loader yields nothing at all.
        """
        if self._iterator is None:
            self._iterator = self._begin(0)
        try:
            data = next(self._iterator)
        except StopIteration:
            self._iterator = self._begin(self.taken)
            try:
                data = next(self._iterator)
            except StopIteration:
                raise DataError("the loader of real batches is empty", remedy="give it at least one batch") from None
        self.taken += 1
        return self.convert(data)

    def _begin(self, lap: int) -> Iterator[Any]:
        if self.numbered:
            return iter(starting_at(self.loader, self.taken))
        if self.own and isinstance(self.loader, DataLoader) and self.loader.generator is not None:
            key = (self.seed * 1_000_003 + self._epoch) * 1_000_003 + lap * 1_009 + rank()
            self.loader.generator.manual_seed(key % 2**63)
            if isinstance(self.loader.sampler, DistributedSampler):
                self.loader.sampler.set_epoch(key % 2**31)
        return iter(self.loader)

    def state_dict(self) -> dict[str, int]:
        """The stream's position."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.taken = state["taken"]
        self._iterator = None
