# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Drawing a training policy's operations for a batch of patches and applying them, wherever that is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.policies.augmentation import augment
from monai_autoaug.policies.classes import class_at_centre, patch_classes
from monai_autoaug.policies.loss_region import restrict_loss
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms.on_cpu import apply_to_values

__all__ = ["Compared", "Drawing"]


@dataclass(frozen=True)
class Compared:
    """Whose samples are compared with their patches as they were before augmentation; workers are sent this.

    Args:
        due: whether the policy is updated in a step, counted from 0.
        below: number of samples of a step from which on they are enough to be compared with each other.

    >>> compared = Compared(lambda step: step % 5 == 0, below=4)
    >>> compared(10, 2), compared(11, 2), compared(10, 4)
    (True, False, False)
    """

    due: Callable[[int], bool]
    below: float

    def __call__(self, step: int, samples: int) -> bool:
        """Whether those of this step are."""
        return samples < self.below and self.due(step)


@dataclass(frozen=True)
class Drawing:
    """Augments batches by a training policy and writes down what was drawn.

    The training step does it on its device, or the host's workers do it long before, with a policy of their own.

    Args:
        policy: what operations are drawn from.
        class_of: see `patch_classes`.
        loss_region: below 1, the class is chosen by `restrict_loss`; 1: by ``class_of``.
        regions: the label's channels are regions, not classes.
        compared: which samples are handed over as they were before, too; None: none.

    >>> policy, batch = TrainingPolicy.preset("nnunet"), Batch(torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8))
    >>> drawing = Drawing(policy)
    >>> drawn = drawing(batch, torch.Generator().manual_seed(0))
    >>> drawn.operations.shape, drawing.classes(drawn)
    (torch.Size([1, 15]), tensor([0]))
    """

    policy: TrainingPolicy
    class_of: Literal["centre", "sampled"] = "centre"
    loss_region: float = 1.0
    regions: bool = False
    compared: Compared | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, generator: torch.Generator | None = None, step: int | None = None) -> Batch:
        """The augmented batch without its margin, with ``operations``, and ``classes`` as they were before.

        Args:
            batch: patches with their margin. On a CPU, a label that comes as values goes a faster way
                (`transforms.on_cpu`); what it becomes is the same up to rounding.
            generator: random numbers come from it; None: torch's global one.
            step: that is trained on them, counted from 0; None: one in which nothing is compared.

        Raises:
            ConfigError: see `restrict_loss`, `patch_classes` and `augment`.
        """
        fast = batch.image.device.type == "cpu" and batch.image.dtype == torch.float32 and self.loss_region >= 1
        if batch.heads and not fast:
            batch = batch.with_channels()
        if batch.heads:
            batch = replace(batch, classes=self._class_of_values(batch))
        elif self.loss_region < 1:
            batch = restrict_loss(batch, self.loss_region, generator, regions=self.regions)
        elif self.class_of == "centre":  # of the patch as it is, of which nothing can be seen any more afterwards
            batch = replace(batch, classes=class_at_centre(batch.label, regions=self.regions, valid=batch.valid))
        indices, _ = self.policy.sample(self.classes(batch), generator)
        known_outside = self.loss_region >= 1  # what lies outside is in no box
        if batch.heads:
            augmented = self._augment_values(batch, indices, generator)
        else:
            augmented = augment(
                self.policy, batch, indices, generator, regions=self.regions, known_outside=known_outside
            )
        drawn = replace(augmented, operations=indices)
        if step is None or self.compared is None or not self.compared(step, len(indices)):
            return drawn
        plain = replace(batch.cropped().with_channels(), case=(), target=None)
        return replace(drawn, plain=plain)

    def _class_of_values(self, batch: Batch) -> Tensor | None:
        """The label at each patch's centre, unless the host says what it was cut for."""
        if self.class_of == "sampled":
            return batch.classes
        centre = batch.label[:, 0]
        for size in batch.label.shape[2:]:
            centre = centre.select(1, size // 2)
        return centre.long()

    def _augment_values(self, batch: Batch, indices: Tensor, generator: torch.Generator | None) -> Batch:
        """What `augment` does, of label values."""
        image, label = apply_to_values(
            batch.image, batch.label, batch.heads, indices, self.policy.cascades, generator=generator,
            margin=batch.margin,
        )  # fmt: skip
        none = (0,) * len(batch.margin)
        label = self.policy.exchange(label, indices)
        return replace(batch, image=image, label=label, heads=0, margin=none, target=None)

    def classes(self, drawn: Batch) -> Tensor:
        """The places among the policy's classes that operations were drawn for, (B,) int64.

        Args:
            drawn: what a call has given, here or in a worker.
        """
        return patch_classes(drawn, self.policy.classes, class_of="sampled", regions=self.regions)
