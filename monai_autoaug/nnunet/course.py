# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What decides the course of a training, so that a resumed run can be compared with the one it continues.

Settings are named as the options that set them, but hold what is in effect: an option that is left out and one that
says what nnU-Net, the trainer, the plans or the method say anyway are the same. The plans' configuration is compared as
a whole, so edits in between are noticed too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from monai_autoaug import methods
from monai_autoaug.methods.augmented import AugmentedMethod
from monai_autoaug.nnunet.options import OPTIMIZERS, Options
from monai_autoaug.nnunet.unlabelled import read_note

__all__ = ["FREE", "course", "describe", "differences"]

# what a resumed run may change: when it ends, how many validation cases it looks at, when it saves, what it shows
FREE = ("epochs", "val_iterations_per_epoch", "save_every", "tensorboard")
# the plans' keys that are no settings of their own: batch_size and the options have names in the course, what is
# inherited is resolved, and the next stage of a cascade reads this one's predictions only
_NOT_COMPARED = ("autoaug", "batch_size", "inherits_from", "next_stage")
_PLAIN = (bool, int, float, str)


def course(options: Options, trainer: Any, margin: tuple[int, ...]) -> dict[str, Any]:
    """The settings in effect, by the name of their option: numbers, strings, lists and dicts only.

    Args:
        options: of the run.
        trainer: nnU-Net's trainer, whose network, optimiser and method are built.
        margin: voxels by which training patches are enlarged.
    """
    configuration = trainer.configuration_manager
    optimizer, momentum = _optimizer(trainer)
    found = {
        "method": options.method,
        "method_options": _method_options(options, trainer.method)
        | ({} if trainer._given_policy is None else {"policy": trainer._given_policy.digest}),
        "epochs": trainer.num_epochs,
        "iterations_per_epoch": trainer.num_iterations_per_epoch,
        "val_iterations_per_epoch": trainer.num_val_iterations_per_epoch,
        "batch_size": configuration.batch_size,
        "optimizer": optimizer,
        "lr": trainer.initial_lr,
        "weight_decay": trainer.weight_decay,
        "momentum": momentum,
        "features": configuration.network_arch_init_kwargs.get("features_per_stage"),
        "seed": options.seed,
        "loader": options.loader,
        # the option left out follows the device, and such a run may move to another one
        "precision": {
            "in_effect": str(trainer.task.precision.dtype).removeprefix("torch."),
            "follows_device": options.precision is None,
        },
        "base_augmentation": options.base_augmentation,
        "margin": margin,
        "save_every": trainer.save_every,
        **({n: getattr(options, n) for n in ("meta_cases", "meta_split")} if "meta" in trainer.method.needs else {}),
        **({"unlabelled": _digest(read_note(trainer))} if "unlabelled" in trainer.method.needs else {}),
        **({"policy_place": options.policy_place} if trainer.method.draws_operations else {}),
        "plans": _plans(configuration.configuration),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as in the plans
    return plain


def _plans(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration without what the course names otherwise."""
    kept = deepcopy({key: value for key, value in configuration.items() if key not in _NOT_COMPARED})
    kept["architecture"]["arch_kwargs"].pop("features_per_stage", None)
    return kept


def _digest(note: Mapping[str, Any] | None) -> str | None:
    """Of which unlabelled images there are, without their names."""
    return None if note is None else hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()[:16]


def _method_options(options: Options, method: methods.Method) -> dict[str, Any]:
    """The options that the method was built with: None has become a value where the method chose one."""
    found: dict[str, Any] = {}
    for name, parameter in methods.options(options.method).items():
        if name in ("seed", "image_channels"):  # the trainer's
            continue
        given = options.method_options.get(name, parameter.default)
        built = getattr(method, name, None)  # of some options a network is made, which is no value to compare
        found[name] = built if isinstance(built, _PLAIN) else given
    if isinstance(method, AugmentedMethod):
        augmenters = [method.augmenter(kind) for kind in method.kinds]
        found["bounds"] = {}
        for augmenter in augmenters:
            defaults, values = inspect.signature(type(augmenter)).parameters, augmenter.options()
            other = {n: values[n] for n in augmenter.limits if values[n] != defaults[n].default}
            if other:
                found["bounds"][augmenter.kind] = other
        if "base" in found:
            found["base"] = augmenters[0].base
    return found


def _optimizer(trainer: Any) -> tuple[str, float | None]:
    """The option ``optimizer`` that makes what the trainer has, or else the names of its classes; and its momentum."""
    built, schedule = trainer.optimizer, trainer.lr_scheduler
    has = _settings(built)
    momentum = built.param_groups[0].get("momentum")
    if type(schedule) is PolyLRScheduler and schedule.exponent == 0.9:
        parameter = [torch.nn.Parameter(torch.zeros(1))]
        made: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.SGD(parameter, momentum=momentum or 0.0, nesterov=bool(momentum)),
            torch.optim.AdamW(parameter),
        )
        for name, optimizer in zip(OPTIMIZERS, made, strict=True):
            if type(built) is type(optimizer) and has == _settings(optimizer):
                return name, momentum
    groups = "".join(f"; group {json.dumps(g, sort_keys=True, default=str)}" for g in has.get("groups", ()))
    return f"{type(built).__name__} with {type(schedule).__name__}{groups}", momentum


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser is set to beside its parameters and what the trainer sets; of several groups, each of them."""
    found = []
    for group in optimizer.param_groups:
        others = ("params", "lr", "initial_lr", "weight_decay")
        found.append({key: value for key, value in group.items() if key not in others})
    if len(found) == 1:
        return found[0]
    # the trainer's weight decay is one number, so where groups are told apart it may be by this
    sizes = [{"parameters": len(g["params"]), "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
    return {"groups": [a | b for a, b in zip(found, sizes, strict=True)]}


def differences(kept: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by name: the checkpoint's and this run's; those of a method or of the plans one by one.

    >>> differences({"lr": 0.1, "plans": {"batch_dice": True}}, {"lr": 0.1, "plans": {"batch_dice": False}})
    {'plans: batch_dice': (True, False)}
    """
    found = {}
    for name in [*kept, *(n for n in here if n not in kept)]:
        before, now = kept.get(name), here.get(name)
        if name == "method_options" and kept.get("method") != here.get("method"):
            continue  # another method's options are other ones
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            if name == "precision":
                if not (before["follows_device"] and now["follows_device"]):
                    found.update(differences({name: before["in_effect"]}, {name: now["in_effect"]}))
            else:
                found.update({f"{name}: {k}": pair for k, pair in differences(before, now).items()})
        elif before != now:
            found[name] = (before, now)
    return found


def describe(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One phrase a setting.

    >>> describe({"lr": (0.1, 0.2)})
    ['lr: 0.1 in the checkpoint, 0.2 in this run']
    """
    return [f"{name}: {before!r} in the checkpoint, {now!r} in this run" for name, (before, now) in changed.items()]
