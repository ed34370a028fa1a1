# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 003 compares learned transformations with, and the fixed flip that it combines them with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from monai_autoaug.augmenters import ParametricAugmenter, Transformation
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError

__all__ = ["Predefined", "flipped", "invariant_bounds"]

# translations of 4 of 32 pixels, 10 degree, factors of 0.5 to 2 (its section 5.1)
_PAPER = {"rotation": 10.0, "log_scale": math.log(2.0), "shear": 0.0, "translation": 0.125}
_DEFAULT = {"rotation": 15.0, "log_scale": 0.2, "shear": 0.1, "translation": 0.0625}


def flipped(batch: Batch, axes: Sequence[int], generator: torch.Generator) -> Batch:
    """Mirror each sample along each axis half of the time; the label of a classification stays.

    Args:
        batch: with any margin.
        axes: counted from 0.
        generator: of the random numbers.

    >>> b = Batch(torch.arange(4.0).view(2, 1, 1, 2), torch.ones(2, 1, 1, 2))
    >>> flipped(b, [1], torch.Generator().manual_seed(2)).image.flatten().tolist()
    [0.0, 1.0, 3.0, 2.0]
    """
    names = ("image", "extra", "mask") if batch.classification else ("image", "label", "valid", "extra", "mask")
    for axis in axes:
        chosen = torch.rand(len(batch.image), generator=generator, device=generator.device) < 0.5
        here = chosen.to(batch.image.device).view(-1, *[1] * (batch.image.ndim - 1))
        moved: dict[str, Any] = {
            name: torch.where(here, getattr(batch, name).flip(2 + axis), getattr(batch, name))
            for name in names
            if getattr(batch, name) is not None
        }
        batch = replace(batch, target=None, **moved)
    return batch


class Predefined(nn.Module):
    """Transformations whose parameters are drawn uniformly within bounds: hand-made augmentation.

    Args:
        spatial_dims: 2 or 3.
        channels: image channels.
        transformations: as `ParametricAugmenter` has them.
        bounds: of it, by name.
        magnitude: factor on all bounds.
        paper: whether bounds that aren't given are the paper's.

    >>> made = Predefined(2, 1, "translation", {}, 0.5, paper=True)
    >>> move = made(Batch(torch.zeros(50, 1, 32, 32), torch.zeros(50, 1, 32, 32)), torch.Generator().manual_seed(0))
    >>> 1.9 < float(move.matrix[:, :, 2].abs().max()) <= 2
    True
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        transformations: str,
        bounds: Mapping[str, float],
        magnitude: float,
        *,
        paper: bool,
    ) -> None:
        super().__init__()
        self.magnitude = magnitude
        given: dict[str, Any] = (_PAPER if paper else {}) | dict(bounds)
        self.form = ParametricAugmenter(spatial_dims, channels, transformations=transformations, **given)
        self.form.requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Batch, generator: torch.Generator) -> Transformation:
        """Draw one transformation a sample."""
        noise = self.form.sample_noise(len(batch.image), generator)
        # the small network has as many inputs as there are parameters
        unit = self.magnitude * torch.erf(noise[:, : self.form.noise_size] / math.sqrt(2))
        return self.form.decode(unit, noise, tuple(batch.image.shape[2:]), spacing=batch.spacing)


def invariant_bounds(
    transformations: str, bounds: Mapping[str, float], *, paper: bool
) -> tuple[float, float, float, float] | None:
    """Bounds of a spatial transformer: radians, logarithmic scale, shear, share of the size; None: unbounded.

    Args:
        transformations: "affine" or "translation"; "full" is the former, since intensities have no place here.
        bounds: of `ParametricAugmenter`, by name.
        paper: whether it is the paper's, which is unbounded, or reaches half of the size where it translates alone.

    Raises:
        ConfigError: there is nothing spatial to learn, or an unknown bound.

    >>> invariant_bounds("translation", {}, paper=False), invariant_bounds("affine", {}, paper=True)
    ((0.0, 0.0, 0.0, 0.0625), None)
    """
    if transformations == "intensity":
        raise ConfigError(
            "augmentation 'invariant' is a spatial transformer; take transformations affine or translation"
        )
    strangers = set(bounds) - set(_DEFAULT)
    if strangers:
        raise ConfigError(f"augmentation 'invariant' has the bounds {', '.join(_DEFAULT)}, got {', '.join(strangers)}")
    if paper and transformations != "translation":
        if bounds:
            raise ConfigError("augmentation 'invariant' with fidelity 'paper' is unbounded; leave bounds out")
        return None
    all_of = _DEFAULT | ({"translation": 0.5} if paper else {}) | dict(bounds)
    turn, scale, shear, shift = (all_of[name] for name in _DEFAULT)
    if transformations == "translation":
        return 0.0, 0.0, 0.0, shift
    return math.radians(turn), scale, shear, shift
