# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From the hypergradient of each sample to what each operation of each cascade gets of it.

How hard a sample is has more to do with the patch than with its augmentation. So a sample counts by how it compares
with others of its class (Eq. 10), and an operation by the mean over its samples, however often it was drawn (Eq. 11).

Source: paper 002, Eqs. 10-11, per class and per cascade as its official implementation has them.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        plain: (n,) hypergradients that the same patches would have without augmentation; NaN, and None for all: not
            known.
    """

    values: Tensor
    classes: Tensor
    operations: Tensor
    plain: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.plain is None:  # frozen: no plain assignment
            object.__setattr__(self, "plain", torch.full_like(self.values, torch.nan))

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in the order in which a constructor takes them."""
        return self.values, self.classes, self.operations, self.plain

    def rows(self, index: Tensor) -> Sampled:
        """The samples that ``index`` selects."""
        return Sampled(*(t[index] for t in self.parts()))

    @staticmethod
    def joined(several: Sequence[Sampled]) -> Sampled:
        """All samples of several."""
        return Sampled(*(torch.cat(parts) for parts in zip(*(s.parts() for s in several), strict=True)))


class Pool:
    """Samples of several iterations, until a class has enough of them to be compared with each other.

    With a batch of two, one of each class, every sample is its class's mean and Eq. 10 leaves nothing of it. A running
    mean instead fails, because hypergradients grow faster than it follows.

    Args:
        least: samples that a class must have.
        age: updates after which a sample of a class that is rarer than that is forgotten: what it was worth then has
            nothing to do with what others are worth now.

    >>> pool = Pool(2)
    >>> one = Sampled(torch.tensor([1.0]), torch.tensor([0]), torch.zeros(1, 15, dtype=torch.long))
    >>> pool.add(one), len(pool.add(one).values)
    (None, 2)
    """

    def __init__(self, least: int = 4, age: int = 100) -> None:
        self.least, self.age = least, age
        self._clock = 0
        self._kept: Sampled | None = None
        self._born = torch.zeros(0, dtype=torch.long)  # when each sample came

    def add(self, samples: Sampled) -> Sampled | None:
        """Add an iteration's samples; returns, and forgets, all samples of those classes that now have enough."""
        self._clock += 1
        everything = samples if self._kept is None else Sampled.joined([self._kept, samples])
        born = torch.cat([self._born, torch.full((len(samples.values),), self._clock)])
        young = born > self._clock - self.age
        everything, born = everything.rows(young), born[young]
        count = (everything.classes[:, None] == everything.classes[None, :]).sum(1)
        ready = count >= self.least
        self._kept, self._born = everything.rows(~ready), born[~ready]
        return everything.rows(ready) if bool(ready.any()) else None

    def state_dict(self) -> dict[str, Tensor]:
        """The samples that wait, all of them finite; empty where there are none."""
        kept = self._kept
        if kept is None or not len(kept.values):
            return {}
        known = torch.isfinite(kept.plain)
        return {
            "values": kept.values, "classes": kept.classes, "operations": kept.operations, "known": known,
            "plain": torch.where(known, kept.plain, 0), "age": self._clock - self._born,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self._clock, self._kept, self._born = 0, None, torch.zeros(0, dtype=torch.long)
        if state:
            here = {name: tensor.cpu() for name, tensor in state.items()}
            self._born = -here.pop("age")
            if "known" in here:  # older states have NaN where it isn't
                here["plain"] = torch.where(here.pop("known"), here["plain"], torch.nan)
            self._kept = Sampled(**here)
