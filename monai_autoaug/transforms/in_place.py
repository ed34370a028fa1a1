# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations on values that write over their input, for samples whose memory is ours and that need no gradient.

Each does what the function of the same name in `intensity` or `resolution` does, up to rounding, in fewer passes over
the memory: a chain of products and sums becomes one product and one sum, the figures of an image are computed once, and
a filter is a product of matrices along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from monai_autoaug.transforms import intensity, resolution
from monai_autoaug.transforms.catalogue import with_context
from monai_autoaug.transforms.registry import Operation
from monai_autoaug.transforms.separable import along

__all__ = ["run"]

Write = Callable[[Tensor, float, torch.Generator | None], None]


def _add(x: Tensor, shift: float, _: torch.Generator | None) -> None:
    x.add_(shift)


def _multiply(x: Tensor, factor: float, _: torch.Generator | None) -> None:
    x.mul_(factor)


def _add_noise(x: Tensor, std: float, generator: torch.Generator | None) -> None:
    x.add_(intensity.random_like(x, tuple(x.shape), generator), alpha=std)


def _contrast(x: Tensor, factor: float, _: torch.Generator | None) -> None:
    for channel in x[0]:
        low, high = channel.aminmax()
        offset = float(channel.mean()) * (1 - factor)
        channel.mul_(factor).add_(offset).clamp_(low, high)


def _gamma(x: Tensor, exponent: float, _: torch.Generator | None, *, inverted: bool = False) -> None:
    for channel in x[0]:
        low, high = (float(end) for end in channel.aminmax())
        span = max(high - low, 1e-7)
        mean = float(channel.mean())
        std = _deviation(channel.sub_(mean))
        # the inverted power of the negated image, negated: the bright end takes the dark one's place
        one = -1.0 if inverted else 1.0
        channel.mul_(one / span).add_((high - mean if inverted else mean - low) / span).clamp_(min=1e-7)
        channel.log_().mul_(exponent).exp_()  # a power, in a fifth of the time of pow_
        channel.sub_(channel.mean())
        ratio = one * std / (span * _deviation(channel, 1e-12 / span**2))
        channel.mul_(ratio * span).add_(mean)


def _deviation(centred: Tensor, least: float = 1e-12) -> float:
    flat = centred.view(-1)
    return (float(torch.dot(flat, flat)) / len(flat) + least) ** 0.5


def _blur(x: Tensor, sigma: float, _: torch.Generator | None) -> None:
    bell, _second = _bells(sigma)
    for channel in x[0]:
        _maps(channel, [_mirrored(bell, n) for n in channel.shape])


def _sharpen(x: Tensor, sigma: float, _: torch.Generator | None) -> None:
    if not math.isfinite(sigma):  # infinity changes nothing
        return
    bells = _bells(sigma)
    for channel in x[0]:
        low, high = channel.aminmax()
        (b_d, s_d), (b_h, s_h), (b_w, s_w) = ([_mirrored(k, n) for k in bells] for n in channel.shape)
        smooth, laplacian = along(b_d, channel, 0), along(s_d, channel, 0)
        laplacian = along(s_h, smooth, 1).add_(along(b_h, laplacian, 1))
        laplacian = along(b_w, laplacian, 2).add_(along(s_w, along(b_h, smooth, 1), 2))
        channel.sub_(laplacian).clamp_(low, high)


def _bells(sigma: float) -> list[Tensor]:
    """A Gaussian and its second derivative, from the middle on."""
    kernels = resolution.kernels(torch.tensor([sigma], dtype=torch.float32), int(4 * sigma + 0.5))
    return [kernel[0] for kernel in kernels]


def _mirrored(kernel: Tensor, n: int) -> Tensor:
    """A symmetric filter of an axis of n voxels, mirrored at its ends, as a matrix (n, n)."""
    radius = len(kernel) - 1
    position = (torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)).remainder(2 * n)
    weights = torch.cat([kernel.flip(0), kernel[1:]]).expand(n, -1)
    return torch.zeros(n, n, dtype=kernel.dtype).scatter_add_(1, torch.minimum(position, 2 * n - 1 - position), weights)


def _low_resolution(x: Tensor, zoom: float, _: torch.Generator | None) -> None:
    made = []
    for n in x.shape[2:]:
        lower, upper, weight = resolution.coarse(n, torch.tensor([zoom], dtype=torch.float32))
        shares = torch.stack([1 - weight[0], weight[0]], 1).float()
        made.append(torch.zeros(n, n, dtype=shares.dtype).scatter_add_(1, torch.stack([lower[0], upper[0]], 1), shares))
    for channel in x[0]:
        _maps(channel, made)


def _maps(channel: Tensor, matrices: list[Tensor]) -> None:
    """A linear map of each axis of (D, H, W), written over it."""
    along(matrices[2], along(matrices[1], along(matrices[0], channel, 0), 1), 2, channel)


_WRITES: dict[Callable[..., Tensor], Write] = {
    intensity.add: _add,
    intensity.multiply: _multiply,
    intensity.add_noise: _add_noise,
    intensity.contrast: _contrast,
    intensity.gamma: _gamma,
    intensity.inverted_gamma: partial(_gamma, inverted=True),
}
_WRITES_IN_3D: dict[Callable[..., Tensor], Write] = {
    resolution.blur: _blur,
    resolution.sharpen: _sharpen,
    resolution.low_resolution: _low_resolution,
}


def _of_the_catalogue(operation: Operation) -> Callable[..., Tensor] | None:
    """The function of one of the catalogue's rows of values, with no option but how far filters of batches reach."""
    row = operation.function
    if operation.acts != "values" or not isinstance(row, partial) or row.func is not with_context:
        return None
    function: Callable[..., Tensor] = row.args[0]
    if isinstance(function, partial):
        return None if function.args or set(function.keywords) != {"largest"} else function.func
    return function


def run(
    images: list[Tensor], operation: Operation, rows: list[int], magnitude: Tensor, generator: torch.Generator | None
) -> bool:
    """Write an operation over the samples (1, C, ...) of these rows; False where it is none of these.

    Several samples draw their noise together, as they do in `execution`, so that is left to it.

    >>> from monai_autoaug.transforms import training_cascades
    >>> add, x = training_cascades()[9][1], torch.zeros(1, 1, 2, 2, 2)
    >>> run([x], add, [0], torch.tensor([0.5]), None), x.unique()
    (True, tensor([0.5000]))
    """
    function = _of_the_catalogue(operation)
    if function is None:
        return False
    write = _WRITES.get(function) or (_WRITES_IN_3D.get(function) if images[rows[0]].ndim == 5 else None)
    if write is None or (write is _add_noise and len(rows) > 1):
        return False
    for row, value in zip(rows, magnitude.tolist(), strict=True):
        if not images[row].is_contiguous():
            images[row] = images[row].contiguous()
        write(images[row], value, generator)
    return True
