# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run in miniature before the data is looked at: an option that can't work is refused at once, and leaves nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from monai_autoaug import methods
from monai_autoaug.data import DataList, PatchBatches
from monai_autoaug.data.preprocess import patch_options
from monai_autoaug.engines.building import Labels, make_optimizer, make_trainer
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.random_states import random_states, restore_random_states
from monai_autoaug.engines.segmentation import build_network, downsampling
from monai_autoaug.errors import AutoAugError, AutoAugWarning, ConfigError
from monai_autoaug.methods.phases import spans

__all__ = ["rehearse"]

_LEAST = 16  # voxels a side: what every augmenter and discriminator can look at
_PATCHES = 4  # one a part of the combined mode
_LENGTH = 100  # batches of a stream, more than are taken


def rehearse(options: TrainOptions, datalist: DataList) -> None:
    """Build network, loss and method as the run will, and take one step on random patches on the CPU.

    Global random states are afterwards as they were before. What a user should know before training is a warning.

    Args:
        options: of the run.
        datalist: says how many channels and classes there are; no file is opened.

    Raises:
        ConfigError: the network, the loss or the method can't be built or can't take a step with these options.

    >>> from pathlib import Path
    >>> data = DataList(Path("."), "decathlon", ("MRI",), {"background": 0, "organ": 1})
    >>> rehearse(TrainOptions("data", "run", network_options={"channels": [4, 8]}), data)
    """
    states = random_states()
    try:
        torch.default_generator.manual_seed(0)
        doubts = _rehearse(options, datalist)
    finally:
        restore_random_states(states)
    for doubt in doubts:  # now, not after hours; the run's summary repeats it
        warnings.warn(doubt, AutoAugWarning, stacklevel=2)


def _rehearse(options: TrainOptions, datalist: DataList) -> list[str]:
    """One rehearsal; what fails with the user's patches alone is blamed on them."""
    size = _patch_size(options)
    try:
        return _try(options, datalist, size)
    except ConfigError as error:
        usual = _patch_size(replace(options, patch_size=None))
        if size == usual:
            raise
        _try(options, datalist, usual)  # raises what is wrong whatever the patches
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"patch_size {list(options.patch_size or size)} is too small for network {options.network!r} with method"
            f" {options.method!r} ({reason}); {list(usual)} works"
        ) from error


def _try(options: TrainOptions, datalist: DataList, size: tuple[int, ...]) -> list[str]:
    """Build everything and take a step on patches of this size; what a user should know before training."""
    with _blaming(f"network {options.network!r}", options.network_options):
        network = _network(options, datalist)
        network(torch.zeros(2, len(datalist.channels), *size))
    with _blaming(f"method {options.method!r}", options.method_options):
        return _step(options, methods.prepare(options.method, network, **options.method_options), datalist, size)


def _network(options: TrainOptions, datalist: DataList) -> nn.Module:
    """The run's network, plain and untrained."""
    return build_network(options.network, len(datalist.channels), datalist.num_outputs, **options.network_options)


def _patch_size(options: TrainOptions) -> tuple[int, ...]:
    """The smallest patch in which every level of the network has more than one voxel, or the run's own if smaller.

    Raises:
        ConfigError: the run's own patches don't fit the network.
    """
    factor = downsampling(options.network, options.network_options)
    wanted = options.patch_size
    if wanted is not None and any(n % factor for n in wanted):
        raise ConfigError(
            f"patch_size must be divisible by {factor} with network {options.network!r}, got {list(wanted)}"
        )
    least = -(-_LEAST // factor) * factor
    small = (max(2 * factor, least), max(factor, least), max(factor, least))
    return small if wanted is None else tuple(min(w, s) for w, s in zip(wanted, small, strict=True))


def _step(options: TrainOptions, network: nn.Module, datalist: DataList, size: tuple[int, ...]) -> list[str]:
    """One or two steps of the run's own trainer, with all that a method does at the end of an epoch; its doubts."""
    labels = patch_options(datalist.label_values, datalist.regions, datalist.ignore_label)
    values = labels["num_classes"] + (datalist.ignore_label is not None)
    item = {"image": torch.randn(len(datalist.channels), *size), "label": torch.randint(values, (1, *size))}
    learns = options.learns_from_meta
    given: dict[str, Any] = {"patch_size": size, "seed": 0, "length": _LENGTH, **labels}
    batches = PatchBatches([item], batch_size=_PATCHES, **given)
    meta = PatchBatches([item], batch_size=options.meta_batch, stream="meta", **given) if learns else None
    unlabelled = None
    if options.learns_from_unlabelled:
        unlabelled = PatchBatches([item], batch_size=_PATCHES, stream="unlabelled", labelled=False, **given)
    device = torch.device("cpu")
    # with all its epochs, from which a method makes its schedule
    trainer = make_trainer(
        replace(options, workers=0), network, make_optimizer(options, network), batches, device, torch.float32,
        meta=meta, unlabelled=unlabelled, labels=Labels.of_datalist(datalist),
        build=lambda: _network(options, datalist),
    )  # fmt: skip
    spans(trainer.method.phases, options.epochs)
    # policies look ahead at the step of an optimiser that has made one; all others play from the first one on
    trainer.state.max_epochs, trainer.state.epoch_length = len(trainer.method.phases), 1 + learns
    trainer.method.steps = trainer.method.settled - learns
    trainer.method.finishing = min(trainer.method.finishing, 1)
    trainer.run()
    loss = float(trainer.state.output["loss"].detach())
    wrong = [f"the gradient of {name}" for name in trainer.task.precision.skipped]
    if not math.isfinite(loss) or wrong:
        raise ArithmeticError(f"{' and '.join(wrong) or 'the loss'} is not finite in the first step")
    return trainer.doubts


@contextmanager
def _blaming(what: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what goes wrong into a message that names the user's options; without any it is our fault, and says so."""
    try:
        yield
    except AutoAugError:
        raise
    except Exception as error:  # torch and MONAI raise many kinds for a number they can't use
        reason = f"({type(error).__name__}: {error})"
        if not options:
            raise ConfigError(
                f"{what} can't work with its default options {reason}; if the other options are in order, this is a"
                " fault of monai_autoaug: please report what monai-autoaug --debug shows"
            ) from error
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigError(f"{what} can't work with {given} {reason}") from error
