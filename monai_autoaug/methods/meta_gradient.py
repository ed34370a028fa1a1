# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The gradient of the loss on a batch of meta-validation patches, in as much memory as a training batch takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Task
from monai_autoaug.methods.meta_losses import meta_loss
from monai_autoaug.precision import sum_over_ranks, world_size

__all__ = ["meta_gradient", "predict"]


def predict(task: Task, batch: Batch, parameters: Mapping[str, Tensor], *, at_once: int) -> Tensor:
    """Full-resolution logits (B, K, ...) of a frozen network with these parameters, some samples at a time.

    Args:
        task: owns the network.
        batch: patches without margin.
        parameters: in place of the network's own, see `Task.forward`.
        at_once: samples of one forward.
    """
    rows = [slice(start, start + at_once) for start in range(0, len(batch.image), at_once)]
    return torch.cat([_logits(task, batch, r, parameters) for r in rows])


def _logits(task: Task, batch: Batch, rows: slice, parameters: Mapping[str, Tensor]) -> Tensor:
    extra = None if batch.extra is None else batch.extra[rows]
    return task.logits(task.forward(batch.image[rows], extra, parameters=parameters))


def meta_gradient(
    task: Task, parameters: Mapping[str, Tensor], batch: Batch, kind: str, *, at_once: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss on the meta-validation patches of all ranks together, of given parameters, and its gradient there.

    Dice is over the whole batch, which may be several times larger than what training has memory for. Then all samples
    are predicted without a graph first, and the loss's gradient at the predictions is carried to the parameters a few
    samples at a time.

    Args:
        task: owns the network.
        parameters: by the names of the network's parameters.
        batch: this rank's patches without margin.
        kind: "ce", "dice" or "both", see `meta_loss`.
        at_once: samples whose graph fits the memory.

    Returns:
        The loss, and a gradient for each of ``parameters``, 0 where the network doesn't use one.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    if len(batch.image) <= at_once:
        logits = _logits(task, batch, slice(None), leaves)
        loss = _loss(task, logits, batch, kind)
        parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, leaves.values(), strict=True)]
    else:
        with torch.no_grad():
            seen = predict(task, batch, parameters, at_once=at_once)
        with torch.enable_grad():
            loss = _loss(task, seen.requires_grad_(), batch, kind)
        (slope,) = torch.autograd.grad(loss, seen)
        gradient = [torch.zeros_like(p) for p in leaves.values()]
        for start in range(0, len(slope), at_once):
            rows = slice(start, start + at_once)
            logits = _logits(task, batch, rows, leaves)
            parts = torch.autograd.grad(logits, list(leaves.values()), slope[rows].to(logits), allow_unused=True)
            for total, part in zip(gradient, parts, strict=True):
                if part is not None:
                    total += part
    return loss.detach(), [sum_over_ranks(g) for g in gradient] if world_size() > 1 else gradient


def _loss(task: Task, logits: Tensor, batch: Batch, kind: str) -> Tensor:
    return meta_loss(
        logits, batch.label, batch.valid, kind, sigmoid=task.sigmoid, regions=task.regions, over_ranks=world_size() > 1
    )
