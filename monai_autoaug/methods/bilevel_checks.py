# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Options of the bilevel method that can't be, or that nothing would come of, are refused before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from monai_autoaug.augmenters import ParametricAugmenter
from monai_autoaug.augmenters.parametric import Size, Transformations
from monai_autoaug.errors import ConfigError
from monai_autoaug.optim.hypergradient import MODES

if TYPE_CHECKING:
    from monai_autoaug.methods.bilevel import Bilevel

__all__ = ["Augmentation", "check_bilevel"]

Augmentation = Literal["learned", "predefined", "invariant", "none"]


def check_bilevel(method: Bilevel, *, start: float | None) -> None:
    """Check what a method has been given.

    Args:
        method: with its options as attributes.
        start: of its augmenter.

    Raises:
        ConfigError: an option has no such value, or no use together with others.
    """
    choices = {"augmentation": get_args(Augmentation), "transformations": get_args(Transformations),
               "size": get_args(Size), "fidelity": ("default", "paper"), "derivative": tuple(MODES)}  # fmt: skip
    for name, known in choices.items():
        if getattr(method, name) not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(method, name)!r}")
    for name, least in (("unroll", 1), ("update_every", 1), ("warm_up", 0), ("meta_batch", 1), ("weight_decay", 0)):
        if getattr(method, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(method, name)}")
    if method.learning_rate <= 0 or not 0 < method.magnitude <= 1:
        raise ConfigError(
            f"learning_rate must be above 0 and magnitude above 0 and at most 1, got {method.learning_rate} and"
            f" {method.magnitude}"
        )
    dims = method.task.spatial_dims
    if len(set(method.flip)) < len(method.flip) or not set(method.flip) <= set(range(dims)):
        raise ConfigError(f"flip must be different axes from 0 to {dims - 1}, got {list(method.flip)}")
    if set(method.bounds) - set(ParametricAugmenter.limits):
        raise ConfigError(f"bounds are {', '.join(ParametricAugmenter.limits)}, got {', '.join(method.bounds)}")
    ParametricAugmenter.check(**method.bounds)
    idle = {
        "magnitude": method.magnitude != 1 and method.augmentation != "predefined",
        "start": start is not None and method.augmentation != "learned",
        "bounds": bool(method.bounds) and (
            method.augmentation == "none" or (method.augmentation == "learned" and method.fidelity == "paper")
        ),
    }  # fmt: skip
    for name, given in idle.items():
        if given:
            raise ConfigError(
                f"augmentation {method.augmentation!r} with fidelity {method.fidelity!r} has no use for {name}; leave"
                " it out"
            )
    if method.augmentation == "invariant" and not hasattr(method.task.network, "spatial_transformer"):
        raise ConfigError(
            "augmentation 'invariant' needs a spatial transformer in the network: call methods.prepare(name,"
            " network, **options) before making the optimiser"
        )
