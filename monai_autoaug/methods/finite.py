# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is looked at before a checkpoint is written: it must not replace a good one by one that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from monai_autoaug.errors import CheckpointError

__all__ = ["check_finite"]

_STATISTICS = ("running_mean", "running_var", "auxiliary_mean", "auxiliary_variance")


def check_finite(
    learned: Mapping[str, torch.optim.Optimizer], network: nn.Module, held: Mapping[str, nn.Module] | None = None
) -> None:
    """Refuse to keep what is not finite.

    Updates by gradients that are not finite are skipped, but a finite one can be so large that the sum is infinite.

    Args:
        learned: the optimisers of all players by name: their parameters and moments are looked at.
        network: the segmentation network, whose running statistics are, too: not all buffers, as in some networks of
            others a mask is infinite on purpose.
        held: all other modules that a checkpoint holds, by name, also those that learn no more: all that they hold is.

    Raises:
        CheckpointError: something is not finite; the message says whose.

    >>> net = nn.Linear(1, 1)
    >>> with torch.no_grad():
    ...     _ = net.bias.fill_(torch.inf)
    >>> check_finite({"network": torch.optim.SGD(net.parameters(), lr=0.1)}, net)
    Traceback (most recent call last):
    monai_autoaug.errors.CheckpointError: the weights of network are not finite ...
    """
    found = [f"the weights of {name}" for name, optimizer in learned.items() if not _finite(_tensors(optimizer))]
    if not _finite(getattr(module, name, None) for module in network.modules() for name in _STATISTICS):
        found.append("the running statistics of network")
    for name, module in (held or {}).items():
        if not _finite(module.buffers()):
            found.append(f"the running statistics of {name}")
        if name not in learned and not _finite(module.parameters()):
            found.append(f"the weights of {name}")
    if found:
        raise CheckpointError(
            f"{' and '.join(found)} are not finite and would spoil the checkpoint, in which the last good state stays."
            " To do: lower the learning rate, clip the gradient, or train in float32"
        )


def _tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all are; each device is asked once."""
    answers: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            answers.setdefault(tensor.device, []).append(torch.isfinite(tensor.detach()).all())
    return all(bool(torch.stack(found).all()) for found in answers.values())
