# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Resampling by a matrix that leaves one axis alone, without a grid: along that axis, and in the plane of the others.

Nearly all of a training policy's matrices are such: a zoom, a rotation in one plane, or both. A plane's voxels have the
same four neighbours and weights in every slice, so what a grid says of each voxel is said once, and slices are added up
whole. Any other matrix needs a grid, see `gridded`. Labels are interpolated only where a voxel's neighbours differ. The
results are those of `geometry.resample`, up to rounding; there is no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

from monai_autoaug.precision import float32_region
from monai_autoaug.transforms.label_cells import PAD, Cells, interpolated, neighbours

__all__ = ["Separable", "along"]

_TOLERANCE = 1e-6  # of the matrix: what a rotation by a whole quarter leaves
_LEAST = 1e-6  # weight of what lies outside that counts


@dataclass(frozen=True)
class _Reading:
    """Where linear interpolation reads along an axis, of which no more than that is cut out.

    Args:
        below: index of the lower neighbour within what is cut out, which may lie outside; float64, flat.
        share: weight of the upper neighbour, likewise.
        first: of the axis, that is cut out.
        size: of what is cut out.
    """

    below: Tensor
    share: Tensor
    first: int
    size: int

    @staticmethod
    def at(position: Tensor, size: int) -> _Reading:
        """Of positions in voxels of an axis of this size, float64."""
        below = position.floor()
        low, high = (int(end) for end in below.aminmax())
        first = min(max(low, 0), size - 1)
        last = min(max(high + 1, first), size - 1)
        return _Reading(below - first, position - below, first, last + 1 - first)

    def taps(self) -> tuple[Tensor, Tensor]:
        """Indices (n, 2) of both neighbours, and their float64 weights, 0 outside."""
        ends = torch.stack([self.below, self.below + 1], -1)
        weights = torch.stack([1 - self.share, self.share], -1)
        inside = ends.clamp(0, self.size - 1)
        return inside.long(), weights.mul_(inside == ends)

    def padded(self) -> Tensor:
        """Index of the lower neighbour after padding by `PAD` at both ends."""
        return (self.below.long() + PAD).clamp(0, self.size + 2 * PAD - 2)

    def normalised(self) -> Tensor:
        """As grid_sample counts."""
        return (self.below + self.share) * (2 / max(self.size - 1, 1)) - 1


