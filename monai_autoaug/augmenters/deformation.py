# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""G_D: a learned local deformation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from monai.networks.layers.factories import Conv
from scipy.interpolate import BSpline
from torch import Tensor, nn

from monai_autoaug.augmenters.base import TrunkAugmenter
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.augmenters.trunk import adaptive_pool
from monai_autoaug.precision import float32_region
from monai_autoaug.transforms.geometry import integrate

__all__ = ["DeformationAugmenter", "spline_field"]


@lru_cache(maxsize=64)
def _basis(size: int, control: int, dtype: torch.dtype, device: str) -> Tensor:
    """(size, control) cubic B-spline weights; rows sum to 1, so that a field never exceeds its control points."""
    knots = np.arange(-3, control + 1) - 0.0
    where = np.linspace(0, control - 3, size) if size > 1 else np.array([(control - 3) / 2])
    matrix = BSpline.design_matrix(np.clip(where, 0, control - 3 - 1e-9), knots, 3).toarray()
    with torch.inference_mode(False):  # what is kept here must serve training too
        return torch.tensor(matrix, dtype=dtype, device=device)


def spline_field(control: Tensor, size: tuple[int, ...]) -> Tensor:
    """Smooth field of ``size`` from cubic B-spline control points (B, C, k, k, k), k at least 4.

    >>> spline_field(torch.ones(1, 3, 5, 5, 5), (9, 13, 9)).mean().round(decimals=5)
    tensor(1.)
    """
    field = control
    for axis, n in enumerate(size):
        weights = _basis(n, control.shape[2 + axis], control.dtype, str(control.device))
        field = torch.tensordot(field, weights, dims=([2], [1]))  # consumes the first spatial axis, appends the new one
    return field


class DeformationAugmenter(TrunkAugmenter):
    """A diffeomorphic deformation: the exponential of a cubic B-spline velocity field without mean translation.

    It is integrated at a quarter of the resolution (common arguments: `TrunkAugmenter`). ``fidelity="paper"`` is
    the paper's free displacement of every voxel, bounded, without an inverse.

    Args:
        displacement: bound of each component of the velocity's control points (in the paper's form: of the
            displacement) in voxels; None: 0.1 of the volume's size along that component's axis, so that thin volumes
            of thick slices are not pushed out of themselves.
        control: control points along each axis, 4 to 64. With the default bounds no field of 100 with random signs at
            full bound folds (a test, 40 x 56 x 40 voxels, control points 8 and more apart); closer ones may.
        steps: squarings of the integration, 1 to 16.

    Raises:
        ConfigError: a bound is no number, or out of its range.

    Source: G_D of Gao et al. 2021, section 3.3; velocity field and bound are ours.

    >>> augmenter = DeformationAugmenter(3, 1)
    >>> float(augmenter(torch.zeros(2, 1, 16, 16, 16)).magnitude()["displacement_max"].max())  # fresh: the identity
    0.0
    """

    kind = "deformation"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "displacement": (0.0, 1000.0), "control": (4, 64), "steps": (1, 16),
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
        displacement: float | None = None,
        control: int = 6,
        steps: int = 5,
    ) -> None:
        self.check(control=control, steps=steps, **({} if displacement is None else {"displacement": displacement}))
        self.control = (control,) * spatial_dims
        super().__init__(
            spatial_dims, in_channels, fidelity=fidelity, base=base, noise_size=noise_size, width=width,
            image_condition=image_condition, trunk=trunk, parameters=spatial_dims * control**spatial_dims,
        )  # fmt: skip
        self.displacement, self.steps = displacement, steps
        channels = int(self.trunk.out_channels)  # type: ignore[arg-type]  # nn.Module types attributes loosely
        conv = Conv[Conv.CONV, spatial_dims]
        kernel = 3 if fidelity == "paper" else 1
        last = conv(channels, self.outputs * spatial_dims, kernel, padding=kernel // 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = [] if fidelity == "paper" else [conv(channels, channels, 3, padding=1), nn.SiLU()]
        self.head = nn.Sequential(*first)
        self.last = last

    def draw_shape(self) -> tuple[int, ...]:
        """One draw a control point and component."""
        return (self.spatial_dims, *self.control)

    def place(self, prior: Tensor, shift: Tensor) -> Tensor:
        """The prior as it is where the shift has control points; spread over the field in the paper's form."""
        return prior if prior.shape == shift.shape else spline_field(prior, tuple(shift.shape[2:]))

    def decode(
        self, features: Tensor, noise: Tensor, shape: tuple[int, ...], *, spacing: Tensor | None = None
    ) -> Transformation:
        """Features -> deformation; ``spacing`` is not needed, displacements are in voxels."""
        sizes = [0.1 * n if self.displacement is None else self.displacement for n in shape]
        bound = torch.tensor(sizes, dtype=torch.float32, device=features.device).view(1, -1, *[1] * len(shape))
        features = self.head(features)
        if self.fidelity == "paper":
            raw = self.last(features)
            return Transformation(shape, displacement=bound * self.bounded(raw, noise), normalised=True, deviation=raw)
        raw = self.last(adaptive_pool(features, self.control))
        points = bound * self.bounded(raw, noise)
        with float32_region(points.device):
            velocity = spline_field(points, tuple(-(-n // 4) for n in shape))
            velocity = velocity - velocity.mean(dim=tuple(range(2, velocity.ndim)), keepdim=True)
        ddf = integrate(velocity, shape, steps=self.steps)
        return Transformation(shape, velocity=velocity, displacement=ddf, deviation=raw)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return self.common_options() | {
            "displacement": self.displacement, "control": self.control[0], "steps": self.steps,
        }  # fmt: skip
