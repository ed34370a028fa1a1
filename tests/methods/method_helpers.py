# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of the methods share: small networks, fixed batches, methods as after some training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.augmented import AugmentedMethod
from monai_autoaug.methods.base import Method, Task
from monai_autoaug.precision import Precision


def unet(norm: Any = "INSTANCE", act: str = "PRELU", channels: int = 1) -> nn.Module:
    return UNet(3, channels, 3, (4, 8, 16), (2, 2), num_res_units=1, norm=norm, act=act)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet_instance": unet,
    "unet_batch": lambda: unet("BATCH"),
    "segresnet": lambda: SegResNet(3, 8, 1, 3),
}


def losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    logits = output[0] if isinstance(output, list | tuple) else output
    logits = logits if logits.dtype == torch.float64 else logits.float()
    voxel = -(label * logits.log_softmax(1)).sum(1)
    return (voxel if valid is None else voxel * valid[:, 0]).flatten(1).mean(1)


class Fixed:
    """The same batches again and again: of smooth images, labels made from them."""

    def __init__(
        self, size: int = 4, shape: tuple[int, ...] = (16, 20, 16), channels: int = 1, *,
        dtype: torch.dtype = torch.float32, margin: tuple[int, ...] | None = None, everything: bool = False,
    ) -> None:  # fmt: skip
        self.asked: list[str] = []
        self.batches = {}
        for number, stream in enumerate(("train", "real")):
            generator = torch.Generator().manual_seed(number)
            coarse = torch.randn(size, channels, *[n // 4 for n in shape], generator=generator)
            mode = "trilinear" if len(shape) == 3 else "bilinear"
            image = nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)
            index = (image[:, 0] > 0.2).long() + (image[:, 0] > 0.8).long()
            label = nn.functional.one_hot(index, 3).movedim(-1, 1)
            self.batches[stream] = Batch(
                image.to(dtype), label.to(dtype), case=tuple(map(str, range(size))),
                margin=margin or tuple(0 for _ in shape),
            )  # fmt: skip
            if everything:  # a partly unknown label and a previous segmentation, as in a cascade
                valid = (torch.rand(size, 1, *shape, generator=generator) > 0.3).to(dtype)
                self.batches[stream] = replace(self.batches[stream], valid=valid, extra=label[:, 1:2].to(dtype))

    def next(self, stream: str) -> Batch:
        self.asked.append(stream)
        return self.batches[stream]


def build(
    network: nn.Module | None = None, name: str = "adversarial", precision: str = "float32", **options: Any
) -> Method:
    torch.manual_seed(0)
    network = unet() if network is None else network
    spatial_dims = options.pop("spatial_dims", 3)
    methods.prepare(name, network, **options)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    task = Task(network, optimizer, losses, Precision("cpu", precision), spatial_dims=spatial_dims)
    return methods.build(name, task, **options)


def moved(method: Method, amount: float = 0.1) -> Method:
    """Generators as after some training: heads not zero, full strength."""
    assert isinstance(method, AugmentedMethod)
    with torch.no_grad():
        for name, parameter in method.generators.named_parameters():
            if "trunk" not in name:
                parameter += amount * torch.randn_like(parameter)
        for augmenter in method.generators.values():
            augmenter.strength.fill_(1.0)
    method.warm_up = 0
    return method


class Recorded(torch.optim.SGD):
    """An optimiser that keeps the gradients it is given and changes nothing."""

    def step(self, closure: Any = None) -> None:
        self.seen = [None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"]]


def freeze(method: Method) -> dict[str, Recorded]:
    task = method.task
    task.optimizer = Recorded(task.network.parameters(), 1.0)
    for player in method.players.values():
        player.optimizer = Recorded(player.module.parameters(), 1.0)
    return {"network": task.optimizer} | {n: p.optimizer for n, p in method.players.items()}  # type: ignore[dict-item]
