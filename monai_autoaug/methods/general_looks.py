# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the discriminators of paper 004 look at: patches beside their label, and patches in pairs."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Batches, Task
from monai_autoaug.methods.pairs import label_maps, partners
from monai_autoaug.methods.parts import interior, jitter, transform

__all__ = ["Looks"]


class Looks:
    """Shows real and made patches alike, so that only what they depict can tell them apart.

    Args:
        task: what the host owns.
        generator: of the random numbers.
        resamples: whether all patches are resampled once and looked at without their border; False: as they are.
        resampled: whether what is made has been resampled already.
    """

    def __init__(self, task: Task, generator: torch.Generator, *, resamples: bool, resampled: bool) -> None:
        self.task, self.generator = task, generator
        self.resamples, self.resampled = resamples, resampled

    def seen(self, batch: Batch, *, made: bool = False) -> tuple[Tensor, Tensor]:
        """Image and label maps, both (B, channels, D, H, W).

        Args:
            batch: real patches with their margin, or made ones.
            made: which of the two.
        """
        if self.resamples and not (made and self.resampled):
            batch = transform(batch, jitter(batch.image, self.generator), regions=self.task.regions)
        batch = batch.cropped()
        known = batch.label if batch.valid is None else batch.label * batch.valid
        maps = label_maps(known, batch.image)
        return (interior(batch.image), interior(maps)) if self.resamples else (batch.image, maps)

    def first(self, source: Batch) -> Tensor:
        """The first one of a pair, which is real in all of them."""
        image = source.cropped().image
        return interior(image) if self.resamples else image

    @torch.no_grad()
    def compared(
        self, names: Container[str], source: Batch, moved: Batch, batches: Batches
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What is real and what is made, for each of the discriminators (Eqs. 3 and 4).

        Args:
            names: of the discriminators that there are, "class" and "dissimilarity".
            source: patches with their margin.
            moved: what was made of them.
            batches: of which the second ones of real pairs are drawn.
        """
        looks: dict[str, tuple[Tensor, Tensor]] = {}
        fake, fake_maps = self.seen(moved, made=True)
        if "class" in names:
            real, maps = self.seen(source)
            looks["class"] = torch.cat([real, maps], dim=1), torch.cat([fake, fake_maps], dim=1)
        if "dissimilarity" in names:
            pool, first = batches.next("real"), self.first(source)
            rows, others = partners(source, pool, self.generator)
            other, _ = self.seen(pool.rows(others))
            looks["dissimilarity"] = torch.cat([first[rows], other], dim=1), torch.cat([first, fake], dim=1)
        return looks
