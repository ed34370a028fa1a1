# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The segmentation network over several ranks, on GPUs or, with gloo, on the CPU.

nnU-Net's wrapping knows GPUs only. Here gradients are averaged explicitly for each player
(`monai_autoaug.precision`), so the network is trained unwrapped; the DDP wrapper stays around it because nnU-Net's
code looks for ``network.module``, and because making it gives all ranks the weights of the first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm
from monai_autoaug.precision import average_over_ranks, gather_over_ranks, world_size

__all__ = ["average_statistics", "called", "mean_over_ranks", "unwrapped", "wrapped"]


def wrapped(network: nn.Module, device: torch.device) -> tuple[nn.Module, bool]:
    """The network in DDP, all ranks with the weights of the first.

    Args:
        network: may be compiled.
        device: this rank's.

    Returns:
        The wrapped network and whether batch norms are synchronised: they are as in plain nnU-Net, on GPUs, unless they
        hold auxiliary groups (SyncBatchNorm has no CPU form and would drop the groups).
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    synchronise = device.type == "cuda" and not any(isinstance(m, AuxiliaryNorm) for m in norms)
    if synchronise:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    devices = [device.index] if device.type == "cuda" else None
    # batch norm statistics are averaged after each epoch; broadcasting them in each forward would make ranks that
    # predict different numbers of patches wait for each other
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False), synchronise or not norms


def called(network: nn.Module) -> nn.Module:
    """What is called to train: the network without DDP, compiled if nnU-Net compiled it."""
    inner: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    return inner


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself.

    >>> net = nn.Linear(1, 1)
    >>> unwrapped(torch.compile(net)) is net
    True
    """
    inner = called(network)
    original: nn.Module = inner._orig_mod if isinstance(inner, OptimizedModule) else inner
    return original


def average_statistics(network: nn.Module) -> None:
    """Average the batch norm statistics over ranks, in place."""
    if world_size() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(average_over_ranks(buffer))


def mean_over_ranks(figures: dict[str, float]) -> dict[str, float]:
    """Mean of each figure over the ranks that have it.

    >>> mean_over_ranks({"loss": 2.0})
    {'loss': 2.0}
    """
    collected: dict[str, list[float]] = {}
    for part in gather_over_ranks(figures):
        for name, value in part.items():
            collected.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}
