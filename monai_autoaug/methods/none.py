# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""No learned augmentation: the plain training step, equal to the host's own."""

from __future__ import annotations

from typing import ClassVar

from monai_autoaug.methods.base import Batches, Method

__all__ = ["NoAugmentation"]


class NoAugmentation(Method):
    """The plain training step; the reference that every other method is measured against.

    >>> NoAugmentation.name
    'none'
    """

    name: ClassVar[str] = "none"

    def step(self, batches: Batches) -> dict[str, float]:
        """Forward, the host's own loss, backward, update."""
        batch = batches.next("train").cropped()
        output = self.task.forward(batch.image, batch.extra)
        self.task.notify("forward", {"batch": batch, "output": output})
        with self.task.precision.autocast():
            loss = self.task.loss(output, batch)
        self.tell_loss(loss)
        self.descend(loss)
        return {"loss": float(loss.detach())}
