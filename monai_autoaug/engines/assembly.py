# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an `AutoAugTrainer` is put together from, and what is refused before it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import PrepareBatchExtraInput
from monai.inferers import Inferer
from torch import nn

from monai_autoaug import methods
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.losses import PerSampleLoss, preferred_form
from monai_autoaug.engines.sides import find_sides
from monai_autoaug.engines.task import (
    AmpPrecision,
    EngineTask,
    check_inferer,
    check_optimizer,
    has_sigmoid,
)
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Method, Task
from monai_autoaug.networks import built, check_alike
from monai_autoaug.precision import broadcast

__all__ = ["build_method", "build_task", "builder", "check_host", "margins", "micro_batch", "planned_updates"]


def planned_updates(length: int | None, epochs: int | None, accumulation_steps: int) -> int | None:
    """How many updates a run has, if it knows how long an epoch is; the last micro-batch of each updates.

    Args:
        length: iterations an epoch.
        epochs: epochs.
        accumulation_steps: micro-batches an update.

    >>> planned_updates(5, 10, 2)
    30
    """
    if length is None or epochs is None:
        return None
    return int(epochs * math.ceil(length / accumulation_steps))


def micro_batch(iteration: int, length: int | None, accumulation_steps: int) -> tuple[bool, bool]:
    """Whether a batch is the first and the last of an update, counted as MONAI does: the last of an epoch updates.

    Args:
        iteration: of the run, from 1 on.
        length: iterations an epoch, if known.
        accumulation_steps: micro-batches an update.

    >>> [micro_batch(n, 3, 2) for n in (1, 2, 3)]
    [(True, False), (False, True), (True, True)]
    """
    number = iteration - 1 if length is None else (iteration - 1) % length
    last = (number + 1) % accumulation_steps == 0 or (length is not None and number + 1 == length)
    return number % accumulation_steps == 0, last


def margins(margin: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """The margin of each axis.

    Raises:
        ConfigError: there are not as many as axes, or one is negative.

    >>> margins(2, 3)
    (2, 2, 2)
    """
    sizes = (margin,) * spatial_dims if isinstance(margin, int) else tuple(margin)
    if len(sizes) != spatial_dims or min(sizes) < 0:
        raise ConfigError(f"margin must be {spatial_dims} numbers of voxels, not negative, got {margin}")
    return sizes


def build_task(
    engine: Any,
    network: nn.Module,
    spatial_dims: int,
    listener: Callable[[str, Mapping[str, Any]], None],
    *,
    regions: bool | None,
    classification: bool,
    clip: float | None,
    patch_size: Sequence[int] | None,
    label_names: Sequence[str],
    build: Callable[[], nn.Module] | None,
) -> EngineTask:
    """What a MONAI trainer owns, for a method.

    Args:
        engine: a ``SupervisedTrainer`` that has all it was given.
        network: its plain network.
        spatial_dims: 2 or 3.
        listener: see `methods.Task`.
        regions: see `AutoAugTrainer`, as the others are.
        classification: likewise.
        clip: likewise.
        patch_size: likewise.
        label_names: likewise.
        build: see `methods.Task`.
    """
    loss = engine.loss_function
    if regions is None:
        regions = has_sigmoid(loss) and preferred_form(loss) == "channels"
    patches = getattr(engine.data_loader, "dataset", None)
    if patch_size is None and isinstance(patches, PatchBatches):
        patch_size = patches.patch_size
    accumulated = engine.accumulation_steps
    return EngineTask(
        network, engine.optimizer, loss, precision=AmpPrecision(engine.state.device, engine.amp, engine.amp_kwargs),
        losses=PerSampleLoss(loss, preferred_form(loss)), inferer=engine.inferer,
        runs=engine.network if engine.compile else network, spatial_dims=spatial_dims, regions=regions,
        classification=classification, clip=clip,
        accumulation_steps=accumulated, label_names=tuple(label_names),
        steps=planned_updates(engine.state.epoch_length, engine.state.max_epochs, accumulated),
        patch_size=None if patch_size is None else tuple(patch_size), listener=listener, build=build,
    )  # fmt: skip


def build_method(
    method: str | Callable[[Task], Method],
    options: Mapping[str, Any],
    task: Task,
    *,
    seed: int,
    channels: int | None,
    orientation: str | None,
) -> tuple[Method, int | None]:
    """Build the method and give every rank the same players.

    Args:
        method: its name, or a function that makes it.
        options: of the method.
        task: what the host owns.
        seed: of the method, unless its options say another.
        channels: image channels, as the network's first convolution has them.
        orientation: of the patches, see `AutoAugTrainer`.

    Returns:
        The method, and the number of image channels if it was told one.

    Raises:
        ConfigError: an option can't be.
    """
    given = dict(options)
    if callable(method):
        if given:
            raise ConfigError("method_options go with a method's name; give a function its options itself")
        built = method(task)
    else:
        known = methods.options(method)
        if "image_channels" in known and "image_channels" not in given:
            if channels is None:
                raise ConfigError(
                    "the network has no convolution that tells the number of image channels: set image_channels in"
                    " method_options"
                )
            given["image_channels"] = channels
        if "laterality" in known and "laterality" in given:
            given["laterality"] = find_sides(
                given["laterality"], task.label_names, orientation=orientation, regions=task.regions,
                spatial_dims=task.spatial_dims,
            )  # fmt: skip
        built = methods.build(method, task, **({"seed": seed} | given))
    players = (player.module for player in built.players.values())
    for module in [task.network, *players, *built.policies().values()]:
        broadcast([*module.parameters(), *module.buffers()])
    return built, given.get("image_channels")


def builder(
    method: str | Callable[[Task], Method], options: Mapping[str, Any], build: Callable[[], nn.Module] | None
) -> Callable[[], nn.Module] | None:
    """What makes a network as the trainer was given it, prepared for the method.

    Args:
        method: its name, or a function that makes it.
        options: of the method.
        build: makes a plain network; None: nothing does.
    """
    if build is None:
        return None
    if isinstance(method, str):
        return lambda: methods.prepare(method, build(), **options)
    prepare = getattr(method, "prepare", None)
    return build if prepare is None else lambda: prepare(build(), **options)


def check_fresh(method: Method) -> None:
    """See that a fresh network can be made for the phases that begin with one.

    Raises:
        ConfigError: the trainer hasn't been told how, or what is made is another network.
    """
    task = method.task
    if not any(phase.fresh for phase in method.phases[1:]):
        return
    if task.build is None:
        raise ConfigError(
            f"method {method.name!r} begins anew with a fresh segmentation network: give the trainer network_builder, a"
            " function that makes the network that methods.prepare was given"
        )
    check_alike(task.network, built(task.build, 0))


def check_host(
    method: Method, network: nn.Module, optimizer: torch.optim.Optimizer, inferer: Inferer, prepare_batch: Any
) -> None:
    """Refuse, before training, what can't work with the method.

    Args:
        method: as it was built.
        network: prepared.
        optimizer: of the network.
        inferer: of the engine.
        prepare_batch: of the engine.

    Raises:
        ConfigError: something can't; the message says what to do.
    """
    check_optimizer(network, optimizer)
    check_fresh(method)
    if method.name == "none":
        return
    check_inferer(inferer, method.name)
    if isinstance(prepare_batch, PrepareBatchExtraInput):
        raise ConfigError(
            f"PrepareBatchExtraInput gives the network further inputs, which method {method.name!r} can't"
            " transform with the image; append them to the image as channels, or use method 'none'"
        )
