# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Synthetic 2D pictures of shapes, to try classification on without any file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError

__all__ = ["SHAPES", "pictures"]

SHAPES = ("disc", "cross", "ring")


def _shape(name: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Where a shape is, of points around its centre in units of its radius."""
    x, y = x / radius, y / radius
    length = (x * x + y * y).sqrt()
    if name == "disc":
        return length < 1
    if name == "ring":
        return (length < 1.1) & (length > 0.6)
    arm = torch.minimum(x.abs(), y.abs())
    return (arm < 0.25) & (torch.maximum(x.abs(), y.abs()) < 1.1)


def pictures(
    count: int, *, size: int = 32, classes: int = 2, channels: int = 1, noise: float = 0.3, seed: int = 0
) -> list[dict[str, Any]]:
    """Bright shapes on a dark, noisy ground; the label says which shape it is.

    Place, radius, angle and brightness are drawn; classes take turns.

    Args:
        count: pictures.
        size: pixels a side.
        classes: how many of `SHAPES` there are.
        channels: all show the shape, each with noise of its own.
        noise: its standard deviation; a shape is 0.7 to 1.3 brighter than the ground.
        seed: of the random numbers.

    Returns:
        A dictionary a picture, as MONAI's data sets take them: ``image`` (C, size, size) float32, ``label`` () int64,
        ``case``.

    Raises:
        ConfigError: a number is out of range.

    >>> two = pictures(2)
    >>> two[1]["image"].shape, int(two[1]["label"]), two[1]["case"]
    (torch.Size([1, 32, 32]), 1, 'picture_1')
    """
    if count < 1 or size < 8 or channels < 1 or not 2 <= classes <= len(SHAPES) or noise < 0:
        raise ConfigError(
            f"pictures need count >= 1, size >= 8, channels >= 1, 2 to {len(SHAPES)} classes and noise >= 0, got"
            f" {count}, {size}, {channels}, {classes}, {noise}"
        )
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    made = []
    for number in range(count):
        draw = torch.rand(5, generator=generator)
        place, radius, angle, light = draw[:2] * 0.5 - 0.25, 0.4 + 0.2 * draw[2], 3.14 * draw[3], 0.7 + 0.6 * draw[4]
        u, v = x - place[0], y - place[1]
        turned = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
        label = number % classes
        inside = _shape(SHAPES[label], *turned, radius).float()
        image = light * inside + noise * torch.randn(channels, size, size, generator=generator)
        made.append({"image": image, "label": torch.tensor(label), "case": f"picture_{number}"})
    return made
