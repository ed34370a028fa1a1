# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training step's loss once more, with other parameters and without side effects, as derivatives of it need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Task
from monai_autoaug.networks import with_parameters

__all__ = ["detached", "moving", "parameter_names", "replayed", "replayed_loss", "whole_loss"]


@contextmanager
def replayed(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block norms use the batch's own statistics, as in training, and don't keep them; dropout is off.

    Args:
        network: in training mode; put back afterwards, whatever happens.

    Yields:
        The network.

    >>> norm = nn.BatchNorm2d(1)
    >>> with replayed(norm):
    ...     _ = norm(torch.full((2, 1, 2, 2), 5.0))
    >>> norm.running_mean, int(norm.num_batches_tracked)
    (tensor([0.]), 0)
    """
    modes = [(m, m.training) for m in network.modules() if isinstance(m, _DropoutNd | _NormBase)]
    norms = [(m, m.track_running_stats, dict(m._buffers)) for m, _ in modes if isinstance(m, _NormBase)]
    try:
        for module, _ in modes:
            module.training = isinstance(module, _NormBase)
        for norm, _, kept in norms:
            # out of sight: instance norm would write into them whatever it is told
            norm._buffers.update(dict.fromkeys(kept, None))
            norm.track_running_stats = False
        yield network
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, tracked, kept in norms:
            norm._buffers.update(kept)
            norm.track_running_stats = tracked


def replayed_loss(task: Task, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
    """The host's loss of a batch with these parameters of its network, in float32, differentiable twice.

    Args:
        task: owns network and loss.
        batch: without margin.
        parameters: by the names of the network's parameters; those left out are its own.

    Returns:
        A scalar: the mean that a training step takes of the same batch, dropout aside.
    """
    x = batch.image if batch.extra is None else torch.cat([batch.image, batch.extra], dim=1)
    off = torch.autocast(x.device.type, enabled=False)
    with replayed(task.network), with_parameters(task.network, parameters), off:
        output = task.network(x if x.dtype == torch.float64 else x.float())
    return whole_loss(task, output, batch)


def whole_loss(task: Task, output: Any, batch: Batch) -> Tensor:
    """The mean of the host's losses, a scalar, with all of its derivatives.

    Args:
        task: owns the losses; those that are linearised around their batch have a function ``whole`` for this.
        output: of the network.
        batch: what it was given.
    """
    whole: Any = getattr(task.losses, "whole", None)
    total: Tensor
    if whole is None:
        total = task.losses(output, batch.label, batch.valid).mean()
    else:
        total = whole(output, batch.label, batch.valid)
    return total


def moving(batch: Batch) -> dict[str, Tensor]:
    """Those tensors of a batch that carry a gradient to what augmented it: image, label, where it is known, others."""
    found = {name: getattr(batch, name) for name in ("image", "label", "valid", "extra")}
    return {name: t for name, t in found.items() if t is not None and t.requires_grad}


def detached(batch: Batch) -> Batch:
    """The same batch, cut off from what augmented it."""
    cut: dict[str, Any] = {name: t.detach() for name, t in moving(batch).items()}
    return replace(batch, **cut)


def parameter_names(task: Task) -> list[str]:
    """Names of the optimiser's parameters in its order.

    Raises:
        ConfigError: it has parameters that are not the network's.
    """
    names = {id(p): name for name, p in task.network.named_parameters()}
    parameters = [p for g in task.optimizer.param_groups for p in g["params"]]
    if not all(id(p) in names for p in parameters):
        raise ConfigError(
            "the optimiser has parameters that are not the network's, so that its step can't be looked ahead;"
            " give them an optimiser of their own"
        )
    return [names[id(p)] for p in parameters]
