# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Resampling by a matrix that leaves no axis alone: its grid is written down in one go.

Labels are interpolated only where a voxel's neighbours differ. The results are those of `geometry.resample`, up to
rounding; there is no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

from monai_autoaug.transforms.label_cells import PAD, Cells, interpolated, neighbours

__all__ = ["Gridded"]


class Gridded:
    """A resampling by any matrix, through a grid.

    Args:
        matrix: (3, 3), mapping centred output voxels to centred input voxels.
        shape: size (D, H, W) of what is read.
        size: (D, H, W) of what is made, about the same centre.

    >>> x = torch.rand(1, 4, 4, 4)
    >>> torch.allclose(Gridded(torch.eye(3), (4, 4, 4), (4, 4, 4)).image(x), x, atol=1e-6)
    True
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
        self.shape, self.size = shape, size
        half = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
        scaled = (matrix.double() / half.clamp(min=0.5)[:, None]).flip(0)  # straight into what grid_sample wants
        self.grid = torch.zeros(1, 1, 1, 3, dtype=torch.float32)
        for axis, n in enumerate(size):
            centred = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
            line = (centred[:, None] * scaled[:, axis]).float()
            self.grid = self.grid + line.view(*[-1 if k == axis else 1 for k in range(3)], 3)

    def image(self, image: Tensor, outside: Sequence[float] | None = None) -> Tensor:
        """An image (C, D, H, W) resampled; ``outside`` is what each channel is there, None: its minimum."""
        corners = self.grid[:: max(1, self.size[0] - 1), :: max(1, self.size[1] - 1), :: max(1, self.size[2] - 1)]
        base = None
        if float(corners.abs().max()) > 1 and (outside is None or any(outside)):
            ends = image.amin((1, 2, 3)) if outside is None else image.new_tensor(outside)
            base = ends.view(-1, 1, 1, 1)
        source = image if base is None else image - base
        made = F.grid_sample(source[None], self.grid[None], padding_mode="zeros", align_corners=True)[0]
        return made if base is None else made.add_(base)

    def label(self, label: Tensor, classes: int) -> Tensor:
        """Label values (D, H, W) as soft channels (classes, ...), resampled; outside is label 0."""
        padded = F.pad(label, (PAD,) * 6)
        sets = neighbours(padded, classes)
        flat = torch.zeros(self.size, dtype=torch.int32)
        for axis, n in enumerate(sets.shape):
            corner = self._position(self.grid[..., 2 - axis], axis).floor_().add_(PAD).clamp_(0, n - 1)
            flat.mul_(n).add_(corner.to(torch.int32))
        return interpolated(padded, sets.view(-1)[flat], classes, partial(self._cells, padded.shape))

    def _position(self, normalised: Tensor, axis: int) -> Tensor:
        """In voxels, as grid_sample computes it."""
        return (normalised + 1) * ((self.shape[axis] - 1) / 2)

    def _cells(self, padded: tuple[int, ...], where: Tensor) -> Cells:
        rows = self.grid.view(-1, 3)[where]
        corner, shares = torch.zeros(len(where), dtype=torch.long), []
        for axis, n in enumerate(padded):
            position = self._position(rows[:, 2 - axis], axis)
            below = position.floor()
            shares.append(position - below)
            corner.mul_(n).add_(below.long()).add_(PAD)
        return corner, shares
