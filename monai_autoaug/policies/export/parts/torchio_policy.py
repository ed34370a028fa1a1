# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The part of an exported file that makes a policy a transform of TorchIO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from monai_autoaug.policies.export.parts.operations import VALUES, Step, Table, exchanged, turning

__all__ = ["LearnedPolicy"]


class LearnedPolicy(RandomTransform):
    """Draws an operation of every cascade for the class of the patch, and applies them.

    Axes and angles are those of the arrays, whatever the voxels' size and orientation.

    Args:
        table: the policy.
        label: name of the label map from whose centre the class is read; None: the first one.
        only: a class for all patches, for subjects without a label map; None: that of the patch's centre.
        kwargs: see `torchio.Transform`.

    Attributes:
        drawn: cascade -> operation, of the last call.
    """

    def __init__(self, table: Table, label: str | None = None, only: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table, self.label = table, label
        self.only = None if only is None else list(table.classes).index(only)
        self.drawn: dict[str, str] = {}

    def _place(self, subject: tio.Subject) -> int:
        if self.only is not None or len(self.table.classes) == 1:
            return self.only or 0
        named = subject.get_images_dict(intensity_only=False)
        maps = {name: image for name, image in named.items() if isinstance(image, tio.LabelMap)}
        name = next(iter(maps), None) if self.label is None else self.label
        if name not in maps:
            raise ValueError("the class of a patch is read from its label map, which is missing; or say only=...")
        data = maps[name].data
        centre = (0, *(n // 2 for n in data.shape[1:]))
        return self.table.place(int(data[centre]))

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Zooms, rotations and turns in one resampling, then mirrors, then values."""
        self.drawn, steps = self.table.draw(self._place(subject), lambda: torch.rand(1).item())
        chosen = {
            name: image for name, image in subject.get_images_dict(intensity_only=False).items()
            if (not self.include or name in self.include) and name not in (self.exclude or ())
        }  # fmt: skip
        # without their geometry, so that one voxel is one millimetre and axes are the arrays'
        plain = tio.Subject({name: type(image)(tensor=image.data.float()) for name, image in chosen.items()})
        for transform in _transforms(steps, plain.spatial_shape):
            plain = transform(plain)
        for name, image in chosen.items():
            data = plain.get_image(name).data
            if isinstance(image, tio.LabelMap):
                data = exchanged(data, self.table.pairs) if self.table.mirrored(steps) else data
                data = data.round().to(image.data.dtype)
            image.set_data(data)
        return subject


def _transforms(steps: list[Step], shape: tuple[int, ...]) -> list[tio.Transform]:
    """The library's transforms, and functions of this file where it has none that does the same."""
    matrix = turning(steps, 3)
    found: list[tio.Transform] = []
    if not np.allclose(matrix, np.eye(3), atol=1e-12):
        zoom = float(np.linalg.det(matrix) ** (1 / 3))
        found.append(tio.Affine(scales=(1 / zoom,) * 3, degrees=_degrees(matrix.T / zoom), translation=(0, 0, 0)))
    for step in steps:
        if step.what == "elastic":
            found.append(_elastic(step.amount, shape))
        elif step.what == "flip":
            found.append(tio.Flip(axes=step.axes))
        elif step.what == "noise":
            found.append(tio.Noise(mean=0.0, std=step.amount, seed=int(torch.randint(2**31, (1,)))))
        elif step.what == "blur":
            found.append(tio.Blur(std=(step.amount,) * 3))
        elif step.what in VALUES:
            found.append(tio.Lambda(_function(step), types_to_apply=[tio.INTENSITY]))
    return found


def _function(step: Step) -> Any:
    return lambda x: VALUES[step.what](x[None], step.amount)[0]


def _degrees(rotation: np.ndarray) -> tuple[float, float, float]:
    """Angles from which the library makes this rotation: about axis 1 first, then 0, then 2."""
    first = float(np.arcsin(np.clip(rotation[2, 1], -1, 1)))
    if abs(rotation[2, 1]) > 1 - 1e-9:  # a quarter turn about axis 0, after which the other two axes are one
        second, third = 0.0, float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    else:
        second = float(np.arctan2(-rotation[2, 0], rotation[2, 2]))
        third = float(np.arctan2(-rotation[0, 1], rotation[1, 1]))
    return float(np.degrees(first)), float(np.degrees(second)), float(np.degrees(third))


def _elastic(amplitude: float, shape: tuple[int, ...]) -> tio.ElasticDeformation:
    """Control points about 16 voxels apart; cubic splines halve what they are given."""
    points = [int(np.ceil((n - 1) / 16)) + 3 for n in shape]
    field = (torch.rand(*points, 3).numpy() * 2 - 1) * amplitude * 1.65
    return tio.ElasticDeformation(field, (amplitude * 1.65,) * 3)
