# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views at test time: an operation on the whole volume, and a prediction of that view brought back.

The paper's code loses up to 1.2 voxels between the two on even sizes; here both maps are about the volumes' centres,
and a prediction comes back where it belongs. It resamples by cubic splines, here it is linear.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.precision import float32_region
from monai_autoaug.tensors import is_derived
from monai_autoaug.transforms.geometry import affine_grid, identity_grid, invert_affine, resample
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.registry import Context, Operation
from monai_autoaug.transforms.separable import Separable

__all__ = ["ViewGrids", "apply_view", "canvas", "coverage", "revert_view"]

_WINDOW = 2**13  # voxels of the largest plane of what counts as a window, not as a volume


class ViewGrids:
    """Grids of affine views, and what these have seen, kept for the next volume of the same size while they fit.

    In 3D a CPU resamples without grids, plane by plane (see `Separable`), and keeps nothing.

    A volume of another size takes the place of the one that was not seen for longest.

    Args:
        limit: bytes that may be kept in all; what doesn't fit is made anew each time.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> grids = ViewGrids(10_000)
    >>> view = apply_view(operations_at_test_time(2)[15], torch.rand(1, 1, 20, 20), grids=grids)
    >>> view.shape, grids.size  # two numbers for each of 676 pixels
    (torch.Size([1, 1, 26, 26]), 5408)
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[tuple[int, ...], dict[Any, Tensor]] = OrderedDict()

    def get(self, volume: tuple[int, ...], key: Any, make: Callable[[], Tensor]) -> Tensor:
        """What was made before for a volume of this size, or is made now.

        Args:
            volume: (D, H, W).
            key: tells what belongs to the same size apart.
            make: makes it.
        """
        mine = self._kept.setdefault(volume, {})
        self._kept.move_to_end(volume)
        # what was made in inference mode can't be used outside of it
        key = (key, torch.is_inference_mode_enabled())
        if key in mine:
            return mine[key]
        made = make()
        need = made.element_size() * made.numel()
        if need > self.limit:
            return made
        while self.size + need > self.limit and len(self._kept) > 1:
            _, others = self._kept.popitem(last=False)
            self.size -= sum(x.element_size() * x.numel() for x in others.values())
        if self.size + need <= self.limit:
            mine[key] = made
            self.size += need
        return made


def canvas(operation: Operation, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Size of a view of a volume of ``shape``, large enough to hold all of it.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> canvas(operations_at_test_time()[15], (28, 26, 24))  # 25 degrees in the plane of the last two axes
    (28, 33, 32)
    """
    if operation.acts == "permutation":
        return tuple(operation(torch.empty((1, 1, *shape), device="meta"), _magnitude(operation, "meta")).shape[2:])
    if operation.acts != "matrix":
        return shape
    linear = operation(_magnitude(operation, "cpu", torch.float64), len(shape))[0]
    reach = torch.maximum(linear.abs(), torch.linalg.inv(linear).abs()) @ torch.tensor(shape, dtype=torch.float64)
    return tuple(math.floor(n + 1e-6) for n in reach.tolist())


