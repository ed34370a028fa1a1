# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Resampling by a matrix that leaves one axis alone, without a grid: along that axis, and in the plane of the others.

Nearly all of a training policy's matrices are such: a zoom, a rotation in one plane, or both. A plane's voxels have the
same four neighbours and weights in every slice, so what a grid says of each voxel is said once, and slices are added up
whole. Any other matrix needs a grid, which is written down in one go. Labels are interpolated only where a voxel's
neighbours differ. The results are those of `geometry.resample`, up to rounding; there is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

__all__ = ["MOST_CLASSES", "Gridded", "Separable", "one_hot"]

MOST_CLASSES = 31  # a voxel's neighbours are a set of bits
_TOLERANCE = 1e-6  # of the matrix: what a rotation by a whole quarter leaves
_PAD = 2  # voxels of background around a label


@dataclass(frozen=True)
class _Taps:
    """Where linear interpolation reads along an axis or in a plane.

    Args:
        position: (..., axes) in voxels of the input.
        index: (..., taps), into the flattened input.
        weight: (..., taps), 0 outside.
    """

    position: Tensor
    index: Tensor
    weight: Tensor

    @property
    def outside(self) -> Tensor:
        """Weight of what lies outside of the input (...)."""
        return 1 - self.weight.sum(-1)


def _taps(position: Tensor, sizes: tuple[int, ...]) -> _Taps:
    """Of positions (..., 1 or 2) in an input of these sizes."""
    index = torch.zeros(*position.shape[:-1], 1, dtype=torch.long)
    weight = torch.ones(*position.shape[:-1], 1, dtype=position.dtype)
    for axis, n in enumerate(sizes):
        below = position[..., axis].floor()
        share = position[..., axis] - below
        ends = torch.stack([below, below + 1], -1).long()
        shares = torch.stack([1 - share, share], -1) * ((ends >= 0) & (ends < n))
        index = (index[..., :, None] * n + ends.clamp(0, n - 1)[..., None, :]).flatten(-2)
        weight = (weight[..., :, None] * shares[..., None, :]).flatten(-2)
    return _Taps(position, index, weight.float())


