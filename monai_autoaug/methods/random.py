# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The unlearned control: the same transformations within the same bounds, drawn uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from monai_autoaug.methods.augmented import AugmentedMethod
from monai_autoaug.methods.base import Batches, Task

__all__ = ["RandomAugmentation"]


class RandomAugmentation(AugmentedMethod):
    """What a learned method must beat: every parameter drawn uniformly within the bounds that the learned one has.

    Arrangement, bounds, norm groups and warm-up are those of `Adversarial`; nothing is learned but the segmentation
    network.

    >>> RandomAugmentation.name
    'random'
    """

    name: ClassVar[str] = "random"

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        image_channels: int = 1,
        mode: str = "combined",
        auxiliary_norms: bool = True,
        bounds: Mapping[str, Mapping[str, Any]] | None = None,
        warm_up: int = 25,
    ) -> None:
        super().__init__(
            task, seed=seed, image_channels=image_channels, mode=mode, auxiliary_norms=auxiliary_norms,
            fidelity="default", base="random", noise_size=1, width=1, image_condition=False, bounds=bounds,
            warm_up=warm_up,
        )  # fmt: skip
        for parameter in self.generators.parameters():
            parameter.requires_grad_(False)

    def step(self, batches: Batches) -> dict[str, float]:
        """Draw, transform, train the segmentation network."""
        parts = self.generate(batches.next("train"))
        loss, losses = self.segment(parts)
        self.descend(loss)
        return self.figures(parts, losses)

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean losses of the epoch's parts."""
        return self.epoch_means()
