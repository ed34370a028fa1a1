# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views at test time: an operation on the whole volume, and a prediction of that view brought back.

The paper's code loses up to 1.2 voxels between the two on even sizes; here both maps are about the volumes' centres,
and a prediction comes back where it belongs. It resamples by cubic splines, here it is linear.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_autoaug.transforms.geometry import affine_grid, identity_grid, invert_affine, resample
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.registry import Context, Operation

__all__ = ["apply_view", "canvas", "revert_view"]


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


def _read(image: Tensor, matrix: Tensor, shape: tuple[int, ...], padding: str) -> Tensor:
    grid = affine_grid(matrix, identity_grid(shape, dtype=_precise(image), device=image.device))
    return resample(image, grid, padding=padding)[0]


def apply_view(
    operation: Operation,
    image: Tensor,
    *,
    enlarge: bool = True,
    generator: torch.Generator | None = None,
    reference: Reference | None = None,
    padding: str = "minimum",
    compat: bool = False,
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
    matrix = _affine(operation, image, shape, False, compat)
    return _read(image, matrix, canvas(operation, shape) if enlarge else shape, "zero" if compat else padding)


def revert_view(operation: Operation, output: Tensor, shape: tuple[int, ...], *, compat: bool = False) -> Tensor:
    """What a network gave for a view, in the voxels of the volume; 0 where the view has seen nothing.

    Args:
        operation: as for `apply_view`.
        output: (B, K, ...) logits or probabilities of the view.
        shape: size of the volume.
        compat: as the paper's code, which is half a voxel off on even sizes.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> flip, x = operations_at_test_time()[29], torch.rand(1, 1, 4, 5, 6)
    >>> torch.equal(revert_view(flip, apply_view(flip, x), (4, 5, 6)), x)
    True
    """
    if operation.inverse is not None:
        return operation.inverse(output, _magnitude(operation, output.device))
    if operation.acts != "matrix":
        return output
    matrix = _affine(operation, output, tuple(output.shape[2:]), True, compat)
    return _read(output, matrix, shape, "zero")
