# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""G_I: a learned additive change of appearance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_autoaug.augmenters.base import TrunkAugmenter
from monai_autoaug.augmenters.deformation import spline_field
from monai_autoaug.augmenters.transformation import Transformation

__all__ = ["AppearanceAugmenter"]


class AppearanceAugmenter(TrunkAugmenter):
    """An additive mask, one a channel (common arguments: `TrunkAugmenter`).

    Args:
        additive: bound of the mask in standard deviations of the normalised image.
        control: control points of the random policy's mask along each axis, 4 to 64.

    Raises:
        ConfigError: a bound is no number, or out of its range.

    Source: G_I of Gao et al. 2021, section 3.3; the bound is ours.

    >>> import torch
    >>> augmenter = AppearanceAugmenter(3, 1)
    >>> float(augmenter(torch.zeros(2, 1, 16, 16, 16)).magnitude()["additive_mean"].max())  # fresh: the identity
    0.0
    """

    kind = "appearance"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {"additive": (0.0, 100.0), "control": (4, 64)}

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        *,
        fidelity: str = "default",
        base: str | None = None,
        noise_size: int = 128,
        width: int = 16,
        image_condition: bool = True,
        trunk: nn.Module | None = None,
        additive: float = 0.5,
        control: int = 6,
    ) -> None:
        self.check(additive=additive, control=control)
        self.control = (control,) * spatial_dims
        super().__init__(
            spatial_dims, in_channels, fidelity=fidelity, base=base, noise_size=noise_size, width=width,
            image_condition=image_condition, trunk=trunk, parameters=in_channels * control**spatial_dims,
        )  # fmt: skip
        self.additive = additive
        channels = int(self.trunk.out_channels)  # type: ignore[arg-type]  # nn.Module types attributes loosely
        self.head = Conv[Conv.CONV, spatial_dims](channels, self.outputs * in_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def draw_shape(self) -> tuple[int, ...]:
        """One draw a control point and channel."""
        return (self.in_channels, *self.control)

    def place(self, prior: Tensor, shift: Tensor) -> Tensor:
        """The random policy's mask is smooth; the learned shift may be finer."""
        return spline_field(prior, tuple(shift.shape[2:]))

    def decode(
        self, features: Tensor, noise: Tensor, shape: tuple[int, ...], *, spacing: Tensor | None = None
    ) -> Transformation:
        """Features -> additive mask at the trunk's resolution; ``spacing`` is not needed."""
        raw = self.head(features)
        mask = self.additive * self.bounded(raw, noise)
        return Transformation(shape, additive=mask, normalised=self.fidelity == "paper", deviation=raw)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return self.common_options() | {"additive": self.additive, "control": self.control[0]}
