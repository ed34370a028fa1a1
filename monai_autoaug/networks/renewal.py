# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A network begins anew without being replaced, so that what refers to it (graph, wrapper, optimiser) stays valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm

__all__ = ["built", "check_alike", "renew"]

_Module = TypeVar("_Module", bound=nn.Module)


def built(build: Callable[[], _Module], seed: int) -> _Module:
    """What ``build`` makes with these initial weights; global random numbers are afterwards as they were before.

    Args:
        build: makes a network on the CPU.
        seed: of its weights.

    >>> a, b = (built(lambda: nn.Linear(2, 2), seed=3) for _ in range(2))
    >>> bool((a.weight == b.weight).all())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds GPUs for good
        return build()


def check_alike(network: nn.Module, like: nn.Module) -> None:
    """See that two networks have parameters and buffers of the same names and sizes.

    Raises:
        ConfigError: they haven't.

    >>> check_alike(nn.Linear(2, 2), nn.Linear(2, 2))
    """
    own, new = ({n: tuple(t.shape) for n, t in _tensors(net).items()} for net in (network, like))
    if own != new:
        other = sorted(set(own) ^ set(new)) or sorted(n for n in own if own[n] != new[n])
        raise ConfigError(
            "the function that builds the network makes another one than the one that trains: they differ in"
            f" {', '.join(other[:3])}; give the function that made it, without methods.prepare"
        )


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def renew(network: nn.Module, like: nn.Module) -> None:
    """Give ``network`` all parameters and buffers of ``like``, in place, auxiliary norms included.

    Args:
        network: in training; may be wrapped or compiled elsewhere.
        like: a network of the same form.

    Raises:
        ConfigError: it is of another form.

    >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> renew(a, b); bool((a.weight == b.weight).all())
    True
    """
    check_alike(network, like)
    new = _tensors(like)
    for name, tensor in _tensors(network).items():
        tensor.copy_(new[name])
    for layer in network.modules():
        if isinstance(layer, AuxiliaryNorm):
            layer.fresh = True  # as after it was built: loading weights would make its groups copies of the main one
