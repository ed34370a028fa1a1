# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Samples as one picture for TensorBoard: a row a sample, a column a plane, labels as coloured edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from monai_autoaug.data.batch import centre_crop
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.sample_file import Patch, Shot, planes

__all__ = ["COLOURS", "check_board", "montage", "show"]

# told apart on grey images, also with protanopia, deuteranopia and tritanopia (at least 24 apart in CIELAB)
COLOURS = ("#ffb000", "#22c7f0", "#f03c5a", "#a54bff", "#f0e196", "#d24b96", "#6978d2", "#ff000f")
_WIDE, _GAP = 160, 4  # pixels: the longest side of a slice; between slices


def check_board() -> None:
    """See that TensorBoard can be written for.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tensorboard: its package is not installed ({error}); pip install tensorboard, or leave the option out"
        ) from error


def montage(patch: Patch, shots: Sequence[Shot]) -> Tensor:
    """The patch and what was made of it, below each other.

    Args:
        patch: as it was.
        shots: of it, a row each.

    Returns:
        (3, height, width) uint8: RGB.
    """
    image = centre_crop(patch.image[None], patch.margin)[0, 0]
    window = torch.quantile(image.flatten()[:: max(1, image.numel() // 100_000)], torch.tensor([0.01, 0.998]))
    first = planes(image, patch.cuts), planes(patch.foreground, patch.cuts)
    rows = [first, *((shot.image, shot.label) for shot in shots)]
    dims = len(patch.spacing)
    sizes = [[s for axis, s in enumerate(patch.spacing) if dims == 2 or axis != cut] for cut in range(len(first[0]))]
    lengths = [n * s for p, size in zip(first[0], sizes, strict=True) for n, s in zip(p.shape, size, strict=True)]
    scale = _WIDE / max(lengths)
    lines = [
        _side_by_side([_slice(*plane, scale, window) for plane in zip(images, labels, sizes, strict=True)])
        for images, labels in rows
    ]
    return torch.cat([part for line in lines for part in (line, line.new_zeros(3, _GAP, line.shape[2]))][:-1], 1)


def show(writer: Any, epoch: int, patch: Patch, shots: Sequence[Shot]) -> None:
    """Give TensorBoard a picture of each augmenter, or of each class of a policy, named ``samples/KIND``.

    Args:
        writer: a ``SummaryWriter``.
        epoch: that has ended.
        patch: see `montage`.
        shots: of this epoch.
    """
    for kind in dict.fromkeys(shot.kind for shot in shots):
        writer.add_image(f"samples/{kind}", montage(patch, [s for s in shots if s.kind == kind]), epoch)


def _slice(image: Tensor, label: Tensor, spacing: Sequence[float], scale: float, window: Tensor) -> Tensor:
    """One slice (3, height, width) with square pixels, its second axis upwards."""
    size = [max(1, round(n * s * scale)) for n, s in zip(image.shape, spacing, strict=True)]
    grey = _sized(image[None], size)[0]
    grey = ((grey - window[0]) / (window[1] - window[0]).clamp(min=1e-6)).clamp(0, 1)
    rgb = grey.expand(3, *grey.shape).clone()
    for k, channel in enumerate(label):
        inside = (_sized(channel[None], size)[0] > 0.5).float()[None]
        inner = -functional.max_pool2d(-inside, 3, stride=1, padding=1)
        edge = (inside - inner)[0] > 0.5
        colour = COLOURS[k % len(COLOURS)]
        rgb[:, edge] = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])[:, None]
    return (rgb * 255).round().byte().transpose(1, 2).flip(1)


def _sized(part: Tensor, size: Sequence[int]) -> Tensor:
    """(1, H, W) at another size."""
    return functional.interpolate(part[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Slices in one row, on black."""
    height = max(part.shape[1] for part in parts)
    line = torch.zeros(3, height, sum(part.shape[2] + _GAP for part in parts) - _GAP, dtype=torch.uint8)
    left = 0
    for part in parts:
        line[:, : part.shape[1], left : left + part.shape[2]] = part
        left += part.shape[2] + _GAP
    return line
