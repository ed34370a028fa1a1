# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Sampling operations by the Gumbel-softmax with straight-through weights, and finding the noise of a past draw again.

A draw takes the operation of largest ``logit + noise``; its weight is 1 and carries the gradient of the softmax.
Workers draw operations long before the main process learns from them, and hand over indices alone.
`conditional_gumbel` draws noise from the exact distribution given such an index, in one pass, where drawing until the
index comes out may take for ever once the policy has moved.

Source: paper 002, Eqs. 1-2; the conditional draw is the top-down construction of Maddison et al. 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["conditional_gumbel", "gumbel", "straight_through"]


def gumbel(
    shape: tuple[int, ...], generator: torch.Generator | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """Standard Gumbel noise, ``-log(-log U)``, float64.

    Args:
        shape: of the result.
        generator: random numbers come from it, on its own device; None: torch's global one.
        device: of the result; None: the generator's.

    >>> gumbel((2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    source = generator.device if generator is not None else (device or "cpu")
    # exponential_ never gives 0 in float64, whose logarithm would be infinite
    drawn = torch.empty(shape, dtype=torch.float64, device=source).exponential_(generator=generator)
    return -drawn.log().to(device if device is not None else source)


def straight_through(
    logits: Tensor, noise: Tensor, index: Tensor | None = None, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The operations that ``noise`` selects, and weights of value 1 that carry the gradient of the softmax.

    Args:
        logits: (..., K); ``-inf`` where there is no operation.
        noise: (..., K), broadcast against ``logits``.
        index: (...) int64, what ``noise`` from `conditional_gumbel` was drawn for: an unlikely operation may tie with
            others by rounding. None: the largest.
        temperature: of the softmax, above 0; it changes the gradient, not the selection.

    Returns:
        Indices (...) int64 and weights (...) in the logits' dtype; the derivative of a weight with respect to logit j
        is ``s_k (delta_jk - s_j) / temperature`` with s the softmax of ``(logits + noise) / temperature``.

    Source: paper 002, Eqs. 1-2.

    >>> logits = torch.zeros(4, requires_grad=True)
    >>> index, weight = straight_through(logits, torch.tensor([0.0, 2.0, 0.0, 0.0]))
    >>> weight.backward(); int(index), float(weight.detach()), bool(logits.grad[1] > 0)
    (1, 1.0, True)
    """
    perturbed = logits + noise.to(logits.dtype)
    index = perturbed.argmax(-1) if index is None else index
    soft = (perturbed / temperature).softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return index, 1 + (soft - soft.detach())


def conditional_gumbel(logits: Tensor, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise from the distribution of Gumbel noise given that it selects ``index``.

    The largest of all ``logit + noise`` is Gumbel around the logits' logsumexp, whichever operation it is; the others
    are Gumbel truncated at it. Nothing is rejected.

    Args:
        logits: (..., K); ``-inf`` where there is no operation; ``index`` names one with a finite logit.
        index: (...) int64.
        generator: random numbers come from it; None: torch's global one.

    Returns:
        Noise (..., K), float64, without gradient.

    >>> logits, index = torch.tensor([[0.0, 3.0, -5.0]]), torch.tensor([2])
    >>> noise = conditional_gumbel(logits, index, torch.Generator().manual_seed(0))
    >>> straight_through(logits, noise)[0], straight_through(logits, noise, index)[1]
    (tensor([2]), tensor([1.]))
    """
    with torch.no_grad():
        location = logits.detach().double()
        chosen = index.unsqueeze(-1)
        draw = gumbel(tuple(location.shape), generator, device=location.device)
        top = location.logsumexp(-1, keepdim=True) + draw.gather(-1, chosen)
        free = location + draw  # what the others would be without the truncation
        below = -torch.logaddexp(-top, -free)
        perturbed = below.scatter(-1, chosen, top)
        noise = perturbed - location
        return torch.where(location.isinf(), torch.zeros_like(noise), noise)
