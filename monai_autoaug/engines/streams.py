# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data loaders as streams: a second, independent one over the same data, and one that goes on where a run stopped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler, SequentialSampler

from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.errors import ConfigError

__all__ = ["REAL", "UNLABELLED", "second_loader", "starting_at"]

REAL = "real"
UNLABELLED = "unlabelled"


class _StartingAt(Sampler[int]):
    """The numbers of a range, the first time from somewhere within it."""

    def __init__(self, numbers: range, start: int) -> None:
        self.numbers, self.start = numbers, start

    def __iter__(self) -> Iterator[int]:
        # when the first number is drawn, not before: a DataLoader with workers asks for two iterators and draws of one
        start, self.start = self.start, 0
        yield from self.numbers[start:]

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
        batches.stream = REAL
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
