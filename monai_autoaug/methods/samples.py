# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a training run keeps to show its augmentation by: one training patch, and what becomes of it over the epochs.

At no more than eight epochs each augmenter, or each class's policy, transforms the patch by the same random numbers;
slices of the results are kept (`sample_file`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from monai_autoaug.augmenters import Augmenter
from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.methods.base import Method
from monai_autoaug.methods.sample_file import STRUCTURES, Kept, Patch, Shot, planes, read_samples, write_samples
from monai_autoaug.policies import TrainingPolicy

__all__ = ["MOST_EPOCHS", "Samples", "chosen_epochs"]

MOST_EPOCHS = 8
_LARGEST = 128  # voxels a side that are kept of a patch with its margin
_DRAWS = 2  # of each augmenter and of each class
_CLASSES = 3  # of a policy that are shown
_OFFERS = 8  # batches that are waited for until one has foreground
_SEED = 20210301


def chosen_epochs(epochs: int) -> tuple[int, ...]:
    """The epochs, counted from 1, after which samples are kept: denser at the beginning, with the first and the last.

    >>> chosen_epochs(40), chosen_epochs(3), chosen_epochs(1000)
    ((1, 2, 3, 5, 8, 14, 24, 40), (1, 2, 3), (1, 3, 7, 19, 52, 139, 373, 1000))
    """
    steps = [round(math.exp(math.log(epochs) * k / (MOST_EPOCHS - 1))) for k in range(MOST_EPOCHS)]
    return tuple(sorted(set(steps)))


class Samples:
    """Keeps samples while a run trains.

    Args:
        path: of ``samples.pt``.
        epochs: of the whole training.
        orientation: see `Patch`.
        structures: see `Patch`.
        regions: see `Patch`.
        fresh: a file that is there is of another training, and is taken away.

    >>> Samples("samples.pt", 40).wants(8), Samples("samples.pt", 40).wants(9)
    (True, False)
    """

    def __init__(
        self,
        path: str | Path,
        epochs: int,
        *,
        orientation: str = "",
        structures: Sequence[str] = (),
        regions: bool = False,
        fresh: bool = False,
    ) -> None:
        self.path, self.epochs = Path(path), chosen_epochs(epochs)
        self.orientation, self.structures, self.regions = orientation, tuple(structures), regions
        self._offered = 0
        if fresh:
            self.path.unlink(missing_ok=True)
        self._kept: Kept | None = read_samples(self.path) if self.path.is_file() else None

    @property
    def begun(self) -> bool:
        """Whether there is a patch."""
        return self._kept is not None

    @property
    def patch(self) -> Patch:
        """The patch; there has to be one."""
        assert self._kept is not None  # noqa: S101  # callers have asked
        return self._kept.patch

    def wants(self, epoch: int) -> bool:
        """Whether samples are kept after ``epoch``, counted from 1."""
        return epoch in self.epochs

    def offer(self, batch: Batch) -> bool:
        """Take a patch from a training batch if it has foreground, or if none had for a while.

        Args:
            batch: as a method gets it.

        Returns:
            Whether there is a patch now.
        """
        if self._kept is None and not batch.classification:
            source = (batch if batch.plain is None else batch.plain).with_channels()
            self._offered += 1
            first = 0 if self.regions else 1
            seen = source.cropped().label[:, first:] > 0.5
            voxels = seen.flatten(2).sum(2)  # (B, structures)
            order = (voxels > 0).sum(1) * (1 + voxels.sum()) + voxels.sum(1)
            row = int(order.argmax())
            if bool(voxels[row].any()) or self._offered >= _OFFERS:
                self._kept = Kept(self._patch(source.rows(slice(row, row + 1))), ())
        return self.begun

    @torch.no_grad()
    def keep(self, epoch: int, method: Method) -> tuple[Shot, ...]:
        """Transform the patch by what has been learned so far, and write the file.

        Nothing of the training changes by it: random numbers are its own, and modules are left in their mode.

        Args:
            epoch: that has ended, counted from 1.
            method: of the run.

        Returns:
            The new samples; none without a patch, or where nothing is learned that could be shown.
        """
        if self._kept is None:
            return ()
        made = tuple(self._shots(epoch, method))
        if made:
            earlier = tuple(shot for shot in self._kept.shots if shot.epoch < epoch)
            self._kept = Kept(self.patch, earlier + made)
            write_samples(self.path, self._kept)
        return made

    def _patch(self, row: Batch) -> Patch:
        """The patch of a batch of one, as it will be read again."""
        batch = row.to("cpu")
        extra = [max(0, math.ceil((n - _LARGEST) / 2)) for n in batch.image.shape[2:]]
        margin = tuple(batch.margin)
        image, label = (centre_crop(x.float(), tuple(extra))[0] for x in (batch.image, batch.label))
        first = 0 if self.regions else 1
        names = self.structures or tuple(f"structure {k}" for k in range(1, len(label) - first + 1))
        shown = label[first:].flatten(1).sum(1).argsort(descending=True, stable=True)[:STRUCTURES] + first
        hidden = torch.ones(len(label), dtype=torch.bool)
        hidden[shown] = False
        label[hidden] = 0
        if not self.regions:
            label[0] = 1 - label[1:].amax(0)
        inner = centre_crop(label[None], margin)[0][first:]
        spacing = (1.0,) * len(margin) if batch.spacing is None else tuple(float(s) for s in batch.spacing[0])
        return Patch(
            image.half().float(), (label > 0.5).float(), margin, spacing, self.orientation, names, self.regions,
            _cuts(inner),
        )  # fmt: skip

    def _shots(self, epoch: int, method: Method) -> Iterator[Shot]:
        """Of each augmenter, and of each class of a training policy."""
        patch, device = self.patch, method.task.device
        image, label = patch.image.to(device)[None], patch.label.to(device)[None]
        size = (_DRAWS, *[-1] * (image.ndim - 1))
        pair = image.expand(size), label.expand(size)
        for name, augmenter in method.augmenters().items():
            if isinstance(augmenter, Augmenter):
                yield from self._sliced(epoch, name, *_augmented(augmenter, *pair, patch))
        policy = method.policies().get("training")
        if isinstance(policy, TrainingPolicy):
            outside = (0.0,) * label.shape[1] if patch.regions else None
            for number, name in enumerate(policy.classes[:_CLASSES]):
                generator = torch.Generator(device=device).manual_seed(_SEED)
                classes = torch.full((_DRAWS,), number, device=device)
                indices, _ = policy.sample(classes, generator)
                moved, soft = policy.apply(*pair, indices, generator, margin=patch.margin, outside=outside)
                assert soft is not None  # noqa: S101  # a label was given
                yield from self._sliced(epoch, name, moved, soft)

    def _sliced(self, epoch: int, kind: str, image: Tensor, label: Tensor) -> Iterator[Shot]:
        first = 0 if self.patch.regions else 1
        for draw in range(len(image)):
            cut = planes(image[draw, 0].float().cpu(), self.patch.cuts)
            soft = planes(label[draw, first:].float().cpu(), self.patch.cuts)
            yield Shot(epoch, kind, draw, tuple(p.half().float() for p in cut), soft)


def _augmented(augmenter: Augmenter, image: Tensor, label: Tensor, patch: Patch) -> tuple[Tensor, Tensor]:
    """Some draws of an augmenter, in evaluation mode and in float32."""
    training = augmenter.training
    augmenter.eval()
    try:
        noise = augmenter.sample_noise(len(image), torch.Generator().manual_seed(_SEED))
        spacing = torch.tensor([patch.spacing], device=image.device).expand(len(image), -1)
        outside = (0.0,) * label.shape[1] if patch.regions else None
        done = augmenter(image, noise, spacing=spacing).apply_pair(image, label, margin=patch.margin, outside=outside)
    finally:
        augmenter.train(training)
    moved, soft = done
    assert soft is not None  # noqa: S101  # a label was given
    return moved, soft


def _cuts(foreground: Tensor) -> tuple[int, ...]:
    """Of each axis of (K, D, H, W) the slice that shows most structures, and of those most voxels; else the middle."""
    found = []
    for axis in range(1, foreground.ndim):
        areas = foreground.movedim(axis, 1).flatten(2).sum(2)
        score = (areas > 0).sum(0) * (1 + areas.sum()) + areas.sum(0)
        found.append(int(score.argmax()) if bool(areas.any()) else foreground.shape[axis] // 2)
    return tuple(found)
