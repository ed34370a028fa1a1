# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Generator and discriminators of the general adversarial method, in the default form and in the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from monai_autoaug.augmenters import GeneralAugmenter
from monai_autoaug.augmenters.general_parts import ImageDecoder
from monai_autoaug.methods.base import Task
from monai_autoaug.networks import built
from monai_autoaug.networks.discriminators import Discriminator, WeightNormDiscriminator

__all__ = ["make_discriminators", "make_generator"]


def make_generator(
    task: Task, channels: int, labels: int, *, decoder: bool, seed: int, noise_size: int, width: int, **options: Any
) -> nn.Module:
    """What makes patches, initialised from the seed alike on every rank.

    Args:
        task: what the host owns.
        channels: of the image.
        labels: channels of the label maps, which the decoder is given.
        decoder: whether images are made from noise and label instead of transformed.
        seed: of the initial weights.
        noise_size: length of the noise vector.
        width: channels of the first level.
        options: of `GeneralAugmenter`, for which the decoder has no use.
    """
    if decoder:
        return built(
            partial(ImageDecoder, task.spatial_dims, labels, channels, noise_size=noise_size, width=width), seed
        ).to(task.device)
    make = partial(GeneralAugmenter, task.spatial_dims, channels, noise_size=noise_size, width=width, **options)
    return built(make, seed).to(task.device)


def make_discriminators(
    task: Task, channels: Mapping[str, int], weights: Mapping[str, float], *, seed: int, fidelity: str, width: int
) -> dict[str, nn.Module]:
    """Those discriminators whose term has a weight; each begins the same with and without the others.

    Args:
        task: what the host owns.
        channels: that each of them sees, by name.
        weights: of the generator's terms by the same names.
        seed: of the initial weights.
        fidelity: "default" or "paper".
        width: channels of the first layer.
    """
    form = WeightNormDiscriminator if fidelity == "paper" else partial(Discriminator, halve=True)
    return {
        name: built(partial(form, task.spatial_dims, count, width=width), seed + number).to(task.device)
        for number, (name, count) in enumerate(channels.items(), start=1)
        if weights[name]
    }
