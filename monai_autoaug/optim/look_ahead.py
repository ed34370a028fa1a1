# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The step that an optimiser is about to take, and how it depends on the gradient it is given: closed forms.

With g the gradient and theta*(g) the parameters after the step, a loss L of theta* depends on g by
``u = (d theta*/d g)^T dL/d theta*``. Weight decay and what a momentum buffer holds of earlier steps don't depend on g
and drop out. With g = sum_i w_i g_i, ``dL/dw_i`` is then the inner product of u and g_i (see `optim.hypergradient`).

=================  =====================================================================
SGD, heavy ball    u = -lr v (1 - dampening from the second step on)
Nesterov           u = -lr (1 + momentum) v
Adam, AdamW        u_j = -lr v_j [c1 / (r + eps) - m c2 g_j / (r (r + eps)^2)], r = sqrt(s)
clipping at c      u <- k u - c / (|g| + 1e-6)^2 / |g| (g . u) g, k = c / (|g| + 1e-6), if |g| > c
=================  =====================================================================

m and s are Adam's bias-corrected moments after the step, ``c1 = (1 - b1) / (1 - b1^t)`` and
``c2 = (1 - b2) / (1 - b2^t)``.
Clipping is that of ``torch.nn.utils.clip_grad_norm_``, before the optimiser sees the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError

__all__ = ["look_ahead", "next_parameters"]

_CLIP_EPS = 1e-6  # of clip_grad_norm_


def next_parameters(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None], *, clip: float | None = None
) -> list[Tensor]:
    """Parameters after the step that ``optimizer`` would take with ``gradients``; nothing is changed.

    Args:
        optimizer: SGD (momentum, dampening, Nesterov, weight decay), Adam or AdamW.
        gradients: one a parameter, in the order of the optimiser's groups; None for those that the optimiser will leave
            alone, as a frozen parameter or an unused head.
        clip: largest norm of the whole gradient, or None.

    Raises:
        ConfigError: another optimiser, or one with amsgrad or maximize.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> next_parameters(torch.optim.SGD([p], 0.5), [torch.ones(2)])
    [tensor([0.5000, 0.5000])]
    """
    found = settings(optimizer, gradients)
    kept = clipped(gradients, clip)
    with torch.no_grad():
        return [
            p.detach().clone() if g is None
            else _adam(p, g, group, state)[0] if is_adam(optimizer) else _sgd(p, g, group, state)
            for (p, group, state), g in zip(found, kept, strict=True)
        ]  # fmt: skip


def look_ahead(
    optimizer: torch.optim.Optimizer,
    gradients: Sequence[Tensor | None],
    direction: Sequence[Tensor],
    *,
    clip: float | None = None,
) -> list[Tensor]:
    """``u = (d theta*/d g)^T v``: how a loss of the parameters after the step depends on the step's gradient.

    Args:
        optimizer: as in `next_parameters`, before the step.
        gradients: g, one a parameter, in the order of the optimiser's groups; None as in `next_parameters`.
        direction: v, the loss's gradient at `next_parameters`, likewise.
        clip: largest norm of the whole gradient, or None.

    Returns:
        u, one tensor a parameter; 0 where there is no gradient.

    Raises:
        ConfigError: as `next_parameters`; or Adam before its first step, whose derivative says nothing (its first step
            is the gradient's sign).

    Source: paper 002, Eqs. 8-9, for plain SGD; the others are derived here.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> look_ahead(torch.optim.SGD([p], 0.5, momentum=0.9, nesterov=True), [torch.ones(2)], [torch.ones(2)])
    [tensor([-0.9500, -0.9500])]
    """
    found = settings(optimizer, gradients)
    kept = clipped(gradients, clip)
    result = []
    with torch.no_grad():
        for (p, group, state), g, v in zip(found, kept, direction, strict=True):
            if g is None:
                result.append(torch.zeros_like(v))
            elif is_adam(optimizer):
                if not state:
                    raise ConfigError("Adam's first step is the gradient's sign and has no useful derivative: warm up")
                result.append(v * _adam(p, g, group, state)[1])
            else:
                result.append(v * _sgd_factor(group, state))
        return through_clipping(gradients, result, clip)


