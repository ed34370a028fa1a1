# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Weights that are ratios of gradients, measured and applied inside one backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from monai_autoaug.networks.gradient_reversal import meter_gradient
from monai_autoaug.precision import average_over_ranks

__all__ = ["Balancer"]


class Balancer:
    """Running means of gradient norms at named places, and the scales made from them.

    A scale is made from the means of the steps before, because within one backward the norms are known too late.

    Args:
        names: the places.
        device: where the gradients are.
        decay: of the running mean; 0.95 remembers about 20 steps.

    >>> balancer = Balancer(["head"], "cpu")
    >>> x = torch.ones(4, requires_grad=True)
    >>> for _ in range(2):
    ...     x.grad = None
    ...     (1000 * balancer.unit("head")(x)).sum().backward(); balancer.update()
    >>> x.grad  # root mean square 1, divided by the number of elements
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, names: Sequence[str], device: torch.device | str, decay: float = 0.95) -> None:
        self.names, self.decay = {n: i for i, n in enumerate(names)}, decay
        self.means = torch.zeros(len(names), device=device)  # 0: not seen yet
        self.norms = torch.zeros(len(names), device=device)

    def metered(self, name: str) -> Callable[[Tensor], Tensor]:
        """A tap that measures and changes nothing; norms of several taps of one place add in quadrature."""
        return lambda x: meter_gradient(x, self.norms[self.names[name]], torch.ones((), device=x.device))

    def unit(self, name: str, weight: float = 1.0, strength: float = 1.0) -> Callable[[Tensor], Tensor]:
        """A tap that scales the gradient to root mean square ``weight`` over its elements, over their number.

        Args:
            name: the place.
            weight: root mean square.
            strength: factor that all gradients at this place have in this step, as while an augmentation warms up; the
                mean over steps is kept without it (see `update`).
        """

        def tap(x: Tensor) -> Tensor:
            mean = self.means[self.names[name]] * strength
            known = weight / (mean.clamp(min=1e-30) * x.numel() ** 0.5)
            scale = torch.where(mean > 0, known, torch.zeros_like(mean))
            return meter_gradient(x, self.norms[self.names[name]], scale)

        return tap

    def ratio(
        self, name: str, reference: str, weight: float, *, strength: float = 1.0
    ) -> Callable[[Tensor], Tensor]:
        """A tap that scales the gradient to ``weight`` times that at ``reference``; to 0 until both are known.

        Args:
            name: the place.
            reference: another one.
            weight: the ratio.
            strength: of ``name`` in this step (see `unit`).
        """

        def tap(x: Tensor) -> Tensor:
            mean, other = self.means[self.names[name]] * strength, self.means[self.names[reference]]
            known = (mean > 0) & (other > 0)
            scale = torch.where(known, weight * other / mean.clamp(min=1e-30), torch.zeros_like(mean))
            return meter_gradient(x, self.norms[self.names[name]], scale)

        return tap

    def update(self, scale: float = 1.0, strengths: Mapping[str, float] | None = None) -> None:
        """Take this step's norms into the means; a place that saw no gradient, or a non-finite one, keeps its mean.

        Args:
            scale: the gradient scaler's factor in this backward.
            strengths: further factors of this step by place (see `unit`).
        """
        for name, strength in (strengths or {}).items():
            self.norms[self.names[name]] /= strength
        # the mean over those ranks that had such samples
        norms, share = average_over_ranks(torch.stack([self.norms, (self.norms > 0).float()]))
        norms = norms / share.clamp(min=1e-30) / scale
        seen = torch.isfinite(norms) & (norms > 0)
        mixed = torch.where(self.means > 0, self.decay * self.means + (1 - self.decay) * norms, norms)
        self.means = torch.where(seen, mixed, self.means)
        self.norms.zero_()