class Separable:
    """A resampling in two parts, for images and labels of one size: in a plane, then along the axis left alone.

    Args:
        lone: the axis that is read by itself, counted from 0.
        matrix: (3, 3), mapping centred output voxels to centred input voxels.
        shape: size (D, H, W) of what is read.
        size: (D, H, W) of what is made, about the same centre.

    >>> same = Separable(2, torch.eye(3), (4, 4, 4), (2, 2, 2))
    >>> x = torch.rand(1, 4, 4, 4)
    >>> torch.allclose(same.image(x), x[:, 1:-1, 1:-1, 1:-1])
    True
    """

    def __init__(self, lone: int, matrix: Tensor, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
        self.lone = lone
        self.plane = p, q = tuple(axis for axis in range(3) if axis != lone)
        half = [(n - 1) / 2 for n in shape]
        centred = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
        self.size = size
        m = matrix.tolist()
        down, right = centred[p][:, None], centred[q]
        self.line = _Reading.at(m[lone][lone] * centred[lone] + half[lone], shape[lone])
        self.sheet = [_Reading.at((m[a][p] * down + (m[a][q] * right + half[a])).flatten(), shape[a]) for a in (p, q)]
        read = {lone: self.line, p: self.sheet[0], q: self.sheet[1]}
        self._window = tuple(slice(read[a].first, read[a].first + read[a].size) for a in range(3))

    @staticmethod
    def of(matrix: Tensor, shape: tuple[int, ...], size: tuple[int, ...]) -> Separable | None:
        """The resampling by a matrix (3, 3), or None where no axis is left alone.

        >>> Separable.of(torch.ones(3, 3), (4, 4, 4), (4, 4, 4)) is None
        True
        """
        m = matrix.tolist()
        for lone in (2, 1, 0):  # the last axis is the cheapest: neighbours in memory stay together
            plane = [axis for axis in range(3) if axis != lone]
            if any(shape[a] == 1 for a in plane):  # of a single slice, grid_sample reads that one wherever it is asked
                continue
            if all(abs(m[lone][a]) <= _TOLERANCE and abs(m[a][lone]) <= _TOLERANCE for a in plane):
                return Separable(lone, matrix, shape, size)
        return None

    def prepared(self) -> Separable:
        """The same, with all that images are resampled by made now, not when the first of them comes."""
        _ = self._along, self._across
        return self

    @float32_region("cpu")
    def image(self, image: Tensor, outside: Sequence[float] | None = None) -> Tensor:
        """An image (C, D, H, W) resampled; ``outside`` is what each channel is there, None: its minimum."""
        made = torch.empty(len(image), *self.size, dtype=image.dtype)
        beyond = self._across.beyond or self._along.beyond
        for number, (channel, target) in enumerate(zip(image, made, strict=True)):
            fill = None
            if beyond and (outside is None or outside[number] != 0):
                fill = channel.min() if outside is None else channel.new_tensor(outside[number])
            self._along(self._across(channel[self._window], fill), fill, target)
        return made

    def inside(self) -> Tensor:
        """Weight of what is read inside of the input, for each voxel of the output (D, H, W).

        >>> Separable(2, torch.eye(3), (4, 4, 4), (4, 4, 6)).inside()[0, 0]
        tensor([0., 1., 1., 1., 1., 0.])
        """
        (_, a), (_, b) = (reading.taps() for reading in self.sheet)
        sheet = (a.sum(1) * b.sum(1)).view([self.size[axis] for axis in self.plane])
        weights = sheet[:, :, None] * self.line.taps()[1].sum(1)
        return weights.movedim(2, self.lone).float().contiguous()

    @cached_property
    def _along(self) -> _Line:
        """What interpolates along the lone axis."""
        return _Line(self.line, self.lone)

    @cached_property
    def _across(self) -> _Rows | _Slabs:
        """What interpolates in the plane."""
        size = tuple(self.size[axis] for axis in self.plane)
        return (_Rows if self.lone == 2 else _Slabs)(self.sheet, size, self.lone)

    def label(self, label: Tensor, classes: int) -> Tensor:
        """Label values (D, H, W) as soft channels (classes, ...), resampled; outside is label 0."""
        padded = F.pad(label[self._window], (PAD,) * 6)
        line, (first, second) = self.line.padded(), (reading.padded() for reading in self.sheet)
        sets = self._nearby(neighbours(padded, classes), line, first, second)
        p, q = self.plane
        stride = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
        corner = first.mul_(stride[p]).add_(second, alpha=stride[q])
        shares = [reading.share.float() for reading in (self.line, *self.sheet)]

        def cells(where: Tensor) -> Cells:
            at, across = self._split(where)
            found = {self.lone: shares[0][at], p: shares[1][across], q: shares[2][across]}
            return (line * stride[self.lone])[at].add_(corner[across]), [found[axis] for axis in range(3)]

        return interpolated(padded, sets, classes, cells)

    def _nearby(self, sets: Tensor, line: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The set of every output voxel's neighbours."""
        p, q = self.plane
        sheet = first * sets.shape[q] + second
        if self.lone == 2:
            rows = sets.reshape(-1, sets.shape[2]).index_select(0, sheet)
            return rows.gather(1, line.expand(len(rows), -1)).view(self.size)
        slabs = sets.index_select(self.lone, line).movedim(self.lone, 0).flatten(1)
        read = slabs.gather(1, sheet.expand(len(slabs), -1)).view(-1, self.size[p], self.size[q])
        return read.movedim(0, self.lone).contiguous()

    def _split(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices of output voxels as indices along the lone axis and in the plane."""
        _, h, w = self.size
        if self.lone == 1:
            rows, last = where // w, where % w
            return rows % h, (rows // h).mul_(w).add_(last)
        inner = w if self.lone == 2 else h * w
        outer = where // inner
        rest = where - outer * inner
        return (rest, outer) if self.lone == 2 else (outer, rest)


class _Line:
    """Linear interpolation along one axis.

    Args:
        reading: where it is read.
        axis: of (D, H, W).
    """

    def __init__(self, reading: _Reading, axis: int) -> None:
        index, weight = reading.taps()
        self.axis, self.count = axis, len(index)
        same = weight.new_tensor([1, 0])
        # it is read as it is: not backwards, as after three quarter turns, and no voxel is left out
        self.still = bool((weight == same).all() and (index[:, 0] == torch.arange(self.count)).all())
        self.matrix = torch.zeros(self.count, reading.size, dtype=torch.float32)
        self.matrix.scatter_add_(1, index, weight.float())
        outside = 1 - self.matrix.sum(1)
        self.beyond = bool((outside > _LEAST).any())
        self.outside = outside.view([-1 if k == axis else 1 for k in range(3)])

    def __call__(self, source: Tensor, base: Tensor | None, out: Tensor) -> None:
        """Of (D, H, W) to ``out``; outside is ``base``, or 0."""
        if self.still:
            out.copy_(source.narrow(self.axis, 0, self.count))
            return
        along(self.matrix, source, self.axis, out)
        if base is not None:
            out.addcmul_(self.outside, base)


class _Rows:
    """Linear interpolation in the plane of the first two axes: whole rows are added up.

    Args:
        sheet: where the plane is read along each of its axes.
        size: of the plane that is made.
        lone: the third axis.
    """

    def __init__(self, sheet: list[_Reading], size: tuple[int, ...], lone: int) -> None:
        (first, a), (second, b) = (reading.taps() for reading in sheet)
        self.size, self.lone = size, lone
        self.index = ((first * sheet[1].size)[:, :, None] + second[:, None, :]).flatten(1)
        self.weight = (a[:, :, None] * b[:, None, :]).flatten(1).float()
        self.outside = 1 - self.weight.sum(1, keepdim=True)
        self.beyond = bool((self.outside > _LEAST).any())

    def __call__(self, source: Tensor, base: Tensor | None) -> Tensor:
        """Of (D, H, W); outside is ``base``, or 0."""
        rows = source.reshape(-1, source.shape[2])
        read = F.embedding_bag(self.index, rows, per_sample_weights=self.weight, mode="sum")
        if base is not None and self.beyond:
            read.addcmul_(self.outside, base)
        return read.view(*self.size, -1)


class _Slabs(_Rows):
    """The same in the plane of the last axis and another: slabs are the channels of torch's own resampling."""

    def __init__(self, sheet: list[_Reading], size: tuple[int, ...], lone: int) -> None:
        super().__init__(sheet, size, lone)
        self.grid = torch.stack([sheet[1].normalised(), sheet[0].normalised()], -1).float().view(1, *size, 2)

    def __call__(self, source: Tensor, base: Tensor | None) -> Tensor:
        """Of (D, H, W); outside is ``base``, or 0."""
        slabs = source.movedim(self.lone, 0)
        read = F.grid_sample(slabs[None], self.grid, padding_mode="zeros", align_corners=True)[0]
        if base is not None and self.beyond:
            read.addcmul_(self.outside.view(self.size), base)
        return read.movedim(0, self.lone)


def along(matrix: Tensor, source: Tensor, axis: int, out: Tensor | None = None) -> Tensor:
    """A linear map (out, in) of one axis of (D, H, W), as a product of matrices.

    Torch's products are several times as fast as its reading by indices along the last axis, even where nearly all of
    the matrix is 0.

    >>> along(torch.tensor([[1.0, 1.0]]), torch.ones(2, 2, 2), 1).shape
    torch.Size([2, 1, 2])
    """
    d, h, w = source.shape
    if axis == 2:
        made = torch.mm(source.reshape(-1, w), matrix.t(), out=None if out is None else out.view(d * h, -1))
    elif axis == 1:
        made = torch.matmul(matrix, source, out=out)
    else:
        made = torch.mm(matrix, source.reshape(d, -1), out=None if out is None else out.view(-1, h * w))
    shape = [d, h, w]
    shape[axis] = len(matrix)
    return made.view(shape)
