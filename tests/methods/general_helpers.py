# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of the general adversarial method share: a tiny network, the method on it, players a step away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from method_helpers import losses
from torch import nn

from monai_autoaug import methods
from monai_autoaug.methods import Task
from monai_autoaug.methods.general_adversarial import GeneralAdversarial
from monai_autoaug.precision import Precision

SMALL: dict[str, Any] = {"width": 2, "noise_size": 4, "width_discriminator": 2}


def tiny(spatial_dims: int = 3, channels: int = 1, norm: str = "instance") -> nn.Module:
    conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    kinds = {"instance": (nn.InstanceNorm2d, nn.InstanceNorm3d), "batch": (nn.BatchNorm2d, nn.BatchNorm3d)}
    layer = kinds[norm][spatial_dims - 2](4, affine=True)
    return nn.Sequential(conv(channels, 4, 3, padding=1), layer, nn.SiLU(), conv(4, 3, 1))


def make(
    network: nn.Module | None = None,
    *,
    listener: Callable[[str, Mapping[str, Any]], None] | None = None,
    spatial_dims: int = 3,
    precision: str = "float32",
    channels: int = 1,
    **options: Any,
) -> GeneralAdversarial:
    """The method on a tiny network that gives 3 classes."""
    torch.manual_seed(0)
    network = tiny(spatial_dims, channels) if network is None else network
    given = SMALL | {"image_channels": channels} | options
    methods.prepare("general_adversarial", network, **given)
    heard = {} if listener is None else {"listener": listener}
    task = Task(
        network, torch.optim.SGD(network.parameters(), 1e-2), losses, Precision("cpu", precision),
        spatial_dims=spatial_dims, patch_size=(16, 16, 16)[:spatial_dims], build=lambda: tiny(spatial_dims, channels),
        **heard,
    )  # fmt: skip
    method = methods.build("general_adversarial", task, **given)
    assert isinstance(method, GeneralAdversarial)
    return method


def moved(method: GeneralAdversarial, amount: float = 0.1) -> GeneralAdversarial:
    """The generator as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.generators.parameters():
            parameter += amount * torch.randn_like(parameter)
    return method


def weights(*modules: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()}


def changed(before: Mapping[str, torch.Tensor], *modules: nn.Module) -> bool:
    after = weights(*modules)
    return any(not torch.equal(v, after[k]) for k, v in before.items())
