# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How much a later loss would change with the weight of each training sample: three ways to one inner product.

A step with the gradient ``sum_i w_i grad l_i`` leads to theta*. The derivative of a loss of theta* with respect to w_i
is ``<u, grad l_i(theta)>``, with u from `optim.look_ahead`; for plain SGD over n samples
``-(lr / n) <grad L_val(theta*), grad l_i(theta)>``. All n of them are one directional derivative of the vector of
losses along u.

- "jvp": forward-mode differentiation, exact, one pass; by dual numbers, which work under autocast where ``torch.func``
  does not.
- "double_backward": exact, for reference: ``<grad sum_i w_i l_i, u>`` differentiated again with respect to w.
- "finite_difference": forward passes without a graph, the least memory; the step is chosen by how much it changes the
  loss. The difference is of the network's outputs where the loss is known apart from it, because a loss that is
  linearised around its batch (batch Dice) says its derivative, not its value elsewhere.

None of them differentiates a forward-mode derivative backwards, which is silently wrong through torch's norm layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import without_tf32

__all__ = ["MODES", "per_sample_hypergradient"]

Parameters = Mapping[str, Tensor]
LossFunction = Callable[[Parameters], Tensor]
Network = Callable[[Parameters], Any]


def per_sample_hypergradient(
    losses: Callable[[Any], Tensor],
    parameters: Parameters,
    direction: Parameters,
    *,
    mode: str = "jvp",
    loss_change: float = 3e-4,
    network: Network | None = None,
) -> Tensor:
    """``<direction, grad l_i(parameters)>`` for every sample i.

    Args:
        losses: parameters by name -> the losses (B,), without side effects (no statistics, no dropout;
            see `networks.with_parameters`); or, with ``network``, its output -> the losses.
        parameters: where the derivative is taken; not changed.
        direction: u, by the same names; parameters that it leaves out don't move.
        mode: "jvp", "double_backward" or "finite_difference".
        network: parameters by name -> output, a tensor or a list of tensors, (B, ...) each.
        loss_change: how much a finite difference shall change the sum of the losses, relative to 1; too little is lost
            in rounding, too much is no derivative. Other modes don't use it.

    Returns:
        (B,), detached, in the losses' dtype.

    Raises:
        ConfigError: unknown mode, or a direction for a parameter that there is not.

    Source: paper 002, Eq. 9.

    >>> w = {"w": torch.tensor([2.0, 0.5])}
    >>> losses = lambda p: p["w"].square() * torch.tensor([1.0, 10.0])
    >>> per_sample_hypergradient(losses, w, {"w": torch.ones(2)})
    tensor([ 4., 10.])
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    strangers = set(direction) - set(parameters)
    if strangers:
        raise ConfigError(f"a direction was given for {', '.join(sorted(strangers))}, which are no parameters")
    fixed = {name: p.detach() for name, p in parameters.items()}
    moving = {name: u.detach() for name, u in direction.items()}
    if network is None:
        return MODES[mode](losses, fixed, moving, loss_change)
    if mode == "finite_difference":
        return _output_difference(network, losses, fixed, moving, loss_change)
    return MODES[mode](lambda p: losses(network(p)), fixed, moving, loss_change)


def _jvp(losses: LossFunction, parameters: Parameters, direction: Parameters, _: float) -> Tensor:
    with forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(p, direction[name]) if name in direction else p for name, p in parameters.items()
        }
        with torch.no_grad():  # forward mode needs no graph
            values, tangents = forward_ad.unpack_dual(losses(dual))
    return torch.zeros_like(values) if tangents is None else tangents.detach()


def _double_backward(losses: LossFunction, parameters: Parameters, direction: Parameters, _: float) -> Tensor:
    with torch.enable_grad():
        leaves = {name: p.clone().requires_grad_(name in direction) for name, p in parameters.items()}
        values = losses(leaves)
        weights = torch.ones_like(values).requires_grad_(True)
        names = list(direction)
        gradients = torch.autograd.grad(
            (weights * values).sum(), [leaves[n] for n in names], create_graph=True, allow_unused=True
        )
        inner = [(g * direction[n]).sum() for n, g in zip(names, gradients, strict=True) if g is not None]
        if not inner:
            return torch.zeros_like(values)
        return torch.autograd.grad(torch.stack(inner).sum(), weights)[0]


def _finite_difference(
    losses: LossFunction, parameters: Parameters, direction: Parameters, loss_change: float
) -> Tensor:
    """Central difference of the losses."""

    def difference(step: float) -> Tensor:
        ahead, behind = _both_sides(losses, parameters, direction, step)
        return (ahead - behind) / (2 * step)

    if not any(bool(u.any()) for u in direction.values()):
        with torch.no_grad():
            return torch.zeros_like(losses(parameters))
    return _with_step(difference, parameters, direction, loss_change)


def _output_difference(
    network: Network, losses: Callable[[Any], Tensor], parameters: Parameters, direction: Parameters, loss_change: float
) -> Tensor:
    """Central difference of the network's output, times the exact derivative of the losses there."""
    with torch.no_grad():
        here = network(parameters)
    several = isinstance(here, list | tuple)
    leaves = [x.detach().requires_grad_() for x in (here if several else [here])]
    with torch.enable_grad():
        values = losses(leaves if several else leaves[0])
        slopes = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    if not any(bool(u.any()) for u in direction.values()):
        return torch.zeros_like(values)

    def difference(step: float) -> Tensor:
        result = torch.zeros_like(values)
        ahead, behind = _both_sides(network, parameters, direction, step)
        pairs = zip(ahead, behind, strict=True) if several else [(ahead, behind)]
        for (a, b), slope in zip(pairs, slopes, strict=True):
            if slope is not None:
                result = result + ((a - b) * slope).flatten(1).sum(1).to(result) / (2 * step)
        return result

    return _with_step(difference, parameters, direction, loss_change)


def _with_step(
    difference: Callable[[float], Tensor], parameters: Parameters, direction: Parameters, loss_change: float
) -> Tensor:
    """A difference whose step is found from the derivative of the sum, by one difference of a smaller step."""
    length = torch.stack([u.double().norm() for u in direction.values()]).norm()
    size = torch.stack([parameters[n].double().norm() for n in direction]).norm()
    trial = float(1e-4 * size / length) if float(size) > 0 else float(1e-4 / length)
    slope = float(difference(trial).double().sum().abs())
    # at most a hundredth of the parameters' length: where the sum happens not to change, its slope says nothing
    step = min(loss_change / slope, 100 * trial) if slope > 0 else trial
    return difference(step)


@torch.no_grad()
@without_tf32()
def _both_sides(function: Network, parameters: Parameters, direction: Parameters, step: float) -> tuple[Any, Any]:
    """What a function gives a step ahead of the parameters, and a step behind; in full float32, or nothing is left."""
    ahead, behind = (
        function({n: p + sign * step * direction[n] if n in direction else p for n, p in parameters.items()})
        for sign in (1, -1)
    )
    return ahead, behind


MODES: dict[str, Callable[[LossFunction, Parameters, Parameters, float], Tensor]] = {
    "jvp": _jvp,
    "double_backward": _double_backward,
    "finite_difference": _finite_difference,
}