def is_adam(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)


def settings(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None]
) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
    """Parameter, its group and its state, for each parameter."""
    if not isinstance(optimizer, torch.optim.SGD) and not is_adam(optimizer):
        raise ConfigError(
            f"no closed form is known for {type(optimizer).__name__}: train the network with SGD, Adam or AdamW"
        )
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raise ConfigError(f"no closed form is known for {type(optimizer).__name__} with {option}")
    found = [(p, group, optimizer.state.get(p, {})) for group in optimizer.param_groups for p in group["params"]]
    if len(found) != len(gradients):
        raise ConfigError(f"the optimiser has {len(found)} parameters, but {len(gradients)} gradients were given")
    return found


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()


def clipped(gradients: Sequence[Tensor | None], clip: float | None) -> list[Tensor | None]:
    if clip is None or all(g is None for g in gradients):
        return list(gradients)
    scale = (clip / (_norm(gradients) + _CLIP_EPS)).clamp(max=1)
    return [None if g is None else g * scale for g in gradients]


def through_clipping(gradients: Sequence[Tensor | None], u: list[Tensor], clip: float | None) -> list[Tensor]:
    """The derivative of clipping, transposed, applied to ``u``."""
    if clip is None or all(g is None for g in gradients):
        return u
    norm = _norm(gradients)
    if float(norm) + _CLIP_EPS <= clip:
        return u
    inner = torch.stack([(g * x).sum() for g, x in zip(gradients, u, strict=True) if g is not None]).sum()
    scale = clip / (norm + _CLIP_EPS)
    along = scale / (norm + _CLIP_EPS) / norm * inner
    return [x if g is None else scale * x - along * g for g, x in zip(gradients, u, strict=True)]


def _sgd(p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    momentum = group["momentum"]
    g = g + group["weight_decay"] * p.detach()
    step = g
    if momentum:
        buffer = state.get("momentum_buffer")
        buffer = g if buffer is None else momentum * buffer + (1 - group["dampening"]) * g
        step = g + momentum * buffer if group["nesterov"] else buffer
    return p.detach() - group["lr"] * step


def _sgd_factor(group: dict[str, Any], state: dict[str, Any]) -> float:
    momentum = group["momentum"]
    if not momentum:
        return -float(group["lr"])
    if group["nesterov"]:  # torch allows it without dampening only
        return -float(group["lr"]) * (1 + momentum)
    first = state.get("momentum_buffer") is None
    return -float(group["lr"]) * (1.0 if first else 1 - group["dampening"])


def _adam(p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Parameters after the step, and the step's derivative with respect to each element of the gradient."""
    b1, b2 = group["betas"]
    lr, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
    start = p.detach()
    if group.get("decoupled_weight_decay"):
        start = start * (1 - lr * decay)
    else:
        g = g + decay * start
    t = float(state["step"]) + 1 if state else 1.0
    first = state["exp_avg"] if state else torch.zeros_like(g)
    second = state["exp_avg_sq"] if state else torch.zeros_like(g)
    c1, c2 = (1 - b1) / (1 - b1**t), (1 - b2) / (1 - b2**t)
    m = (b1 * first + (1 - b1) * g) / (1 - b1**t)
    root = ((b2 * second + (1 - b2) * g.square()) / (1 - b2**t)).sqrt()
    # where no gradient has ever been, the second moment and m are 0, and so is the second term
    curved = torch.where(root > 0, m * c2 * g / (root * (root + eps).square()).clamp(min=1e-300), 0.0)
    return start - lr * m / (root + eps), -lr * (c1 / (root + eps) - curved)
