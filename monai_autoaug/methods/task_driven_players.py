# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The generators and discriminators of a task-driven training, in the default form and in the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from monai_autoaug.augmenters import AppearanceAugmenter, Augmenter, DeformationAugmenter
from monai_autoaug.augmenters.conditional import ConditionalAppearance, ConditionalDeformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Task
from monai_autoaug.networks import built
from monai_autoaug.networks.discriminators import Discriminator
from monai_autoaug.networks.five_convolutions import FiveConvolutionDiscriminator

__all__ = ["make_discriminator", "make_generators"]

_FORMS: dict[str, tuple[type[Augmenter], type[Augmenter]]] = {
    "deformation": (DeformationAugmenter, ConditionalDeformation),
    "appearance": (AppearanceAugmenter, ConditionalAppearance),
}
# of seeds: a kind begins the same with and without the other
_NUMBERS = {kind: number for number, kind in enumerate(_FORMS)}


def make_generators(
    task: Task,
    kinds: Sequence[str],
    image_channels: int,
    *,
    seed: int,
    fidelity: str,
    base: str | None,
    bounds: Mapping[str, Mapping[str, float]],
    **sizes: int,
) -> nn.ModuleDict:
    """Generators by kind, initialised from the seed alike on every rank, at full strength.

    Args:
        task: what the host owns.
        kinds: "deformation", "appearance" or both.
        image_channels: channels of the image.
        seed: of the initial weights.
        fidelity: see `TaskDriven`, as the others are.
        base: likewise.
        bounds: likewise.
        sizes: ``noise_size`` and ``width``.

    Raises:
        ConfigError: a generator has no such bound.
    """
    generators = nn.ModuleDict()
    for kind in kinds:
        form, own = _FORMS[kind][fidelity == "paper"], bounds.get(kind, {})
        unknown = set(own) - set(form.limits)
        if unknown:
            raise ConfigError(f"bounds of {kind} are {', '.join(form.limits) or 'none'}, got {sorted(unknown)}")
        given: dict[str, Any] = {**sizes, **own, "base": base}
        if fidelity == "paper":
            given["base"] = None if task.patch_size is None else tuple(-(-n // 32) for n in task.patch_size)
        augmenter = built(partial(form, task.spatial_dims, image_channels, **given), seed + _NUMBERS[kind])
        augmenter.strength.fill_(1.0)
        generators[kind] = augmenter
    return generators.to(task.device)


def make_discriminator(task: Task, kind: str, image_channels: int, *, seed: int, fidelity: str) -> nn.Module:
    """The discriminator of one kind of generator, initialised as `make_generators` does.

    Args:
        task: what the host owns.
        kind: of the generator.
        image_channels: channels of the image.
        seed: of the initial weights.
        fidelity: "default" or "paper".
    """
    make: Callable[[], nn.Module] = (
        partial(FiveConvolutionDiscriminator, task.spatial_dims, image_channels) if fidelity == "paper"
        else partial(Discriminator, task.spatial_dims, image_channels, width=8, halve=True)
    )  # fmt: skip
    return built(make, seed + len(_NUMBERS) + _NUMBERS[kind]).to(task.device)
