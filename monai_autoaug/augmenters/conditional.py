# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""G_V and G_I of paper 001 in their own form: noise and image at full resolution, free fields."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import float32_region

__all__ = ["ConditionalAppearance", "ConditionalAugmenter", "ConditionalDeformation"]


def _block(spatial_dims: int, channels_in: int, channels_out: int) -> nn.Sequential:
    """The paper's convolution, batch norm and ReLU."""
    return nn.Sequential(
        Conv[Conv.CONV, spatial_dims](channels_in, channels_out, 3, padding=1, bias=False),
        Norm[Norm.BATCH, spatial_dims](channels_out),
        nn.ReLU(),
    )


class ConditionalAugmenter(Augmenter):
    """What both generators have in common: everything but the last layer.

    The noise passes a fully connected layer, is reshaped to a small map and passes five convolutions interleaved with
    linear upsampling; the image passes two; both together three, and the last one gives the field. All but the last
    have 3 voxels a side, batch norm and ReLU; the first layer has ReLU alone.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        outputs: channels of the field.
        noise_size: length of the noise vector (100 in the paper).
        width: channels behind the image's convolutions (16 in the released code).
        base: voxels along each axis of the noise's first map, a 32nd of the image's (7 for 224 in the released code);
            other images than those it is meant for are resized to.

    Raises:
        ConfigError: a number is below 1, or ``base`` has another number of axes.

    Source: Chaitanya et al. 2019, section 3.3; channel counts are those of the released code, which has one convolution
    less behind the fusion.
    """

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        outputs: int,
        *,
        noise_size: int = 100,
        width: int = 16,
        base: tuple[int, ...] | None = None,
    ) -> None:
        base = (2,) * spatial_dims if base is None else tuple(base)
        if min(noise_size, width, *base) < 1 or len(base) != spatial_dims:
            raise ConfigError(
                f"{self.kind}: noise_size and width must be at least 1 and base {spatial_dims} such numbers, got"
                f" {noise_size}, {width} and {list(base)}"
            )
        super().__init__(spatial_dims, in_channels, noise_size=noise_size)
        self.width, self.base = width, base
        channels = (8 * width, 4 * width, 2 * width, width, width)
        self.first = nn.Linear(noise_size, channels[0] * math.prod(base))
        self.noise = nn.ModuleList(
            _block(spatial_dims, a, b) for a, b in zip((channels[0], *channels[:-1]), channels, strict=True)
        )
        self.image = nn.Sequential(_block(spatial_dims, in_channels, width), _block(spatial_dims, width, width))
        self.common = nn.Sequential(*[_block(spatial_dims, a, width) for a in (2 * width, width, width)])
        self.last = Conv[Conv.CONV, spatial_dims](width, outputs, 1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def features(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, C, D, H, W), (B, noise_size) -> the field (B, outputs, D, H, W) before its activation."""
        full, mode = tuple(image.shape[2:]), "trilinear" if self.spatial_dims == 3 else "bilinear"
        x = F.relu(self.first(noise)).view(len(noise), -1, *self.base)
        for level, block in zip((4, 3, 2, 1, 0), self.noise, strict=True):
            size = tuple(max(min(n, 2), -(-n // 2**level)) for n in full)
            x = block(F.interpolate(x, size=size, mode=mode, align_corners=False))
        out: Tensor = self.last(self.common(torch.cat([self.image(image), x], dim=1)))
        return out

    def forward(self, image: Tensor, noise: Tensor | None = None, *, spacing: Tensor | None = None) -> Transformation:
        """See `Augmenter.forward`; ``spacing`` is not needed, displacements are in voxels."""
        noise = self.sample_noise(len(image)) if noise is None else noise
        raw = self.features(image, noise)
        with float32_region(raw.device):
            return self.transformation(raw if raw.dtype == torch.float64 else raw.float(), tuple(image.shape[2:]))

    @abstractmethod
    def transformation(self, raw: Tensor, shape: tuple[int, ...]) -> Transformation:
        """The field (B, outputs, D, H, W) -> what it does to volumes of size ``shape``."""

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "spatial_dims": self.spatial_dims, "in_channels": self.in_channels, "noise_size": self.noise_size,
            "width": self.width, "base": list(self.base),
        }  # fmt: skip


class ConditionalDeformation(ConditionalAugmenter):
    """G_V: a displacement of every voxel, in voxels, not bounded and without an inverse; what it reads is continued.

    Common arguments: `ConditionalAugmenter`. A fresh one is the identity.

    Source: Chaitanya et al. 2019, sections 2.1 and 3.3.

    >>> augmenter = ConditionalDeformation(2, 1, width=2)
    >>> float(augmenter(torch.zeros(2, 1, 20, 24)).magnitude()["displacement_max"].max())
    0.0
    """

    kind = "conditional_deformation"

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        *,
        noise_size: int = 100,
        width: int = 16,
        base: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(spatial_dims, in_channels, spatial_dims, noise_size=noise_size, width=width, base=base)

    def transformation(self, raw: Tensor, shape: tuple[int, ...]) -> Transformation:
        """See `ConditionalAugmenter.transformation`."""
        return Transformation(shape, displacement=self.strength * raw, padding="border", normalised=True)


class ConditionalAppearance(ConditionalAugmenter):
    """G_I: an additive mask, one a channel, within ``additive`` by tanh; a fresh one is the identity.

    Common arguments: `ConditionalAugmenter`.

    Args:
        additive: bound of the mask; 1 in the paper, whose images go from 0 (2nd percentile) to 1 (98th).

    Raises:
        ConfigError: the bound is no number, or out of its range.

    Source: Chaitanya et al. 2019, sections 2.1 and 3.3.

    >>> augmenter = ConditionalAppearance(2, 1, width=2)
    >>> float(augmenter(torch.zeros(2, 1, 20, 24)).magnitude()["additive_mean"].max())
    0.0
    """

    kind = "conditional_appearance"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {"additive": (0.0, 100.0)}

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        *,
        noise_size: int = 100,
        width: int = 16,
        base: tuple[int, ...] | None = None,
        additive: float = 1.0,
    ) -> None:
        self.check(additive=additive)
        super().__init__(spatial_dims, in_channels, in_channels, noise_size=noise_size, width=width, base=base)
        self.additive = additive

    def transformation(self, raw: Tensor, shape: tuple[int, ...]) -> Transformation:
        """See `ConditionalAugmenter.transformation`."""
        return Transformation(shape, additive=self.strength * self.additive * raw.tanh(), normalised=True)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return super().options() | {"additive": self.additive}
