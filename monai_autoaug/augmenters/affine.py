# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""G_A: a learned affine transformation with a positive determinant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters.base import TrunkAugmenter
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.augmenters.trunk import adaptive_pool
from monai_autoaug.transforms.geometry import affine_matrix

__all__ = ["AffineAugmenter"]


class AffineAugmenter(TrunkAugmenter):
    """Rotation, scale, shear and translation, each within a stated bound (common arguments: `TrunkAugmenter`).

    Args:
        rotation: bound of each axis' rotation in degree, 0 to 180.
        log_scale: bound of each axis' logarithmic scale, 0 to 2; 0.2 is a factor of 0.82 to 1.22.
        shear: bound of each shear, 0 to 1.
        translation: bound as a share of the volume's size along each axis, 0 to 1.

    Raises:
        ConfigError: a bound is no number, or out of its range.

    Source: G_A of Gao et al. 2021, section 3.3; bounds and positive determinant are ours.

    >>> augmenter = AffineAugmenter(3, 1)
    >>> t = augmenter(torch.zeros(2, 1, 16, 16, 16))
    >>> bool((t.apply(torch.ones(2, 1, 16, 16, 16)) == 1).all())  # fresh: the identity
    True
    """

    kind = "affine"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "rotation": (0.0, 180.0), "log_scale": (0.0, 2.0), "shear": (0.0, 1.0), "translation": (0.0, 1.0),
    }  # fmt: skip

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
        rotation: float = 15.0,
        log_scale: float = 0.2,
        shear: float = 0.1,
        translation: float = 0.0625,
    ) -> None:
        bounds = {"rotation": rotation, "log_scale": log_scale, "shear": shear, "translation": translation}
        self.check(**bounds)
        turns = shears = 3 if spatial_dims == 3 else 1
        self.split = (turns, spatial_dims, shears, spatial_dims)
        super().__init__(
            spatial_dims, in_channels, fidelity=fidelity, base=base, noise_size=noise_size, width=width,
            image_condition=image_condition, trunk=trunk, parameters=sum(self.split),
        )  # fmt: skip
        self.bounds = bounds
        channels = int(self.trunk.out_channels)  # type: ignore[arg-type]  # nn.Module types attributes loosely
        last = nn.Linear(32 if fidelity == "default" else channels, self.outputs * sum(self.split))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if fidelity == "paper":
            self.head = nn.Sequential(last)
        else:
            # noise a second time: after pooling little of it is left in the features
            pooled = channels * 2**spatial_dims + noise_size
            self.head = nn.Sequential(nn.Linear(pooled, 32), nn.SiLU(), last)

    def decode(
        self, features: Tensor, noise: Tensor, shape: tuple[int, ...], *, spacing: Tensor | None = None
    ) -> Transformation:
        """Features -> affine transformation; ``spacing`` (B, 3) in mm makes rotations act in physical space."""
        if self.fidelity == "paper":
            pooled = features.flatten(2).mean(2)
        else:
            pooled = torch.cat([adaptive_pool(features, (2,) * self.spatial_dims).flatten(1),
                                noise[:, : self.noise_size].to(features.dtype)], dim=1)  # fmt: skip
        raw = self.head(pooled)
        unit = self.bounded(raw, noise)
        turn, scale, shear, shift = unit.split(self.split, dim=1)
        size = torch.tensor([float(n) for n in shape]).to(unit)
        matrix = affine_matrix(
            turn * math.radians(self.bounds["rotation"]), scale * self.bounds["log_scale"],
            shear * self.bounds["shear"], shift * self.bounds["translation"] * size, spacing,
        )  # fmt: skip
        return Transformation(shape, matrix=matrix, normalised=self.fidelity == "paper", deviation=raw)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return self.common_options() | self.bounds
