# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of the task-driven method share: three streams, the method on a tiny network, gradients of players."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from general_helpers import tiny
from method_helpers import Fixed, freeze, losses
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.methods.task_driven import TaskDriven
from monai_autoaug.precision import Precision

SMALL: dict[str, Any] = {"width": 2, "noise_size": 4, "warm_up": 0}
SHAPE = (16, 20)


class Streams(Fixed):
    """Batches of labelled images, and of unlabelled ones, which are darker."""

    def __init__(self, size: int = 4, shape: tuple[int, ...] = SHAPE, channels: int = 1, **options: Any) -> None:
        super().__init__(size, shape, channels, **options)
        labelled = self.batches.pop("real")
        self.batches["unlabelled"] = unlabelled(labelled)


def unlabelled(batch: Batch) -> Batch:
    return replace(batch, image=batch.image - 0.5, label=torch.zeros_like(batch.label),
                   valid=torch.zeros_like(batch.label[:, :1]))  # fmt: skip


def make(
    network: nn.Module | None = None,
    *,
    listener: Callable[[str, Mapping[str, Any]], None] | None = None,
    spatial_dims: int = 2,
    precision: str = "float32",
    channels: int = 1,
    phase: str | None = None,
    **options: Any,
) -> TaskDriven:
    """The method on a tiny network that gives 3 classes, in one of its phases."""
    torch.manual_seed(0)
    network = tiny(spatial_dims, channels) if network is None else network
    heard = {} if listener is None else {"listener": listener}
    task = Task(
        network, torch.optim.SGD(network.parameters(), 1e-2), losses, Precision("cpu", precision),
        spatial_dims=spatial_dims, patch_size=(16, 20, 16)[:spatial_dims], build=lambda: tiny(spatial_dims, channels),
        **heard,
    )  # fmt: skip
    method = methods.build("task_driven", task, **(SMALL | {"image_channels": channels} | options))
    assert isinstance(method, TaskDriven)
    if phase is not None:
        go_to(method, phase)
    return method


def go_to(method: TaskDriven, phase: str) -> TaskDriven:
    for number in range(method.phase_number + 1, [p.name for p in method.phases].index(phase) + 1):
        method.begin_phase(number)
    return method


def moved(method: TaskDriven, amount: float = 0.1) -> TaskDriven:
    """Generators as after some training, drawn alike whatever else there is."""
    with torch.no_grad():
        for number, generator in enumerate(method.generators.values()):
            torch.manual_seed(number + 1)
            for parameter in generator.parameters():
                parameter += amount * torch.randn_like(parameter)
    return method


def gradients(method: TaskDriven, batches: Any) -> dict[str, list[Tensor | None]]:
    """What each player would be updated by in one step, in which nothing is updated."""
    players = freeze(method)
    method.step(batches)
    nothing: list[Tensor | None] = [None]  # where an optimiser has made no step
    return {name: getattr(optimizer, "seen", nothing) for name, optimizer in players.items()}


def norm(found: list[Tensor | None]) -> float:
    return float(torch.stack([g.norm() for g in found if g is not None] or [torch.zeros(())]).norm())


def same(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return len(a) == len(b) and all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )
