# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessed volumes -> batches of patches: every batch is a function of (seed, rank, stream, batch number) alone."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.items import Items, read_item
from monai_autoaug.data.locations import Locations, find_locations
from monai_autoaug.data.meta_cases import EpochCases
from monai_autoaug.data.randomness import random_transforms
from monai_autoaug.errors import ConfigError, DataError

__all__ = ["Items", "PatchBatches"]


@contextmanager
def _seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seed the global streams of Python, numpy and torch for the block, and put them back as they were afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = int(sequence.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class PatchBatches(TorchDataset[Batch]):
    """A stream of batches of patches, map-style: item ``n`` is batch number ``n``, whole, on the CPU.

    The random numbers of batch ``n`` come from ``(seed, rank, stream, n)`` only, so any number of worker processes
    gives the same batches, and a resumed run goes on at ``n``. Random MONAI transforms of the data set, also within a
    ``Subset`` or ``ConcatDataset``, are reseeded for each batch in the same way.

    As in nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021) cases are drawn at random and the last
    ``round(foreground * batch_size)`` patches of a batch are centred on a voxel of a random class; the others lie
    anywhere. With an ignore label these are centred on voxels whose label is known. A patch that is larger than its
    volume, or hangs over its border by the margin, continues the image by its border value and the label by
    background, both of which count as known (``valid`` is 1 there): prediction has to pad in the same way.

    Args:
        items: preprocessed cases; `Items`.
        patch_size: voxels a side, D, H, W (or H, W).
        batch_size: patches a batch.
        margin: voxels by which patches are enlarged at each end of each axis, one number or one an axis.
        seed: of the whole stream.
        rank: of this process in distributed training; ranks see different batches.
        stream: a name; streams of different names are independent.
        num_classes: label values, the background included; the label channels unless ``regions`` is given.
        regions: the label values of each region; the label then has one channel a region and no background.
        ignore_label: the label value of voxels whose label is unknown, or None.
        foreground: share of the patches that are centred on foreground. Where it amounts to less than half a patch
            a batch, batches take turns.
        replacement: draw cases independently of each other (as nnU-Net does), or run through all cases in random
            order before any comes again.
        length: the number of batches; numbers from it on are refused.
        cases: which of the items a batch is drawn from, where that changes from epoch to epoch; None: all.
        labelled: False: the items have no labels; patches lie anywhere, and their label is 0 and nowhere known.
        values: leave the label as values, see `Batch.heads`, where they are classes and all known; a method that draws
            operations is faster then.

    Raises:
        ConfigError: an argument is out of range.
        DataError: an item does not fit the arguments.

    >>> items = [{"image": torch.rand(1, 9, 8, 7), "label": torch.ones(1, 9, 8, 7, dtype=torch.uint8), "case": "a"}]
    >>> batches = PatchBatches(items, patch_size=(8, 8, 8), batch_size=2, seed=0, num_classes=2, length=10)
    >>> batches[3].image.shape, batches[3].label.shape, bool(batches[3].image.equal(batches[3].image))
    (torch.Size([2, 1, 8, 8, 8]), torch.Size([2, 2, 8, 8, 8]), True)
    """

    def __init__(
        self,
        items: Items,
        *,
        patch_size: Sequence[int],
        batch_size: int,
        seed: int,
        num_classes: int,
        length: int,
        margin: int | Sequence[int] = 0,
        rank: int = 0,
        stream: str = "train",
        regions: Sequence[Sequence[int]] | None = None,
        ignore_label: int | None = None,
        foreground: float = 1 / 3,
        replacement: bool = True,
        cases: EpochCases[int] | None = None,
        labelled: bool = True,
        values: bool = False,
    ) -> None:
        self.items = items
        self.patch_size = tuple(int(n) for n in patch_size)
        dims = len(self.patch_size)
        self.margin = (margin,) * dims if isinstance(margin, int) else tuple(int(m) for m in margin)
        self.batch_size, self.length = batch_size, length
        self.seed, self.rank, self.stream = seed, rank, stream
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.regions = None if regions is None else tuple(tuple(int(v) for v in r) for r in regions)
        self.foreground, self.replacement, self.cases = foreground if labelled else 0.0, replacement, cases
        self.labelled = labelled
        self.heads = num_classes if values and labelled and regions is None and ignore_label is None else 0
        self._validate()
        self._locations: dict[int, Locations] = {}

    def _validate(self) -> None:
        """Refuse arguments that can't work."""
        dims = len(self.patch_size)
        if dims not in (2, 3) or min(self.patch_size) < 1:
            raise ConfigError(f"patch_size must be 2 or 3 positive numbers, got {self.patch_size}")
        if len(self.margin) != dims or min(self.margin) < 0:
            raise ConfigError(f"margin must be {dims} numbers >= 0, got {self.margin}")
        if len(self.items) < 1:
            raise ConfigError(f"the stream {self.stream!r} has no cases")
        if self.batch_size < 1 or self.length < 0 or self.num_classes < 2 or self.seed < 0 or self.rank < 0:
            raise ConfigError(
                "batch_size >= 1, length >= 0, num_classes >= 2, seed >= 0 and rank >= 0 are needed, got "
                f"{self.batch_size}, {self.length}, {self.num_classes}, {self.seed}, {self.rank}"
            )
        if self.cases is not None and (self.cases.count != len(self.items) or not self.replacement):
            raise ConfigError(
                f"cases by epoch are of all {len(self.items)} items and drawn with replacement, got a split of"
                f" {self.cases.count} and replacement={self.replacement}"
            )
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"foreground must be a share in [0, 1], got {self.foreground}")
        values = {v for region in self.regions or () for v in region}
        if values and not values <= set(range(self.num_classes)):
            raise ConfigError(f"regions hold label values outside 0..{self.num_classes - 1}: {self.regions}")
        if self.ignore_label is not None and 0 <= self.ignore_label < self.num_classes:
            raise ConfigError(f"ignore_label {self.ignore_label} is one of the {self.num_classes} classes")

    def __len__(self) -> int:
        return self.length

    def _sequence(self, *key: int) -> np.random.SeedSequence:
        """The seed of one purpose of this stream."""
        name = zlib.crc32(self.stream.encode())
        return np.random.SeedSequence(self.seed, spawn_key=(self.rank, name, *key))

    def __getitem__(self, number: int) -> Batch:
        """Batch ``number``."""
        if not 0 <= number < self.length:
            raise IndexError(f"batch {number} of a stream of {self.length}")
        choice, transforms = self._sequence(0, number).spawn(2)
        rng = np.random.default_rng(choice)
        with _seeded(transforms):
            self._reseed_transforms(transforms)
            patches = [self._patch(number, slot, rng) for slot in range(self.batch_size)]
        return replace(_collate(patches, self.margin), heads=self.heads)

    def _reseed_transforms(self, sequence: np.random.SeedSequence) -> None:
        """Give each of the data set's random transforms a seed of its own for this batch."""
        transforms = random_transforms(self.items)
        seeds = sequence.generate_state(1 + len(transforms))[1:]  # the first one is of the global streams
        for transform, seed in zip(transforms, seeds, strict=True):
            transform.set_random_state(seed=int(seed))

    def _case(self, number: int, slot: int, rng: np.random.Generator) -> int:
        """Which case a patch is cut from."""
        if self.cases is not None:
            return int(rng.choice(self.cases(number)))
        if self.replacement:
            return int(rng.integers(len(self.items)))
        lap, place = divmod(number * self.batch_size + slot, len(self.items))
        return int(np.random.default_rng(self._sequence(1, lap)).permutation(len(self.items))[place])

    def _forced(self, number: int, slot: int) -> bool:
        """Whether a patch is centred on foreground."""
        forced = self.batch_size - round(self.batch_size * (1 - self.foreground))
        if forced == 0:  # the last patch of every so many batches
            share = self.foreground * self.batch_size
            return slot == self.batch_size - 1 and int((number + 1) * share) > int(number * share)
        return slot >= self.batch_size - forced

    def _patch(self, number: int, slot: int, rng: np.random.Generator) -> dict[str, Any]:
        """One patch, as the fields of a batch of one without the batch axis."""
        index = self._case(number, slot, rng)
        image, label, name, spacing = self._load(index)
        shape = tuple(image.shape[1:])
        forced = self._forced(number, slot)
        centre = self._centre(index, label, forced, rng)
        corner = [self._corner(axis, shape[axis], centre, rng) for axis in range(len(shape))]
        corner = [c - m for c, m in zip(corner, self.margin, strict=True)]
        size = [p + 2 * m for p, m in zip(self.patch_size, self.margin, strict=True)]
        patch = _cut(image, corner, size, "replicate")
        values = _cut(label, corner, size, "constant")[0].long()
        known = None
        if self.ignore_label is not None:
            known = values != self.ignore_label
            values = values.masked_fill(~known, 0)
        self._check_values(values, name)
        channels = values[None].short() if self.heads else self._channels(values)
        if not self.labelled:
            channels, known = torch.zeros_like(channels), torch.zeros_like(values, dtype=torch.bool)
        middle = tuple(p // 2 + m for p, m in zip(self.patch_size, self.margin, strict=True))
        # near the volume's border what a patch is cut for is not at its centre
        cut_for = label[0][tuple(centre)].long() if forced and centre is not None else values[middle]
        return {
            "image": patch,
            "label": channels,
            "valid": None if known is None else known[None].float(),
            "classes": self._class(cut_for),
            "case": name,
            "spacing": spacing,
        }

    def _class(self, value: Tensor) -> Tensor:
        """A label value; of regions the number of the last one that has it, from 1 on."""
        if self.regions is None:
            return value
        return torch.tensor(max((k for k, r in enumerate(self.regions, start=1) if int(value) in r), default=0))

    def _load(self, index: int) -> tuple[Tensor, Tensor, str, Tensor]:
        """Image, label, name and spacing of a case, as plain tensors."""
        item = read_item(self.items, index)
        wanted = ("image", "label") if self.labelled else ("image",)
        if not isinstance(item, Mapping) or not set(wanted) <= set(item):
            came, expected = type(item).__name__, " and ".join(wanted)
            raise DataError("is not a preprocessed case", file=f"item {index}", expected=expected, came=came)
        image = item["image"]
        label = item["label"] if self.labelled else torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)
        dims = len(self.patch_size)
        name = str(item.get("case", index))
        if image.ndim != dims + 1 or label.shape != (1, *image.shape[1:]):
            raise DataError(
                "does not fit the patches", file=name, expected=f"image (C, {dims} axes) and label (1, same axes)",
                came=f"{tuple(image.shape)} and {tuple(label.shape)}",
            )
        spacing = item.get("spacing", getattr(image, "pixdim", None))
        if spacing is None:
            spacing = torch.ones(dims)
        image, label = (t.as_tensor() if hasattr(t, "as_tensor") else torch.as_tensor(t) for t in (image, label))
        return image.float(), label, name, torch.as_tensor(spacing, dtype=torch.float32)[:dims]

    def _centre(self, index: int, label: Tensor, forced: bool, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """The voxel that the patch is centred on, or None if it may lie anywhere."""
        if not forced and (self.ignore_label is None or not self.labelled):
            return None
        if index not in self._locations:
            # seeded by the case alone: every worker process finds the same
            seed = np.random.SeedSequence(self.seed, spawn_key=(index,))
            groups = self.regions or [(v,) for v in range(1, self.num_classes)]
            self._locations[index] = find_locations(label[0].numpy(), groups, self.ignore_label, seed)
        return self._locations[index].draw(forced, rng)

    def _corner(self, axis: int, size: int, centre: NDArray[np.int64] | None, rng: np.random.Generator) -> int:
        """Where the patch (without margin) begins on an axis; negative if it is larger than the volume."""
        patch = self.patch_size[axis]
        lack = max(patch - size, 0)
        low, high = -(lack // 2), size + lack - lack // 2 - patch
        if centre is None:
            return int(rng.integers(low, high + 1))
        return int(np.clip(centre[axis] - patch // 2, low, high))

    def _check_values(self, values: Tensor, name: str) -> None:
        """Refuse labels that are none of the classes."""
        if int(values.max()) >= self.num_classes or int(values.min()) < 0:
            raise DataError(
                "holds an undeclared label", file=name, expected=f"0..{self.num_classes - 1}",
                came=sorted(set(values.unique().tolist()) - set(range(self.num_classes))),
            )

    def _channels(self, values: Tensor) -> Tensor:
        """Label values (D, H, W) -> one channel a class, or one a region, float."""
        classes = torch.arange(self.num_classes).reshape(-1, *[1] * values.ndim)
        one_hot = (values == classes).float()
        if self.regions is None:
            return one_hot
        return torch.stack([one_hot[list(region)].amax(0) for region in self.regions])


def _cut(volume: Tensor, corner: Sequence[int], size: Sequence[int], mode: str) -> Tensor:
    """A window of a volume (C, D, H, W), continued outside by the border value or (mode "constant") by 0."""
    window, padding = [slice(None)], []
    for first, length, extent in zip(corner, size, volume.shape[1:], strict=True):
        window.append(slice(max(first, 0), min(first + length, extent)))
        padding.append((max(-first, 0), max(first + length - extent, 0)))
    pad = [n for pair in reversed(padding) for n in pair]
    return functional.pad(volume[tuple(window)][None], pad, mode=mode)[0]


def _collate(patches: list[dict[str, Any]], margin: tuple[int, ...]) -> Batch:
    """Stack patches to a batch."""

    def stack(key: str) -> Tensor | None:
        return None if patches[0][key] is None else torch.stack([p[key] for p in patches])

    return Batch(
        image=cast(Tensor, stack("image")),
        label=cast(Tensor, stack("label")),
        valid=stack("valid"),
        classes=stack("classes"),
        case=tuple(p["case"] for p in patches),
        spacing=stack("spacing"),
        margin=margin,
    )