class Separable:
    """A resampling in two parts, for images and labels of one size.

    Args:
        lone: the axis that is read by itself, counted from 0.
        matrix: (3, 3), mapping centred output voxels to centred input voxels.
        shape: size (D, H, W) of what is read.
        margin: voxels at each end of each axis that the output leaves out.

    >>> same = Separable(2, torch.eye(3), (4, 4, 4), (1, 1, 1))
    >>> x = torch.rand(1, 4, 4, 4)
    >>> torch.allclose(same.image(x), x[:, 1:-1, 1:-1, 1:-1])
    True
    """

    def __init__(self, lone: int, matrix: Tensor, shape: tuple[int, ...], margin: tuple[int, ...]) -> None:
        self.lone, self.shape = lone, shape
        self.plane = tuple(axis for axis in range(3) if axis != lone)
        half = [(n - 1) / 2 for n in shape]
        centred = [torch.arange(m, n - m, dtype=torch.float64) - h for n, m, h in zip(shape, margin, half, strict=True)]
        self.size = tuple(len(c) for c in centred)
        m = matrix.double()
        p, q = self.plane
        along = m[lone, lone] * centred[lone] + half[lone]
        first = m[p, p] * centred[p][:, None] + m[p, q] * centred[q] + half[p]
        second = m[q, p] * centred[p][:, None] + m[q, q] * centred[q] + half[q]
        self.line = _taps(along[:, None], (shape[lone],))
        self.sheet = _taps(torch.stack([first, second], -1), (shape[p], shape[q]))

    @staticmethod
    def of(matrix: Tensor, shape: tuple[int, ...], margin: tuple[int, ...]) -> Separable | None:
        """The resampling by a matrix (3, 3), or None where no axis is left alone.

        >>> Separable.of(torch.ones(3, 3), (4, 4, 4), (0, 0, 0)) is None
        True
        """
        for lone in (2, 1, 0):  # the last axis is the cheapest: neighbours in memory stay together
            others = [axis for axis in range(3) if axis != lone]
            if float(torch.cat([matrix[lone, others], matrix[others, lone]]).abs().max()) <= _TOLERANCE:
                return Separable(lone, matrix, shape, margin)
        return None

    def image(self, image: Tensor) -> Tensor:
        """An image (C, D, H, W) resampled; outside is each channel's minimum."""
        beyond = bool((self.line.outside > 1e-6).any()) or bool((self.sheet.outside > 1e-6).any())
        made = torch.empty(len(image), *self.size)
        for source, target in zip(image, made, strict=True):
            base = source.min() if beyond else None
            if self.lone == 2:
                self._along(self._across(source, base), base, target)
            else:
                part = self._along(source, base, None)
                target.copy_(self._across(part.movedim(self.lone, -1), base).movedim(-1, self.lone))
        return made

    def _across(self, source: Tensor, base: Tensor | None) -> Tensor:
        """Linear in the plane (p, q, width) -> (P, Q, width)."""
        width, taps = source.shape[-1], self.sheet.index.shape[-1]
        rows = source.reshape(-1, width)
        read = F.embedding_bag(
            self.sheet.index.view(-1, taps), rows, per_sample_weights=self.sheet.weight.view(-1, taps), mode="sum"
        )
        if base is not None:
            read.addcmul_(self.sheet.outside.view(-1, 1), base)
        return read.view(*self.sheet.index.shape[:2], width)

    def _along(self, source: Tensor, base: Tensor | None, out: Tensor | None) -> Tensor:
        """Linear along the lone axis of (D, H, W), or of rows of which it is the last."""
        axis, (below, above) = self.lone, self.line.index.unbind(-1)
        shape = [1, 1, 1]
        shape[axis] = -1
        low, high = (w.view(shape) for w in self.line.weight.unbind(-1))
        steps = below.diff()
        if not bool(high.any()) and bool((steps == 1).all()) and base is None:  # nothing but a window
            window = source.narrow(axis, int(below[0]), len(below))
            return window if out is None else out.copy_(window)
        made = source.index_select(axis, below).mul_(low).addcmul_(source.index_select(axis, above), high)
        if base is not None:
            made.addcmul_(self.line.outside.view(shape), base)
        return made if out is None else out.copy_(made)

    def label(self, label: Tensor, classes: int) -> Tensor:
        """Label values (D, H, W) as soft channels (classes, ...), resampled; outside is label 0."""
        padded = F.pad(label, (_PAD,) * 6)
        return _interpolated(padded, self._nearby(_sets(padded, classes)), classes, self._positions)

    def _nearby(self, sets: Tensor) -> Tensor:
        """The set of every output voxel's neighbours."""
        line, sheet = self._cells()
        p, q = self.plane
        if self.lone == 2:
            rows = sets.reshape(-1, sets.shape[2]).index_select(0, sheet)
            return rows.index_select(1, line).view(self.size)
        slabs = sets.index_select(self.lone, line).movedim(self.lone, 0).flatten(1).index_select(1, sheet)
        return slabs.view(-1, self.size[p], self.size[q]).movedim(0, self.lone).contiguous()

    def _cells(self) -> tuple[Tensor, Tensor]:
        """For each output position, the corner of the neighbours with the lowest indices in the padded label."""
        limit = [n + 2 * _PAD - 2 for n in self.shape]
        line = (self.line.position[..., 0].floor().long() + _PAD).clamp(0, limit[self.lone])
        p, q = self.plane
        first, second = (self.sheet.position[..., k].floor().long() + _PAD for k in (0, 1))
        sheet = first.clamp(0, limit[p]) * (limit[q] + 1) + second.clamp(0, limit[q])
        return line, sheet.flatten()

    def _positions(self, where: Tensor) -> list[Tensor]:
        """Where output voxels of these flat indices are read, along each axis."""
        at = torch.unravel_index(where, self.size)
        p, q = self.plane
        plane = self.sheet.position[at[p], at[q]]
        found = {self.lone: self.line.position[at[self.lone], 0], p: plane[:, 0], q: plane[:, 1]}
        return [found[axis] for axis in range(3)]


