# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Gradient reversal: one backward trains a player and its opponent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["meter_gradient", "reverse_gradient"]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return -scale.to(gradient.dtype) * gradient, None


def reverse_gradient(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Return ``x`` unchanged; its gradient is multiplied by ``-scale`` on the way back.

    Args:
        x: any tensor.
        scale: strength of the reversed game; a tensor broadcastable to ``x`` weights samples one by one; 0 cuts it off.

    Note:
        A second derivative through it flips the sign twice, so it has no place in a hypergradient.

    Source: the reversal between target network and generator of Gao et al. 2021, Algorithm 1, step 4.

    >>> x = torch.ones(2, requires_grad=True)
    >>> reverse_gradient(3 * x, 0.5).sum().backward(); x.grad
    tensor([-1.5000, -1.5000])
    """
    s = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, device=x.device, dtype=x.dtype)
    return _Reverse.apply(x, s.detach())


class _Meter(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, norm: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.norm = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        ctx.norm.copy_(torch.hypot(ctx.norm, gradient.detach().float().norm()))
        return scale.to(gradient.dtype) * gradient, None, None


def meter_gradient(x: Tensor, norm: Tensor, scale: Tensor) -> Tensor:
    """Return ``x`` unchanged; on the way back add the gradient's norm to ``norm`` and multiply it by ``scale``.

    Args:
        x: any tensor.
        norm: a scalar tensor that is changed during backward: norms add in quadrature, as of one long vector.
        scale: a scalar tensor.

    >>> x, norm = torch.ones(2, requires_grad=True), torch.zeros(())
    >>> meter_gradient(x, norm, torch.tensor(0.5)).sum().backward(); x.grad, round(float(norm), 3)
    (tensor([0.5000, 0.5000]), 1.414)
    """
    return _Meter.apply(x, scale.detach(), norm)
