# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From the hypergradient of each sample to what each operation of each cascade gets of it.

How hard a sample is has more to do with the patch than with its augmentation. So a sample counts by how it compares
with others of its class (Eq. 10), and an operation by the mean over its samples, however often it was drawn (Eq. 11).

Source: paper 002, Eqs. 10-11, per class and per cascade as its official implementation has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pool", "Sampled", "centre_by_class", "per_operation"]


def centre_by_class(values: Tensor, classes: Tensor) -> Tensor:
    """Each value less the mean of its class (Eq. 10).

    Args:
        values: (n,) hypergradients.
        classes: (n,) int64.

    Returns:
        (n,); they sum to 0 in every class, so a class with one sample gets 0.

    >>> centre_by_class(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    same = (classes[:, None] == classes[None, :]).to(values.dtype)
    return values - same @ values / same.sum(1)


def per_operation(values: Tensor, classes: Tensor, operations: Tensor) -> Tensor:
    """Each value over how many samples of its class have drawn the same operation of a cascade (Eq. 11).

    Args:
        values: (n,) centred hypergradients.
        classes: (n,) int64.
        operations: (n, cascades) int64, what each sample has drawn.

    Returns:
        (n, cascades): what the operation that a sample has drawn in a cascade gets of it; the sum over the operation's
        samples is their mean.

    >>> per_operation(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), torch.tensor([[2, 0], [2, 1]]))
    tensor([[0.5000, 1.0000],
            [1.5000, 3.0000]])
    """
    same = (classes[:, None] == classes[None, :])[:, :, None] & (operations[:, None] == operations[None])
    return values[:, None] / same.sum(1).to(values.dtype)


@dataclass(frozen=True)
class Sampled:
    """Samples with what a policy's update needs to know of them.

    Args:
        values: (n,) hypergradients, detached.
        classes: (n,) int64.
        operations: (n, cascades) int64.
    """

    values: Tensor
    classes: Tensor
    operations: Tensor

    def rows(self, index: Tensor) -> Sampled:
        """The samples that ``index`` selects."""
        return Sampled(self.values[index], self.classes[index], self.operations[index])


class Pool:
    """Samples of several iterations, until a class has enough of them to be compared with each other.

    With a batch of two, one of each class, every sample is its class's mean and Eq. 10 leaves nothing of it. A running
    mean instead fails, because hypergradients grow faster than it follows.

    Args:
        least: samples that a class must have.

    >>> pool = Pool(2)
    >>> one = Sampled(torch.tensor([1.0]), torch.tensor([0]), torch.zeros(1, 15, dtype=torch.long))
    >>> pool.add(one), len(pool.add(one).values)
    (None, 2)
    """

    def __init__(self, least: int = 4) -> None:
        self.least = least
        self._kept: list[Sampled] = []

    def add(self, samples: Sampled) -> Sampled | None:
        """Add an iteration's samples; returns, and forgets, all samples of those classes that now have enough."""
        self._kept.append(samples)
        everything = Sampled(
            torch.cat([s.values for s in self._kept]), torch.cat([s.classes for s in self._kept]),
            torch.cat([s.operations for s in self._kept]),
        )  # fmt: skip
        count = (everything.classes[:, None] == everything.classes[None, :]).sum(1)
        ready = count >= self.least
        self._kept = [everything.rows(~ready)]
        return everything.rows(ready) if bool(ready.any()) else None

    def state_dict(self) -> dict[str, Tensor]:
        """The samples that wait; empty where there are none."""
        waiting = [s for s in self._kept if len(s.values)]
        if not waiting:
            return {}
        names = ("values", "classes", "operations")
        return {name: torch.cat([getattr(s, name) for s in waiting]) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self._kept = [Sampled(**{name: tensor.cpu() for name, tensor in state.items()})] if state else []
