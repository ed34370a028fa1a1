# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The part of an exported file that makes a policy a transform of batchgeneratorsv2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from monai_autoaug.policies.export.parts.operations import VALUES, Step, Table, exchanged, turning

__all__ = ["LearnedPolicy"]

# amount -> the library's transform, where it does the same; the others are functions of this file
TRANSFORMS: dict[str, Callable[[float], BasicTransform]] = {
    "gamma": lambda amount: GammaTransform(amount, 0, True, 1, 1),
    "inverted_gamma": lambda amount: GammaTransform(amount, 1, True, 1, 1),
    "brightness_multiply": lambda amount: MultiplicativeBrightnessTransform(amount, True, 1),
    "contrast": lambda amount: ContrastTransform(amount, True, True, 1),
    "noise": lambda amount: GaussianNoiseTransform(amount, 1, True),  # the library's "variance" is a deviation
}


class LearnedPolicy(BasicTransform):
    """Draws an operation of every cascade for the class of the patch, and applies them.

    Args:
        table: the policy.
        patch_size: of the result; patches may come in larger, as nnU-Net cuts them, so that rotations bring no corners.
        only: a class for all patches, for data without a segmentation; None: that of the patch's centre.

    Attributes:
        drawn: cascade -> operation, of the last call.
    """

    def __init__(self, table: Table, patch_size: Sequence[int], only: str | None = None) -> None:
        super().__init__()
        self.table, self.patch_size = table, tuple(int(n) for n in patch_size)
        self.only = None if only is None else list(table.classes).index(only)
        self.drawn: dict[str, str] = {}

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """What to do with the patch."""
        self.drawn, steps = self.table.draw(self._place(data_dict), np.random.uniform)
        return {"steps": steps}

    def _place(self, data_dict: dict[str, Any]) -> int:
        if self.only is not None or len(self.table.classes) == 1:
            return self.only or 0
        label = data_dict.get("segmentation")
        if label is None:
            raise ValueError("the class of a patch is read from its segmentation, which is missing; or say only=...")
        centre = (0, *(n // 2 for n in label.shape[1:]))
        return self.table.place(int(label[centre]))

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Do it: zooms and rotations in one resampling, then turns and mirrors, then values."""
        steps: list[Step] = params["steps"]
        size = self.patch_size
        square = all(size[s.axes[0]] == size[s.axes[1]] for s in steps if s.what == "turn")
        moving = [s for s in steps if s.what in ("scale", "rotate") or (s.what == "turn" and not square)]
        bent = [s.amount for s in steps if s.what == "elastic"]
        data_dict = _Spatial(size, turning(moving, len(size)), bent)(**data_dict)
        for step in steps:
            if step.what == "flip" or (step.what == "turn" and square):
                for key in ("image", "segmentation", "regression_target"):
                    if data_dict.get(key) is not None:
                        data_dict[key] = _permuted(data_dict[key], step)
            elif step.what in TRANSFORMS:
                data_dict = TRANSFORMS[step.what](step.amount)(**data_dict)
            elif step.what in VALUES:
                data_dict["image"] = VALUES[step.what](data_dict["image"][None], step.amount)[0]
        if self.table.mirrored(steps) and data_dict.get("segmentation") is not None:
            data_dict["segmentation"] = exchanged(data_dict["segmentation"], self.table.pairs)
        return data_dict


def _permuted(x: torch.Tensor, step: Step) -> torch.Tensor:
    axes = [a + 1 for a in step.axes]
    if step.what == "flip":
        return x.flip(axes)
    return torch.rot90(x, round(step.amount / 90) * (-1 if step.axes == (0, 2) else 1), axes).contiguous()


class _Spatial(SpatialTransform):
    """The library's, with a rotation and a zoom that are given, and outside the darkest value of each channel."""

    def __init__(self, patch_size: tuple[int, ...], matrix: np.ndarray, bent: Sequence[float]) -> None:
        zoom = float(abs(np.linalg.det(matrix)) ** (1 / len(matrix)))
        angles = _angles(matrix / zoom)
        still = np.allclose(matrix, np.eye(len(matrix)), atol=1e-12)
        super().__init__(
            patch_size, patch_center_dist_from_border=0, random_crop=False,
            p_rotation=0 if still else 1, rotation=lambda image, dim: angles[dim],
            p_scaling=0 if still else 1, scaling=zoom, p_synchronize_scaling_across_axes=1,
            p_elastic_deform=1 if bent else 0, elastic_deform_magnitude=bent[0] if bent else 0.0,
            elastic_deform_scale=lambda image, dim, patch_size: 6 / patch_size[dim or 0],
        )  # fmt: skip

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        low = img.amin(tuple(range(1, img.ndim)), keepdim=True)
        moved: torch.Tensor = super()._apply_to_image(img - low, **params) + low
        return moved


def _angles(rotation: np.ndarray) -> tuple[float, ...]:
    """Angles about the axes from which the library makes this rotation: about 0 first, then 1, then 2."""
    if len(rotation) == 2:
        angle = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
        return angle, angle
    second = float(np.arcsin(np.clip(-rotation[2, 0], -1, 1)))
    if abs(rotation[2, 0]) > 1 - 1e-9:  # a quarter turn about axis 1, after which the other two axes are one
        return float(np.arctan2(-rotation[1, 2], rotation[1, 1])), second, 0.0
    return float(np.arctan2(rotation[2, 1], rotation[2, 2])), second, float(np.arctan2(rotation[1, 0], rotation[0, 0]))
