# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Adam for logits of which each update knows something of a few only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError

__all__ = ["LazyAdam"]


class LazyAdam(torch.optim.Optimizer):
    """Adam that leaves alone, moments and step count included, every element whose gradient is exactly 0.

    A policy's update has samples of some classes, and operations that differ in some cascades. Plain Adam moves the
    others too, by what is left of earlier gradients.

    Args:
        params: as for ``torch.optim.Adam``.
        lr: learning rate, at least 0.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment.

    Raises:
        ConfigError: a number is out of range.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = LazyAdam([p], lr=0.1)
    >>> for gradient in ([1.0, 1.0], [1.0, 0.0]):
    ...     p.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> p.data
    tensor([-0.2000, -0.1000])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= b < 1 for b in betas):
            raise ConfigError(f"LazyAdam: lr and eps must be at least 0 and betas in [0, 1), got {lr}, {eps}, {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: evaluates the loss again, as torch's optimisers have it; None: gradients are there.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, g = self.state[p], p.grad
        assert g is not None  # noqa: S101  # for the type checker: the caller has asked
        if not state:
            state.update({name: torch.zeros_like(p) for name in ("updates", "exp_avg", "exp_avg_sq")})
        b1, b2 = group["betas"]
        known = g != 0
        state["updates"] += known  # not "step", which torch leaves on the checkpoint's device
        state["exp_avg"].copy_(torch.where(known, torch.lerp(g, state["exp_avg"], b1), state["exp_avg"]))
        state["exp_avg_sq"].copy_(torch.where(known, torch.lerp(g * g, state["exp_avg_sq"], b2), state["exp_avg_sq"]))
        steps = state["updates"].clamp(min=1)
        mean, square = state["exp_avg"] / (1 - b1**steps), state["exp_avg_sq"] / (1 - b2**steps)
        p.sub_(torch.where(known, group["lr"] * mean / (square.sqrt() + group["eps"]), 0.0))
