# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations on values that write over their input, for samples whose memory is ours and that need no gradient.

Each does what the function of the same name in `intensity` does, up to rounding, in fewer passes over the memory: a
chain of products and sums becomes one product and one sum, and the figures of an image are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from monai_autoaug.transforms import intensity
from monai_autoaug.transforms.registry import Operation

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
        mean, std = float(channel.mean()), _deviation(channel)
        # the inverted power of the negated image, negated: the bright end takes the dark one's place
        one = -1.0 if inverted else 1.0
        channel.mul_(one / span).add_((high if inverted else -low) / span).clamp_(min=1e-7).pow_(exponent)
        ratio = one * std / (span * _deviation(channel, 1e-12 / span**2))
        channel.sub_(channel.mean()).mul_(ratio * span).add_(mean)


def _deviation(channel: Tensor, least: float = 1e-12) -> float:
    return float((channel.view(-1).var(correction=0) + least).sqrt())


_WRITES: dict[Callable[..., Tensor], Write] = {
    intensity.add: _add,
    intensity.multiply: _multiply,
    intensity.add_noise: _add_noise,
    intensity.contrast: _contrast,
    intensity.gamma: _gamma,
    intensity.inverted_gamma: partial(_gamma, inverted=True),
}


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
    given = getattr(operation.function, "args", ())  # of the catalogue's rows: the function and what it wants
    write = _WRITES.get(given[0]) if operation.acts == "values" and given else None
    if write is None or (write is _add_noise and len(rows) > 1):
        return False
    for row, value in zip(rows, magnitude.tolist(), strict=True):
        if not images[row].is_contiguous():
            images[row] = images[row].contiguous()
        write(images[row], value, generator)
    return True
