# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a loss depends on the gradients of the last K updates: the real optimiser's updates, gone back through.

An update takes parameters w and what the optimiser remembers (momentum, Adam's moments) on, given the gradient g. Going
back, the derivative of a later loss with respect to all of these after an update becomes that before it:

==================  ====================================================================================
SGD                 d = g + decay w, b' = momentum b + (1 - dampening) d (the first time b' = d),
                    w' = w - lr b', or with Nesterov w' = w - lr (d + momentum b')
Adam                d = g + decay w, m' = b1 m + (1 - b1) d, s' = b2 s + (1 - b2) d^2,
                    w' = w - lr (m' / c1) / (sqrt(s' / c2) + eps), c = 1 - b^t
AdamW               likewise with d = g and (1 - lr decay) w in place of w
==================  ====================================================================================

What g depends on, w itself and the augmenter behind the batch, comes in by `optim.mixed_gradient`. With K = 1 the
parameters before the update have no part in it, and u is that of `optim.look_ahead`.

Source: paper 003, Eqs. 6-8, whose sum has K + 1 terms though its K = 1 is one update: here it has K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.optim.look_ahead import clipped, is_adam, settings, through_clipping

__all__ = ["Update", "unrolled_hypergradient"]

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """An update of an optimiser: all that is needed to go back through it.

    Args:
        parameters: w before it.
        gradients: g, before clipping; None for parameters that it left alone.
        groups: the settings of each parameter's group.
        states: what the optimiser remembered of each parameter before it.
        adam: whether it is Adam's or AdamW's rather than SGD's.
        clip: largest norm of the whole gradient, or None.

    >>> p = torch.nn.Parameter(torch.ones(1))
    >>> Update.coming(torch.optim.SGD([p], 0.5), [torch.ones(1)]).parameters
    [tensor([1.])]
    """

    parameters: list[Tensor]
    gradients: list[Tensor | None]
    groups: list[dict[str, Any]]
    states: list[dict[str, Any]]
    adam: bool
    clip: float | None

    @staticmethod
    def coming(
        optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None], *, clip: float | None = None
    ) -> Update:
        """The update that an optimiser would make with these gradients, copied, so that it may be made.

        Args:
            optimizer: SGD (momentum, dampening, Nesterov, weight decay), Adam or AdamW.
            gradients: one a parameter, in the order of the optimiser's groups.
            clip: largest norm of the whole gradient, or None.

        Raises:
            ConfigError: another optimiser, or one with amsgrad or maximize; or Adam before its first update, which is
                the gradient's sign and has no useful derivative.
        """
        found = settings(optimizer, gradients)
        adam = is_adam(optimizer)
        if adam and any(not state for (_, _, state), g in zip(found, gradients, strict=True) if g is not None):
            raise ConfigError("Adam's first step is the gradient's sign and has no useful derivative: warm up")
        return Update(
            [p.detach().clone() for p, _, _ in found],
            [None if g is None else g.detach().clone() for g in gradients],
            [{k: v for k, v in group.items() if k != "params"} for _, group, _ in found],
            [{k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in s.items()} for _, _, s in found],
            adam, clip,
        )  # fmt: skip

    def back(self, after: Sequence[Tensor], memories: Sequence[Memory]) -> tuple[list[Tensor], list[Tensor],
                                                                                 list[Memory]]:  # fmt: skip
        """Derivatives with respect to what came out of the update -> to what went into it.

        Args:
            after: of a loss with respect to the parameters after it.
            memories: the same with respect to what the optimiser remembers after it; missing ones are 0.

        Returns:
            The derivatives with respect to the gradient (u), to the parameters before it (without what the gradient
            itself owes to them), and to what the optimiser remembered before it.
        """
        gone = _adam_back if self.adam else _sgd_back
        us, before, remembered = [], [], []
        kept = clipped(self.gradients, self.clip)
        with torch.no_grad():
            for w, g, group, state, v, memory in zip(
                self.parameters, kept, self.groups, self.states, after, memories, strict=True
            ):
                if g is None:
                    u, own, memory = torch.zeros_like(v), v, memory
                else:
                    u, own, memory = gone(w, g, group, state, v, memory)
                us.append(u)
                before.append(own)
                remembered.append(memory)
            return through_clipping(self.gradients, us, self.clip), before, remembered


def unrolled_hypergradient(
    updates: Sequence[Update],
    direction: Sequence[Tensor],
    visit: Callable[[int, list[Tensor], bool], Sequence[Tensor]],
) -> None:
    """Go back through the last updates and tell of each one how a later loss depends on its gradient.

    Args:
        updates: oldest first, each beginning where the one before it ended.
        direction: the gradient of the later loss at the parameters after the last of them.
        visit: is called for each update, the last one first, with its place, with u (the loss's derivative with respect
            to its gradient) and with whether its own part goes on: then it returns the Hessian of its training loss
            times u, one tensor a parameter; otherwise what it returns is not used.

    >>> p, seen = torch.nn.Parameter(torch.ones(1)), []
    >>> one = Update.coming(torch.optim.SGD([p], 0.5), [torch.ones(1)])
    >>> unrolled_hypergradient([one], [torch.ones(1)], lambda place, u, goes_on: seen.append((place, u, goes_on)) or u)
    >>> seen
    [(0, [tensor([-0.5000])], False)]
    """
    after: list[Tensor] = list(direction)
    memories: list[Memory] = [{} for _ in after]
    for place in reversed(range(len(updates))):
        u, before, memories = updates[place].back(after, memories)
        curved = visit(place, u, place > 0)
        if place > 0:
            after = [b + c for b, c in zip(before, curved, strict=True)]


def _sgd_back(
    w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any], v: Tensor, memory: Memory
) -> tuple[Tensor, Tensor, Memory]:
    lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    if not momentum:
        u = -lr * v
        return u, v + decay * u, {}
    buffer = -lr * (momentum if group["nesterov"] else 1.0) * v + memory.get("momentum_buffer", 0.0)
    first = state.get("momentum_buffer") is None
    u = buffer * (1.0 if first else 1 - group["dampening"])
    if group["nesterov"]:
        u = u - lr * v
    return u, v + decay * u, {} if first else {"momentum_buffer": momentum * buffer}


def _adam_back(
    w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any], v: Tensor, memory: Memory
) -> tuple[Tensor, Tensor, Memory]:
    b1, b2 = group["betas"]
    lr, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
    decoupled = bool(group.get("decoupled_weight_decay"))
    d = g if decoupled else g + decay * w
    t = float(state["step"]) + 1
    c1, c2 = 1 - b1**t, 1 - b2**t
    first = (b1 * state["exp_avg"] + (1 - b1) * d) / c1
    root = ((b2 * state["exp_avg_sq"] + (1 - b2) * d.square()) / c2).sqrt()
    moment = memory.get("exp_avg", 0.0) - lr * v / (c1 * (root + eps))
    # where no gradient has ever been, the root is 0, and so is what it could change
    bent = torch.where(root > 0, first / (2 * c2 * root * (root + eps).square()).clamp(min=1e-300), 0.0)
    second = memory.get("exp_avg_sq", 0.0) + lr * v * bent
    u = (1 - b1) * moment + 2 * (1 - b2) * d * second
    own = v * (1 - lr * decay) if decoupled else v + decay * u
    return u, own, {"exp_avg": b1 * moment, "exp_avg_sq": b2 * second}
