# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an nnU-Net trainer hands to a method: network, optimiser, loss and precision, and lazily drawn patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Losses, Task
from monai_autoaug.nnunet.patches import PatchLayout
from monai_autoaug.precision import Precision

__all__ = ["CLIP", "TrainerBatches", "TrainingTask"]

CLIP = 12.0  # nnU-Net's largest gradient norm


class TrainingTask(Task):
    """A trainer's segmentation network; the plain step uses the trainer's own loss on its own targets.

    Args:
        network: the network itself, neither wrapped nor compiled.
        optimizer: the trainer's.
        host_loss: the trainer's loss.
        losses: its form for soft labels, or None where it has none and the method is "none".
        precision: autocast and scaler.
        spatial_dims: 2 or 3.
        regions: whether labels are regions.
        call: how the trainer runs its network (compiled), default the network.
        steps: updates of the whole training.
        patch_size: without margin.
        label_names: see `Task`.
        build: see `Task`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        host_loss: Callable[[Any, Any], Tensor],
        losses: Losses,
        precision: Precision,
        *,
        spatial_dims: int,
        regions: bool,
        call: Callable[[Tensor], Any] | None = None,
        steps: int | None = None,
        patch_size: tuple[int, ...] | None = None,
        label_names: tuple[str, ...] = (),
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(
            network, optimizer, losses, precision, spatial_dims=spatial_dims, regions=regions, clip=CLIP, call=call,
            steps=steps, patch_size=patch_size, label_names=label_names, build=build,
        )  # fmt: skip
        self.host_loss = host_loss

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The trainer's own loss of an unaugmented batch."""
        return self.host_loss(output, batch.target)


class TrainerBatches:
    """The streams of a trainer: "train" is what nnU-Net's loop has drawn, others are drawn when they are asked for.

    Args:
        layout: how to read nnU-Net's batches.
        device: where training runs.
        streams: by name; looked up at each call, because a stream may be replaced by another.
        values: whether training patches come with label values where they can, for a `Drawing`.
    """

    def __init__(
        self,
        layout: PatchLayout,
        device: torch.device,
        streams: Mapping[str, Iterator[dict[str, Any]]],
        *,
        values: bool = False,
    ) -> None:
        self.layout, self.device, self.streams, self.values = layout, device, streams, values
        self._drawn: dict[str, Any] | None = None

    def begin(self, raw: dict[str, Any]) -> TrainerBatches:
        """Take the batch that nnU-Net's loop has drawn for this iteration."""
        self._drawn = raw
        return self

    def next(self, stream: str) -> Batch:
        """The next batch of "train", "real" (a second training batch), "meta" (meta-validation) or "unlabelled".

        Raises:
            LookupError: the stream isn't there, or "train" was asked for twice in one iteration.
        """
        if stream == "train" and self._drawn is not None:
            raw, self._drawn = self._drawn, None
            return self.layout.batch(raw, self.device, values=self.values)
        if stream in ("real", "meta") and stream in self.streams:
            return self.layout.batch(next(self.streams[stream]), self.device)
        if stream == "unlabelled" and stream in self.streams:
            return _unknown(self.layout.batch(next(self.streams[stream]), self.device))
        raise LookupError(f"this iteration has no (further) batch of stream {stream!r}")


def _unknown(batch: Batch) -> Batch:
    """A batch whose labels are known nowhere: nnU-Net's loader takes them for background."""
    return replace(batch, label=torch.zeros_like(batch.label), valid=torch.zeros_like(batch.label[:, :1]), target=None)
