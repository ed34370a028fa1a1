# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of the bilevel method share: smooth networks, streams, methods whose augmenter stands still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from method_helpers import Fixed, losses
from torch import nn

from monai_autoaug import methods
from monai_autoaug.methods import Task
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.precision import Precision


class Streams(Fixed):
    """Fixed batches; the second one is for validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches["meta"] = self.batches.pop("real")


class Still(torch.optim.SGD):
    """Keeps the gradients that it is given, and changes nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 1.0)
        self.seen: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:
        self.seen.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]))


def smooth(dims: int = 3, norm: str = "batch", channels: int = 1) -> nn.Module:
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    kinds: dict[str, Any] = {
        "batch": (nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d),
        "none": lambda _: nn.Identity(),
    }
    return nn.Sequential(conv(channels, 4, 3, padding=1), kinds[norm](4), nn.Tanh(), conv(4, 3, 1))


def build(
    network: nn.Module | None = None, *, optimizer: Any = None, precision: str = "float32", steps: int | None = 20,
    still: bool = False, dims: int = 3, task: Mapping[str, Any] | None = None, **options: Any,
) -> Bilevel:  # fmt: skip
    torch.manual_seed(0)
    network = smooth(dims) if network is None else network
    methods.prepare("bilevel", network, **options)
    made = optimizer or (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2))
    host = Task(network, made(network.parameters()), losses, Precision("cpu", precision), steps=steps,
                spatial_dims=dims, **(task or {}))  # fmt: skip
    method = methods.build("bilevel", host, **({"update_every": 1} | options))
    assert isinstance(method, Bilevel)
    if still:
        assert method.augmenter is not None
        method.players["augmenter"].optimizer = Still(method.augmenter.parameters())
    return method


def theta(method: Bilevel) -> torch.Tensor:
    assert method.augmenter is not None
    return torch.cat([p.detach().flatten() for p in method.augmenter.parameters()])


def weights(method: Bilevel) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in method.task.network.state_dict().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())
