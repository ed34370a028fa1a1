# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The closed forms against the real optimisers' steps, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.optim import look_ahead, next_parameters

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMISERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "heavy_ball": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.99, nesterov=True, weight_decay=3e-5),
    "adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, betas=(0.8, 0.95), weight_decay=0.1),
    "groups": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], 0.1, momentum=0.5),
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in ((4,), (3, 2))]


def gradients(seed: int, size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4,), (3, 2))]


def stepped(
    make: Make, given: Sequence[Sequence[Tensor]], clip: float | None
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Parameters and optimiser after real steps with the given gradients."""
    own = parameters()
    optimizer = make(own)
    for step in given:
        for p, g in zip(own, step, strict=True):
            p.grad = g.clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
    return own, optimizer


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("clip", [None, 100.0, 0.7])
@pytest.mark.parametrize("before", [0, 3])
def test_next_parameters_are_those_of_the_real_step(make: Make, clip: float | None, before: int) -> None:
    history = [gradients(i) for i in range(before)]
    own, optimizer = stepped(make, history, clip)
    kept = [p.detach().clone() for p in own]
    predicted = next_parameters(optimizer, gradients(9), clip=clip)
    assert all(torch.equal(p, k) for p, k in zip(own, kept, strict=True))  # nothing has moved
    real, _ = stepped(make, [*history, gradients(9)], clip)
    for p, r in zip(predicted, real, strict=True):
        assert torch.allclose(p, r, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("clip", [None, 100.0, 0.7])
def test_the_derivative_of_the_step(make: Make, clip: float | None) -> None:
    """<u, d> against central differences of <v, theta*> as the real step's gradient moves along d."""
    history = [gradients(i) for i in range(3)]
    _, optimizer = stepped(make, history, clip)
    v, g, h = gradients(20), gradients(9), 1e-5
    u = look_ahead(optimizer, g, v, clip=clip)
    for seed in range(5):
        d = gradients(30 + seed)
        ends = []
        for sign in (1, -1):
            moved = [a + sign * h * b for a, b in zip(g, d, strict=True)]
            real, _ = stepped(make, [*history, moved], clip)
            ends.append(sum(float((p.detach() * x).sum()) for p, x in zip(real, v, strict=True)))
        expected = (ends[0] - ends[1]) / (2 * h)
        got = sum(float((a * b).sum()) for a, b in zip(u, d, strict=True))
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_first_step_of_sgd_has_no_dampening() -> None:
    own = parameters()
    optimizer = torch.optim.SGD(own, 0.1, momentum=0.9, dampening=0.3)
    u = look_ahead(optimizer, gradients(0), gradients(1))
    assert all(torch.allclose(a, -0.1 * b) for a, b in zip(u, gradients(1), strict=True))


def test_adam_where_no_gradient_has_ever_been() -> None:
    """An element that nothing has touched has no second moment: 0 / 0 must not reach the policy."""
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([p], 0.1)
    p.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    (u,) = look_ahead(optimizer, [torch.tensor([0.5, 0.0])], [torch.ones(2)])
    assert torch.isfinite(u).all()
    assert torch.isfinite(next_parameters(optimizer, [torch.tensor([0.5, 0.0])])[0]).all()


def test_what_has_no_closed_form_is_refused() -> None:
    own = parameters()
    with pytest.raises(ConfigError, match="RMSprop"):
        look_ahead(torch.optim.RMSprop(own), gradients(0), gradients(1))
    with pytest.raises(ConfigError, match="amsgrad"):
        next_parameters(torch.optim.Adam(own, amsgrad=True), gradients(0))
    with pytest.raises(ConfigError, match="warm up"):
        look_ahead(torch.optim.Adam(own), gradients(0), gradients(1))
    with pytest.raises(ConfigError, match="2 parameters, but 1"):
        next_parameters(torch.optim.SGD(own, 0.1), gradients(0)[:1])


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_parameters_without_a_gradient_stay(make: Make) -> None:
    """Frozen parameters, and heads that no loss uses, have neither gradient nor state; torch leaves them alone."""
    own = parameters()
    optimizer = make(own)
    for seed in range(2):
        own[0].grad = gradients(seed)[0]
        optimizer.step()
    g, v = [gradients(5)[0], None], gradients(6)
    ahead, u = next_parameters(optimizer, g, clip=0.7), look_ahead(optimizer, g, v, clip=0.7)
    assert torch.equal(ahead[1], own[1].detach())
    assert torch.equal(u[1], torch.zeros_like(own[1]))
    assert bool(u[0].any())
    own[0].grad = g[0]
    nn.utils.clip_grad_norm_(own, 0.7)
    optimizer.step()
    assert torch.allclose(ahead[0], own[0].detach(), rtol=1e-12)
