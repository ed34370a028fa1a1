# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The streams of batches that a method needs beside the training one: real, meta-validation, unlabelled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.loading import stop_workers
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.streams import REAL, UNLABELLED, second_loader, starting_at
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.precision import rank

__all__ = ["SideStream", "SideStreams", "check_meta_size"]

# of the engine
_ARGUMENT = {REAL: "real_data_loader", "meta": "meta_data_loader", UNLABELLED: "unlabelled_data_loader"}
_SOURCE = {
    "meta": "meta-validation batches, from cases that are not among those of the training loader",
    UNLABELLED: "batches of unlabelled images",
}


class SideStream:
    """Batches beside the training stream's, drawn only when a method asks for them.

    A data set of files begins anew each epoch; if its loader was made here, in an order that depends on seed, rank and
    epoch alone. `PatchBatches` run on through the epochs, and how many were taken is part of a checkpoint; those whose
    cases change with the epoch begin each one at its own first number.

    Args:
        loader: where batches come from.
        convert: what makes them a `Batch` on the device.
        seed: of the order.
        own: whether the loader was made by `second_loader`; a user's own loader keeps its own order.
        name: of the stream, for messages.

    >>> stream = SideStream([1, 2], lambda x: x, seed=0)
    >>> [stream.next() for _ in range(3)]
    [1, 2, 1]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        convert: Callable[[Any], Batch],
        *,
        seed: int,
        own: bool = True,
        name: str = REAL,
    ) -> None:
        self.loader, self.convert, self.seed, self.own, self.name = loader, convert, seed, own, name
        self.taken = 0
        self._epoch = 0
        self._iterator: Iterator[Any] | None = None

    @property
    def patches(self) -> PatchBatches | None:
        """What the loader goes through, if its batches have numbers of their own."""
        numbered = isinstance(self.loader, DataLoader) and isinstance(self.loader.dataset, PatchBatches)
        return self.loader.dataset if numbered else None  # type: ignore[attr-defined]  # asked on the line before

    def start_epoch(self, epoch: int) -> None:
        """Begin anew, unless batches are numbered through all epochs.

        Args:
            epoch: counted from 1.
        """
        self._epoch = epoch
        patches = self.patches
        if patches is None:
            self._iterator = None
        elif patches.cases is not None:
            self.taken, self._iterator = max(epoch - 1, 0) * patches.cases.length, None

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
            self.start_epoch(self._epoch)  # where cases change with the epoch, these again
            self._iterator = self._begin(self.taken)
            try:
                data = next(self._iterator)
            except StopIteration:
                raise DataError(
                    f"the loader of {self.name} batches is empty", remedy="give it at least one batch"
                ) from None
        self.taken += 1
        return self.convert(data)

    def _begin(self, lap: int) -> Iterator[Any]:
        if self.patches is not None:
            return iter(starting_at(self.loader, self.taken))
        if isinstance(self.loader, DataLoader):
            key = (self.seed * 1_000_003 + self._epoch) * 1_000_003 + lap * 1_009 + rank()
            if self.own and self.loader.generator is not None:
                self.loader.generator.manual_seed(key % 2**63)
            if isinstance(self.loader.sampler, DistributedSampler):
                # one order for all ranks; a user's sampler has a seed of its own
                self.loader.sampler.set_epoch(key % 2**31 if self.own else self._epoch + lap)
        return iter(self.loader)

    def close(self) -> None:
        """End its workers; the next batch starts new ones."""
        stop_workers(self._iterator)
        self._iterator = None

    def state_dict(self) -> dict[str, int]:
        """The stream's position."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.taken = state["taken"]
        self._iterator = None


class SideStreams:
    """All streams that a method needs beside the training one; a loader is made at the first use.

    Args:
        needs: the method's streams.
        data_loader: the training stream's; "real" is a second one like it, unless it is given.
        given: the user's own loaders by stream, or None.
        convert: what makes a loader's batch a `Batch` on the device.
        unlabelled: the same for batches without labels; None: as ``convert``.
        seed: of the order of a loader that is made here.
        method: its name, for messages.

    Raises:
        ConfigError: there is no loader for a stream, and none can be made.

    >>> streams = SideStreams(("train", "meta"), [], {"meta": [5]}, lambda x: x, seed=0, method="joint_policy")
    >>> streams.next("meta"), streams.state_dict()
    (5, {'meta': {'taken': 1}})
    """

    def __init__(
        self,
        needs: Iterable[str],
        data_loader: Any,
        given: Mapping[str, Iterable[Any] | None],
        convert: Callable[[Any], Batch],
        *,
        seed: int,
        method: str,
        unlabelled: Callable[[Any], Batch] | None = None,
    ) -> None:
        self.needs = [name for name in needs if name != "train"]
        self.data_loader, self.given = data_loader, {n: g for n, g in given.items() if n in self.needs}
        self.convert, self.seed = convert, seed
        self.unlabelled = convert if unlabelled is None else unlabelled
        self._made: dict[str, SideStream] = {}
        self._epoch = 0
        for name in self.needs:
            if name not in _ARGUMENT:
                raise ConfigError(f"method {method!r} needs batches of {name!r}, which this engine doesn't have")
            if self.given.get(name) is not None:
                continue
            if name != REAL:
                raise ConfigError(f"method {method!r} needs {_SOURCE[name]}: give their loader as {_ARGUMENT[name]}")
            second_loader(data_loader, seed)  # fails here rather than in the first iteration

    def __getitem__(self, name: str) -> SideStream:
        """A stream.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.needs:
            known = " and ".join(["train", *self.needs])
            raise ConfigError(f"there is no stream {name!r}; the method has said that it needs {known}")
        if name not in self._made:
            loader = self.given.get(name)
            own = loader is None
            self._made[name] = SideStream(
                second_loader(self.data_loader, self.seed) if loader is None else loader,
                self.unlabelled if name == UNLABELLED else self.convert, seed=self.seed, own=own, name=name,
            )  # fmt: skip
            self._made[name].start_epoch(self._epoch)
        return self._made[name]

    def next(self, name: str) -> Batch:
        """The next batch of a stream."""
        return self[name].next()

    @property
    def loaders(self) -> list[Any]:
        """Those that a user has given: their transforms draw random numbers of their own."""
        return [loader for loader in self.given.values() if loader is not None]

    def start_epoch(self, epoch: int) -> None:
        """Tell all streams.

        Args:
            epoch: counted from 1.
        """
        self._epoch = epoch
        for name in self.needs:
            self[name].start_epoch(epoch)

    def close(self) -> None:
        """End all workers."""
        for stream in self._made.values():
            stream.close()

    def state_dict(self) -> dict[str, dict[str, int]]:
        """The streams' positions by name."""
        return {name: self[name].state_dict() for name in self.needs}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on where ``state_dict`` was taken."""
        for name in self.needs:
            self[name].load_state_dict(state[name])


def check_meta_size(batch: Batch, told: tuple[int, ...] | None) -> None:
    """See that meta-validation patches are of the size that the method was told, which its views keep.

    Args:
        batch: of meta-validation patches.
        told: voxels of a training patch; None: the method knows nothing of it.

    Raises:
        ConfigError: they are not, or nothing was told and quarter turns would change the size.
    """
    size = tuple(batch.cropped().image.shape[2:])
    if told is None and len(set(size)) > 1:
        raise ConfigError(
            f"meta-validation patches are of {size} voxels, which quarter turns change: give patch_size={size}"
        )
    if told is not None and size != told:
        raise ConfigError(
            f"meta-validation patches are of {size} voxels, but training patches of {told}: make them alike"
        )