class Gridded:
    """A resampling by any matrix, through a grid.

    Args:
        matrix: (3, 3), mapping centred output voxels to centred input voxels.
        shape: size (D, H, W) of what is read.
        margin: voxels at each end of each axis that the output leaves out.

    >>> x = torch.rand(1, 4, 4, 4)
    >>> torch.allclose(Gridded(torch.eye(3), (4, 4, 4), (0, 0, 0)).image(x), x, atol=1e-6)
    True
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], margin: tuple[int, ...]) -> None:
        self.shape, self.size = shape, tuple(n - 2 * m for n, m in zip(shape, margin, strict=True))
        half = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
        scaled = (matrix.double() / half.clamp(min=0.5)[:, None]).flip(0)  # straight into what grid_sample wants
        self.grid = torch.zeros(1, 1, 1, 3)
        for axis, (n, m) in enumerate(zip(shape, margin, strict=True)):
            centred = torch.arange(m, n - m, dtype=torch.float64) - half[axis]
            line = (centred[:, None] * scaled[:, axis]).float()
            self.grid = self.grid + line.view(*[-1 if k == axis else 1 for k in range(3)], 3)

    def image(self, image: Tensor) -> Tensor:
        """An image (C, D, H, W) resampled; outside is each channel's minimum."""
        corners = self.grid[:: max(1, self.size[0] - 1), :: max(1, self.size[1] - 1), :: max(1, self.size[2] - 1)]
        base = image.amin((1, 2, 3), keepdim=True) if float(corners.abs().max()) > 1 else None
        source = image if base is None else image - base
        made = F.grid_sample(source[None], self.grid[None], padding_mode="zeros", align_corners=True)[0]
        return made if base is None else made.add_(base)

    def label(self, label: Tensor, classes: int) -> Tensor:
        """Label values (D, H, W) as soft channels (classes, ...), resampled; outside is label 0."""
        padded = F.pad(label, (_PAD,) * 6)
        sets = _sets(padded, classes)
        flat = torch.zeros(self.size, dtype=torch.int32)
        for axis, n in enumerate(sets.shape):
            corner = self._position(self.grid[..., 2 - axis], axis).floor_().add_(_PAD).clamp_(0, n - 1)
            flat.mul_(n).add_(corner.to(torch.int32))
        return _interpolated(padded, sets.view(-1)[flat], classes, self._positions)

    def _position(self, normalised: Tensor, axis: int) -> Tensor:
        """In voxels, as grid_sample computes it."""
        return (normalised + 1) * ((self.shape[axis] - 1) / 2)

    def _positions(self, where: Tensor) -> list[Tensor]:
        rows = self.grid.view(-1, 3)[where]
        return [self._position(rows[:, 2 - axis], axis) for axis in range(3)]


def _sets(padded: Tensor, classes: int) -> Tensor:
    """For the corner of each cell of eight voxels, which labels they have, as bits."""
    kind = torch.uint8 if classes <= 8 else torch.int16 if classes <= 15 else torch.int32
    sets = torch.bitwise_left_shift(torch.ones((), dtype=kind), padded.to(kind))
    for axis in range(3):
        n = sets.shape[axis] - 1
        sets = sets.narrow(axis, 0, n) | sets.narrow(axis, 1, n)
    return sets


def _interpolated(padded: Tensor, sets: Tensor, classes: int, positions: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """The soft label (classes, ...): what all eight neighbours have, and where they differ, their weights."""
    soft = torch.empty(classes, *sets.shape)
    for number, channel in enumerate(soft):
        torch.eq(sets, 1 << number, out=channel)
    where = (sets & (sets - 1)).view(-1).nonzero()[:, 0]  # more than one bit: 0 in all channels
    corner = torch.zeros(len(where), dtype=torch.long)
    shares = []
    for position, n in zip(positions(where), padded.shape, strict=True):
        below = position.floor()
        share = (position - below).float()
        shares.append((1 - share, share))
        corner.mul_(n).add_(below.long()).add_(_PAD)  # in the padding all neighbours are alike, so none is beyond it
    mixed, values, order = torch.zeros(classes, len(where)), padded.view(-1), torch.arange(len(where))
    steps = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    for d, h in product((0, 1), repeat=2):
        both = shares[0][d] * shares[1][h]
        for w in (0, 1):
            value = values[corner + (d * steps[0] + h * steps[1] + w)].long()
            mixed.view(-1).scatter_add_(0, value.mul_(len(where)).add_(order), both * shares[2][w])
    soft.view(classes, -1).index_copy_(1, where, mixed)
    return soft


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Label values (...) as channels (classes, ...) of 0 and 1.

    >>> one_hot(torch.tensor([1, 0]), 2)
    tensor([[0., 1.],
            [1., 0.]])
    """
    made = torch.empty(classes, *label.shape)
    for value, channel in enumerate(made):
        torch.eq(label, value, out=channel)
    return made
