# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations that a network can't see, such as a factor in front of instance norm: a policy can't learn about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug.networks import frozen
from monai_autoaug.transforms import execution
from monai_autoaug.transforms.registry import Cascade, Operation

__all__ = ["no_ops", "sensitivity"]


@torch.no_grad()
def sensitivity(network: nn.Module, image: Tensor, cascades: Sequence[Cascade], *, seed: int = 0) -> dict[str, float]:
    """How much every operation changes a network's output, at the strong end of its range.

    Where an operation moves the image, the output is compared with the equally moved output of the original. The
    network runs with dropout and norm statistics frozen, and is left as it was.

    Args:
        network: any; of several outputs the first counts.
        image: (B, C, D, H, W) real patches: noise would hide what an operation on sharpness does.
        cascades: their operations are measured one by one.
        seed: of what operations draw.

    Returns:
        By operation: deviation of the outputs from each other, over the standard deviation of the output itself.

    >>> from monai_autoaug.transforms import training_cascades
    >>> network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2))
    >>> seen = sensitivity(network, torch.rand(1, 1, 10, 10, 10), training_cascades()[10:12])
    >>> seen["brightness_multiply_1.20_1.30"] < 1e-3 < seen["contrast_1.20_1.30"]
    True
    """
    rows = [o for c in cascades for o in c.operations if o.acts != "nothing"]
    with frozen(network):
        before = _first(network(image))
        return {o.name: _change(network, image, before, o, seed) for o in rows}


def no_ops(
    network: nn.Module, image: Tensor, cascades: Sequence[Cascade], *, tolerance: float = 1e-3
) -> tuple[str, ...]:
    """The names of operations that change a network's output by less than ``tolerance`` (see `sensitivity`).

    >>> from monai_autoaug.transforms import training_cascades
    >>> no_ops(nn.Conv3d(1, 2, 3), torch.rand(1, 1, 8, 8, 8), training_cascades()[10:11])
    ()
    """
    return tuple(name for name, change in sensitivity(network, image, cascades).items() if change < tolerance)


def _first(output: Any) -> Tensor:
    """The first of several outputs, as a plain tensor in at least float32."""
    first: Tensor = output[0] if isinstance(output, list | tuple) else output
    first = first.as_subclass(Tensor)
    return first if first.dtype == torch.float64 else first.float()


def _change(network: nn.Module, image: Tensor, before: Tensor, operation: Operation, seed: int) -> float:
    """Of one operation."""
    generator = torch.Generator().manual_seed(seed)
    # an output of another size can't move along, nor what another library would take for one-hot
    rides = operation.moves_label and operation.acts != "pair" and before.shape[2:] == image.shape[2:]
    cascade = Cascade("one", (Operation("identity"), operation))
    chosen = torch.ones(len(image), 1, dtype=torch.int64)
    moved, carried = execution.apply(
        image, before if rides else None, chosen, [cascade], generator=generator, quantile=_strong(operation), sign=1,
        outside=(0.0,) * before.shape[1],
    )  # fmt: skip
    expected = before if carried is None else carried
    after = _first(network(moved))
    if after.shape != expected.shape:  # a quarter turn of a network that keeps no size
        return float("inf")
    return float((after - expected).square().mean().sqrt() / expected.std().clamp(min=1e-12))


def _strong(operation: Operation) -> float:
    """The end of the range that is farther from the magnitude that changes nothing, as a quantile."""
    neutral, (low, high) = operation.neutral, operation.range
    if neutral is None:
        return 1.0
    return 0.0 if math.isinf(neutral) or abs(low - neutral) > abs(high - neutral) else 1.0
