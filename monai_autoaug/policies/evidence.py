# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How sure one can be that an operation helps: a peaked probability is no evidence, irrelevant cascades peak too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_autoaug.policies.normalisation import Sampled
from monai_autoaug.policies.training import TrainingPolicy

__all__ = ["COLLAPSED", "DECIDED", "Evidence", "Seen"]

_FEWEST = 8  # samples below which their variance is no estimate

DECIDED = 3.0  # standard errors
COLLAPSED = 0.9  # the probability from which on a cascade is as good as certain


@dataclass(frozen=True)
class Seen:
    """What is known of every operation of a training policy when it has learned; ``policy.json`` keeps it.

    Args:
        start: (classes, operations) probabilities before anything was learned.
        advantage: (classes, operations) by how much an operation's samples were better than the others of its cascade,
            in standard deviations of a sample's worth.
        error: (classes, operations) standard error of the advantage; infinite where too few samples were seen.

    >>> Seen(torch.tensor([[0.5, 0.5]]), torch.tensor([[-0.4, 0.4]]), torch.tensor([[0.1, 0.1]])).decided()
    tensor([[False,  True]])
    """

    start: Tensor
    advantage: Tensor
    error: Tensor

    def decided(self, errors: float = DECIDED) -> Tensor:
        """Whether each operation's advantage is more than ``errors`` standard errors, (classes, operations) bool.

        Args:
            errors: how many.
        """
        return _sure(self.advantage, self.error, errors)


class Evidence:
    """What was seen of every operation: by how much its samples were better than others of their class, and how often.

    Hypergradients grow by orders of magnitude in the course of training and differ as much between classes, so those of
    one update and class are divided by their standard deviation before they are added up.

    Args:
        policy: whose operations are meant.

    >>> policy = TrainingPolicy.preset("uniform", ("all",))
    >>> evidence = Evidence(policy)
    >>> drawn = torch.zeros(64, 15, dtype=torch.long); drawn[::2, 4] = 1  # every second sample was mirrored, and better
    >>> h = torch.randn(64, generator=torch.Generator().manual_seed(0)) - drawn[:, 4]
    >>> evidence.add(Sampled(h, torch.zeros(64, dtype=torch.long), drawn))
    >>> evidence.decided()["all"]
    ['flip_d']
    """

    def __init__(self, policy: TrainingPolicy) -> None:
        self.policy = policy
        # count, sum and sum of squares of each class and operation
        self.moments = torch.zeros(3, *policy.logits.shape, dtype=torch.float64)

    def add(self, centred: Sampled) -> None:
        """Add the samples of one update.

        Args:
            centred: their values are those that Eq. 10 leaves; smaller is better.
        """
        for k in centred.classes.unique().tolist():
            self._add(centred.rows(centred.classes == k))

    def _add(self, centred: Sampled) -> None:
        """Add the samples of one class."""
        values = centred.values.double().cpu()
        spread = values.std() if len(values) > 1 else values.new_zeros(())
        if not bool(torch.isfinite(spread)) or float(spread) == 0:
            return
        values = values / spread
        classes, start = centred.classes.cpu(), 0
        for column, cascade in enumerate(self.policy.cascades):
            places = (classes, start + centred.operations[:, column].cpu())
            for moment, what in zip(self.moments, (torch.ones_like(values), values, values.square()), strict=True):
                moment.index_put_(places, what, accumulate=True)
            start += len(cascade)

    def advantage(self) -> tuple[Tensor, Tensor]:
        """How much better each operation's samples were than the others of its cascade, and the standard error of it.

        Returns:
            Two tensors (classes, operations) in standard deviations of a sample's worth; the error is infinite where
            the operation or all others of the cascade have fewer than eight samples.
        """
        parts = self.moments.split([len(c) for c in self.policy.cascades], 2)
        rest = torch.cat([p.sum(2, keepdim=True).expand_as(p) for p in parts], 2) - self.moments
        mean, error = _mean_and_variance(self.moments)
        other, spread = _mean_and_variance(rest)
        return other - mean, (error + spread).sqrt()

    def seen(self, start: Tensor) -> Seen:
        """What is known by now.

        Args:
            start: (classes, operations) the policy's logits before it learned.
        """
        parts = start.detach().double().cpu().split([len(c) for c in self.policy.cascades], 1)
        return Seen(torch.cat([p.softmax(1) for p in parts], 1), *self.advantage())

    def decided(self, errors: float = DECIDED) -> dict[str, list[str]]:
        """Operations, by class, whose advantage is more than ``errors`` standard errors; the identity is one too.

        Args:
            errors: how many.
        """
        names = [o.name if o.acts != "nothing" else f"no {c.name}" for c in self.policy.cascades for o in c.operations]
        return {
            name: [n for n, s in zip(names, row.tolist(), strict=True) if s]
            for name, row in zip(self.policy.classes, _sure(*self.advantage(), errors), strict=True)
        }


def _sure(advantage: Tensor, error: Tensor, errors: float) -> Tensor:
    """Where the advantage is more than ``errors`` standard errors."""
    return torch.isfinite(error) & (advantage > errors * error)


def _mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and variance of the mean, which is infinite where there are too few samples to tell."""
    count, total, squares = moments
    mean = total / count.clamp(min=1)
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1) / count.clamp(min=1)
    return mean, torch.where(count < _FEWEST, torch.inf, variance)