def _magnitude(operation: Operation, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((1,), operation.low, device=device, dtype=dtype)


def _precise(x: Tensor) -> torch.dtype:
    """Of grids: at least float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _affine(operation: Operation, image: Tensor, read: tuple[int, ...], inverted: bool, compat: bool) -> Tensor:
    """(1, d, d + 1) from centred output to centred input voxels; ``read`` is the size of what is read."""
    dims = len(read)
    linear = operation(_magnitude(operation, image.device, _precise(image)), dims)
    shift = linear.new_zeros(1, dims, 1)
    if compat:  # coordinates are counted from (n - 1) / 2 and put back at n // 2
        shift = shift + shift.new_tensor([n // 2 - (n - 1) / 2 for n in read])[None, :, None]
    none = torch.zeros_like(shift)
    if inverted:
        linear = invert_affine(torch.cat([linear, none], -1))[..., :-1]
    return torch.cat([linear, shift], -1)


def _grid(
    operation: Operation,
    image: Tensor,
    shape: tuple[int, ...],
    inverted: bool = False,
    compat: bool = False,
    grids: ViewGrids | None = None,
) -> Tensor:
    """Where each voxel of ``shape`` is read from in an image, perhaps one that was made before."""
    read = tuple(image.shape[2:])

    def make() -> Tensor:
        with float32_region(image.device):
            matrix = _affine(operation, image, read, inverted, compat)
            return affine_grid(matrix, identity_grid(shape, dtype=_precise(image), device=image.device))

    if grids is None:
        return make()
    volume = shape if inverted else read
    return grids.get(volume, (operation.name, read, shape, inverted, compat, image.device, _precise(image)), make)


def _separable(operation: Operation, image: Tensor, shape: tuple[int, ...], inverted: bool = False) -> Separable | None:
    """What resamples an image to ``shape`` without a grid, on a CPU and without a gradient; None where nothing can."""
    if image.device.type != "cpu" or image.ndim != 5 or image.dtype != torch.float32 or is_derived(image):
        return None
    linear = operation(_magnitude(operation, "cpu", torch.float64), 3)[0]
    make = _kept_way if math.prod(sorted(shape)[1:]) <= _WINDOW else _way
    return make(tuple(linear.flatten().tolist()), tuple(image.shape[2:]), shape, inverted)


def _way(
    numbers: tuple[float, ...], read: tuple[int, ...], shape: tuple[int, ...], inverted: bool
) -> Separable | None:  # fmt: skip
    """The resampling of ``read`` to ``shape`` by a matrix of these numbers, or by its inverse."""
    with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode can't be used outside of it
        linear = torch.tensor(numbers, dtype=torch.float64).view(3, 3)
        way = Separable.of(torch.linalg.inv(linear) if inverted else linear, read, shape)
        return None if way is None else way.prepared()


_kept_way = lru_cache(maxsize=64)(_way)  # of all views of windows of one size, which are many; at most 45 MiB


def apply_view(
    operation: Operation,
    image: Tensor,
    *,
    enlarge: bool = True,
    generator: torch.Generator | None = None,
    reference: Reference | None = None,
    padding: str = "minimum",
    compat: bool = False,
    grids: ViewGrids | None = None,
) -> Tensor:
    """The view of a volume.

    Args:
        operation: one of `operations_at_test_time`.
        image: (B, C, D, H, W).
        enlarge: an affine view gets a canvas that holds all of the volume; otherwise it keeps the volume's size.
        generator: for the operations that add noise; None: torch's global one.
        reference: intensities of the whole volume; None: ``image`` is the whole volume.
        padding: what lies outside, as in `resample`; "zero" for a label without its background.
        compat: as the paper's code, which pads with zeros and is half a voxel off on even sizes.
        grids: of views that were made before.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> apply_view(operations_at_test_time()[9], torch.rand(1, 1, 20, 20, 20)).shape
    torch.Size([1, 1, 29, 29, 29])
    """
    if operation.acts == "nothing":
        return image
    if operation.acts == "permutation":
        return operation(image, _magnitude(operation, image.device))
    if operation.acts == "values":
        magnitude = _magnitude(operation, image.device).expand(len(image))
        return operation(image, magnitude, Context(generator, reference, compat))
    shape = tuple(image.shape[2:])
    size = canvas(operation, shape) if enlarge else shape
    way = None if compat else _separable(operation, image, size)
    if way is not None and padding != "border":
        return torch.stack([way.image(x, (0.0,) * len(x) if padding == "zero" else None) for x in image])
    grid = _grid(operation, image, size, compat=compat, grids=grids)
    return resample(image, grid, padding="zero" if compat else padding)[0]


def revert_view(
    operation: Operation,
    output: Tensor,
    shape: tuple[int, ...],
    *,
    compat: bool = False,
    grids: ViewGrids | None = None,
) -> Tensor:
    """What a network gave for a view, in the voxels of the volume; 0 where the view has seen nothing.

    Args:
        operation: as for `apply_view`.
        output: (B, K, ...) logits or probabilities of the view.
        shape: size of the volume.
        compat: as the paper's code, which is half a voxel off on even sizes.
        grids: of views that were made before.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> flip, x = operations_at_test_time()[29], torch.rand(1, 1, 4, 5, 6)
    >>> torch.equal(revert_view(flip, apply_view(flip, x), (4, 5, 6)), x)
    True
    """
    if operation.inverse is not None:
        return operation.inverse(output, _magnitude(operation, output.device))
    if operation.acts != "matrix":
        return output
    way = None if compat else _separable(operation, output, shape, inverted=True)
    if way is not None:
        return torch.stack([way.image(x, (0.0,) * len(x)) for x in output])
    grid = _grid(operation, output, shape, inverted=True, compat=compat, grids=grids)
    return resample(output, grid, padding="zero")[0]


def coverage(operation: Operation, output: Tensor, shape: tuple[int, ...], *, grids: ViewGrids | None = None) -> Tensor:
    """How much of each voxel of a volume a view has seen, (1, 1, D, H, W), or (1, 1, 1, 1, 1) if all.

    Args:
        operation: as for `apply_view`.
        output: (B, K, ...) what a network gave for the view; only its size, device and type count.
        shape: size of the volume.
        grids: of views that were made before.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> coverage(operations_at_test_time()[29], torch.rand(1, 1, 4, 5, 6), (4, 5, 6)).shape
    torch.Size([1, 1, 1, 1, 1])
    """
    if operation.acts != "matrix":
        return output.new_ones((1,) * output.ndim)

    way = _separable(operation, output, shape, inverted=True)
    if way is not None:
        return way.inside()[None, None]

    def make() -> Tensor:
        return revert_view(operation, output.new_ones((1, 1, *output.shape[2:])), shape, grids=grids)

    if grids is None:
        return make()
    return grids.get(shape, (operation.name, tuple(output.shape[2:]), output.device, output.dtype), make)
