# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a training step's gradient depends on what the network was trained on: three ways to one mixed derivative.

With the loss L(w, x) of parameters w and inputs x, and a direction u in the space of w, the derivative of
``<u, grad_w L(w, x)>`` with respect to x is what an augmenter behind x needs to know, and nothing else of the network:
the augmenter itself is differentiated once, as always. With respect to w it is the Hessian times u, which carries a
derivative on to the step before.

- "double_backward": exact; the gradient is differentiated again, which keeps the graph of the first backward.
- "jvp": exact too, forward over reverse: one backward of dual numbers. No graph of a backward is kept.
- "finite_difference": gradients at ``w + h u`` and ``w - h u``, in the memory of a training step and in less time than
  the others. It is a rough direction, not the derivative: where activations have kinks a small h is not more exact, in
  float64 neither. For bilevel's augmenter behind networks trained for 60 steps on MRI patches, the cosine to the exact
  gradient was .589, .960, .962, .747 and .155 (MONAI's UNet of 1.19 M parameters) and .968, .965, .674, .121 and .203
  (nnU-Net's of 5.60 M) with h u of 1e-4, 1e-3, 3e-3, 1e-2 and 3e-2 times the length of w, in float32 as in float64,
  with a relative error of .25 at best (``benchmarks/hypergradient.py``). In doubt take an exact one.

Reverse over forward, the fourth, is wrong through torch's norm layers without saying so (see `optim.hypergradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from monai_autoaug.errors import ConfigError
from monai_autoaug.optim.hypergradient import MODES
from monai_autoaug.precision import without_tf32

__all__ = ["mixed_gradient"]

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters, Sequence[Tensor]], Tensor]
Answer = tuple[list[Tensor], dict[str, Tensor]]


def mixed_gradient(
    loss: Loss,
    parameters: Parameters,
    inputs: Sequence[Tensor],
    direction: Parameters,
    *,
    mode: str = "double_backward",
    curvature: bool = False,
    relative_step: float = 1e-3,
) -> Answer:
    """Derivatives of ``<direction, grad_w loss(w, x)>`` with respect to x and, if wanted, w.

    Args:
        loss: (parameters by name, inputs) -> a scalar, without side effects and the same each time it is called.
        parameters: w; not changed.
        inputs: x, floating point tensors; not changed.
        direction: u, by the parameters' names; those that it leaves out don't move.
        mode: "double_backward", "jvp" or "finite_difference".
        curvature: whether the Hessian times u is wanted.
        relative_step: of a finite difference: length of ``h u`` over that of w. Other modes don't use it.

    Returns:
        One tensor an input, and one a name of ``direction`` (none without ``curvature``), all detached; 0 where the
        gradient doesn't depend on it.

    Raises:
        ConfigError: unknown mode, a direction for a parameter that there is not, or a layer (SiLU, group norm)
            whose backward forward mode doesn't know.

    Source: paper 003, the two rightmost factors of Eq. 8.

    >>> w, x = {"w": torch.tensor(3.0)}, [torch.tensor(2.0)]
    >>> mixed_gradient(lambda p, x: p["w"] ** 2 * x[0] ** 3, w, x, {"w": torch.tensor(1.0)}, curvature=True)
    ([tensor(72.)], {'w': tensor(16.)})
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    strangers = set(direction) - set(parameters)
    if strangers:
        raise ConfigError(f"a direction was given for {', '.join(sorted(strangers))}, which are no parameters")
    fixed = {name: p.detach() for name, p in parameters.items()}
    moving = {name: u.detach() for name, u in direction.items()}
    ways = {"double_backward": _double_backward, "jvp": _jvp}
    with torch.enable_grad():
        if mode in ways:
            return ways[mode](loss, fixed, inputs, moving, curvature)
        return _finite_difference(loss, fixed, inputs, moving, curvature, relative_step)


def _leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in inputs]


def _split(values: Sequence[Tensor | None], like: Sequence[Tensor], count: int, names: Sequence[str]) -> Answer:
    """Zeros for what isn't there; the first ``count`` belong to the inputs, the rest to the names."""
    full = [torch.zeros_like(t) if v is None else v.detach() for v, t in zip(values, like, strict=True)]
    return full[:count], dict(zip(names, full[count:], strict=True))


def _gradients(value: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Of a loss; None where it doesn't depend on something, or on nothing at all."""
    if not value.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(value, wanted, allow_unused=True))


def _double_backward(
    loss: Loss, parameters: Parameters, inputs: Sequence[Tensor], direction: Parameters, curvature: bool
) -> Answer:
    leaves = {n: p.clone().requires_grad_() if n in direction else p for n, p in parameters.items()}
    xs, names = _leaves(inputs), list(direction) if curvature else []
    wanted = [*xs, *(leaves[n] for n in names)]
    value = loss(leaves, xs)
    chosen = [leaves[n] for n in direction]
    gradients = torch.autograd.grad(value, chosen, create_graph=True, allow_unused=True) if value.requires_grad else ()
    inner = [(g * u).sum() for g, u in zip(gradients, direction.values(), strict=False) if g is not None]
    total = torch.stack(inner).sum() if inner else value.detach()
    if not total.requires_grad:
        return _split([None] * len(wanted), wanted, len(xs), names)
    return _split(torch.autograd.grad(total, wanted, allow_unused=True), wanted, len(xs), names)


def _jvp(
    loss: Loss, parameters: Parameters, inputs: Sequence[Tensor], direction: Parameters, curvature: bool
) -> Answer:
    names = list(direction) if curvature else []
    xs, leaves = _leaves(inputs), {n: parameters[n].clone().requires_grad_() for n in names}
    with forward_ad.dual_level():
        dual = {
            n: forward_ad.make_dual(leaves.get(n, p), direction[n]) if n in direction else p
            for n, p in parameters.items()
        }
        wanted = [*xs, *leaves.values()]
        try:
            gradients = _gradients(loss(dual, xs), wanted)
        except NotImplementedError as error:
            raise ConfigError(
                f"forward mode doesn't know a layer of this network ({str(error).splitlines()[0]}); set the derivative"
                " to double_backward or finite_difference"
            ) from error
        tangents = [None if g is None else forward_ad.unpack_dual(g).tangent for g in gradients]
    return _split(tangents, wanted, len(xs), names)


@without_tf32()  # of the difference of two gradients its rounding would be left
def _finite_difference(
    loss: Loss, parameters: Parameters, inputs: Sequence[Tensor], direction: Parameters, curvature: bool, share: float
) -> Answer:
    names = list(direction) if curvature else []
    length = torch.stack([u.norm() for u in direction.values()]).norm()
    size = torch.stack([parameters[n].norm() for n in direction]).norm()
    like = [*inputs, *(parameters[n] for n in names)]
    if not bool(length > 0):
        return _split([None] * len(like), like, len(inputs), names)
    step = share * torch.where(size > 0, size, torch.ones_like(size)) / length
    ends: list[list[Tensor | None]] = []
    for sign in (1, -1):
        xs = _leaves(inputs)
        moved = {n: p + sign * step * direction[n] if n in direction else p for n, p in parameters.items()}
        leaves = {n: moved[n].requires_grad_() for n in names}
        wanted = [*xs, *leaves.values()]
        ends.append(_gradients(loss(moved | leaves, xs), wanted))
    both = [None if a is None or b is None else (a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
    return _split(both, like, len(inputs), names)
