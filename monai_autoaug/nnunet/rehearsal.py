# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Building what the options ask for in small, so that a wrong one is reported before anything has been prepared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.errors import AutoAugError, ConfigError
from monai_autoaug.methods import Task
from monai_autoaug.methods.phases import spans
from monai_autoaug.nnunet.given_policy import GivenPolicy
from monai_autoaug.nnunet.options import CONFIG_VARIABLE, Options
from monai_autoaug.precision import Precision

__all__ = ["rehearse"]

_EPOCHS, _ITERATIONS = 1000, 250  # nnU-Net's
_REMEDY = f"correct it in the plans' key autoaug, or in the file that {CONFIG_VARIABLE} names"


def rehearse(
    options: Options,
    *,
    spatial_dims: int = 3,
    label_names: tuple[str, ...] = ("background", "foreground"),
    policy: GivenPolicy | None = None,
) -> None:
    """Build the method with its options for a network of a few weights on the CPU, and throw it away.

    Global random numbers are left as they are.

    Args:
        options: of an nnU-Net trainer.
        spatial_dims: 2 or 3.
        label_names: see `Task`.
        policy: what its method option ``policy`` names.

    Raises:
        ConfigError: an option of the method has a value that it can't be built with.

    >>> rehearse(Options(method="adversarial", method_options={"mode": "affine"}))
    >>> rehearse(Options(method="adversarial", method_options={"weight_magnitude": -1.0}))
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: method 'adversarial' can't be built: weight_magnitude must be at least 0, ...
    """
    convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    norm = nn.InstanceNorm3d if spatial_dims == 3 else nn.InstanceNorm2d
    given = dict(options.method_options)
    if policy is not None:
        policy.check(spatial_dims, label_names)
        given["policy"] = policy.build()
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(convolution(1, 2, 1), norm(2, affine=True))
        try:
            methods.prepare(options.method, network, **given)
            optimizer = torch.optim.SGD(network.parameters(), 0.1)
            steps = (options.epochs or _EPOCHS) * (options.iterations_per_epoch or _ITERATIONS)
            task = Task(
                network, optimizer, _losses, Precision("cpu"), spatial_dims=spatial_dims, steps=steps,
                patch_size=(32,) * spatial_dims, label_names=label_names,
            )  # fmt: skip
            built = methods.build(options.method, task, **given)
            spans(built.phases, options.epochs or _EPOCHS)
        except AutoAugError as error:
            raise ConfigError(f"method {options.method!r} can't be built: {error}; {_REMEDY}") from error
        except Exception as error:  # torch raises many kinds for sizes and rates that can't be
            raise ConfigError(
                f"method {options.method!r} can't be built with the options {dict(options.method_options)}"
                f" ({type(error).__name__}: {error}); {_REMEDY}"
            ) from error


def _losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    return (output - label).square().flatten(1).mean(1)
