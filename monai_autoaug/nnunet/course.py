# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What decides the course of a training, so that a resumed run can be compared with the one it continues.

Settings are named as the options that set them, but hold what is in effect: an option that is left out and one that
says what nnU-Net, the trainer or the plans say anyway are the same, and plans edited in between are noticed too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from monai_autoaug import methods
from monai_autoaug.nnunet.options import Options

__all__ = ["FREE", "course", "describe", "differences"]

# what a resumed run may change: when it ends, how much of the validation cases it looks at, when it saves
FREE = ("epochs", "val_iterations_per_epoch", "save_every")


def course(options: Options, trainer: Any, margin: tuple[int, ...]) -> dict[str, Any]:
    """The settings in effect, by the name of their option: numbers, strings, lists and dicts only.

    Args:
        options: of the run.
        trainer: nnU-Net's trainer, whose network, optimiser and method are built.
        margin: voxels by which training patches are enlarged.
    """
    configuration = trainer.configuration_manager
    own = {n: p.default for n, p in methods.options(options.method).items() if n not in ("seed", "image_channels")}
    momentum = 0.99 if options.optimizer == "sgd" and options.momentum is None else options.momentum
    found = {
        "method": options.method,
        "method_options": own | dict(options.method_options),
        "epochs": trainer.num_epochs,
        "iterations_per_epoch": trainer.num_iterations_per_epoch,
        "val_iterations_per_epoch": trainer.num_val_iterations_per_epoch,
        "batch_size": configuration.batch_size,
        "optimizer": options.optimizer,
        "lr": trainer.initial_lr,
        "weight_decay": trainer.weight_decay,
        "momentum": momentum,
        "features": configuration.network_arch_init_kwargs.get("features_per_stage"),
        "seed": options.seed,
        "loader": options.loader,
        "precision": options.precision,  # None follows the device, and a run may move to another one
        "base_augmentation": options.base_augmentation,
        "margin": margin,
        "save_every": trainer.save_every,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as in the plans
    return plain


def differences(kept: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by name: the checkpoint's and this run's; options of a method one by one.

    >>> differences({"lr": 0.1, "method_options": {"mode": "affine"}}, {"lr": 0.1, "method_options": {"mode": "both"}})
    {'method_options: mode': ('affine', 'both')}
    """
    found = {}
    for name in [*kept, *(n for n in here if n not in kept)]:
        before, now = kept.get(name), here.get(name)
        if name == "method_options" and kept.get("method") == here.get("method"):
            before, now = before or {}, now or {}
            found.update({f"{name}: {k}": pair for k, pair in differences(before, now).items()})
        elif name != "method_options" and before != now:
            found[name] = (before, now)
    return found


def describe(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One phrase a setting.

    >>> describe({"lr": (0.1, 0.2)})
    ['lr: 0.1 in the checkpoint, 0.2 in this run']
    """
    return [f"{name}: {before!r} in the checkpoint, {now!r} in this run" for name, (before, now) in changed.items()]
