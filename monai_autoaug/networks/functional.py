# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Running a network with other parameters than its own, and without side effects, as look-aheads need it.

``torch.func.functional_call`` can't serve: where a network holds one layer under several names (nnU-Net's do), torch
2.15 leaves the given tensors in some of them when the call is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from monai_autoaug.errors import ConfigError

__all__ = ["frozen", "held", "with_parameters"]

_FROZEN = (_DropoutNd, _NormBase)  # the latter: batch norm, and instance norm with running statistics


@contextmanager
def with_parameters(network: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Within the block ``network`` computes with ``parameters``; afterwards with its own again, whatever happens.

    Args:
        network: may share layers and parameters between names.
        parameters: by the names of ``network.named_parameters()``; those left out stay. Any tensors: leaves, results of
            other operations, dual numbers.

    Yields:
        The network.

    Raises:
        ConfigError: the network has no parameter of that name, or one of another shape.

    >>> import torch
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> with with_parameters(layer, {"weight": torch.full((1, 1), 3.0)}):
    ...     layer(torch.ones(1))
    tensor([3.])
    """
    names = {id(p): name for name, p in network.named_parameters()}
    own = dict(network.named_parameters())
    for name, tensor in parameters.items():
        if name not in own or own[name].shape != tensor.shape:
            came = "has no such parameter" if name not in own else f"its own is {tuple(own[name].shape)}"
            raise ConfigError(f"parameter {name!r} of shape {tuple(tensor.shape)} does not fit the network: {came}")
    # a module's own slots, each module once: a layer that has two names has one slot
    slots = [(m, key, p) for m in network.modules() for key, p in m._parameters.items() if p is not None]
    try:
        for module, key, p in slots:
            if names[id(p)] in parameters:
                module._parameters[key] = parameters[names[id(p)]]  # type: ignore[assignment]  # any tensor will do
        yield network
    finally:
        for module, key, p in slots:
            module._parameters[key] = p


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block dropout is off and batch norm uses its running statistics, and leaves them alone.

    The rest of the network stays in the mode it is in, so that one with deep supervision still returns all its levels.
    Losses at slightly different parameters can be compared only so: dropout would draw other masks, and the batch's
    statistics would make the samples depend on each other.

    Args:
        network: in any mode; put back into it afterwards, whatever happens.

    Yields:
        The network.

    >>> layer = nn.Sequential(nn.BatchNorm3d(1), nn.Dropout(0.5))
    >>> with frozen(layer):
    ...     [m.training for m in layer.modules()]
    [True, False, False]
    >>> [m.training for m in layer.modules()]
    [True, True, True]
    """
    modes = [(m, m.training) for m in network.modules() if isinstance(m, _FROZEN)]
    try:
        for module, _ in modes:
            module.training = False
        yield network
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def held(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block the network's parameters need no gradient: what it computes depends on its input alone.

    Args:
        network: put back afterwards, whatever happens; a backward may come later.

    Yields:
        The network.

    >>> import torch
    >>> layer, x = nn.Linear(1, 1), torch.ones(1, requires_grad=True)
    >>> with held(layer):
    ...     y = layer(x)
    >>> y.backward(); x.grad is None, layer.weight.grad is None
    (False, True)
    """
    learning = [p for p in network.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield network
    finally:
        for p in learning:
            p.requires_grad_(True)
