# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Going back through K updates: closed-form quadratics, and autograd through updates that are written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.optim import Update, look_ahead, mixed_gradient, unrolled_hypergradient
from monai_autoaug.optim.hypergradient import MODES

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# a/2 (w - theta)^2 trains, b/2 (w - c)^2 validates
A, LR, B, C, W, M, THETA = 1.3, 0.1, 0.7, 2.0, 0.5, 0.2, -0.4


def quadratic(steps: int, momentum: float, decay: float, mode: str = "double_backward") -> float:
    """dL_val/dtheta after so many updates of torch's own SGD."""
    w = nn.Parameter(torch.tensor([W], dtype=torch.float64))
    theta = torch.tensor([THETA], dtype=torch.float64)
    optimizer = torch.optim.SGD([w], LR, momentum=momentum, weight_decay=decay)
    if momentum:
        optimizer.state[w]["momentum_buffer"] = torch.tensor([M], dtype=torch.float64)
    updates = []
    for _ in range(steps):
        w.grad = A * (w.detach() - theta)
        updates.append(Update.coming(optimizer, [w.grad]))
        optimizer.step()
    total = torch.zeros(1, dtype=torch.float64)

    def visit(place: int, u: list[Tensor], goes_on: bool) -> list[Tensor]:
        (by_theta,), curved = mixed_gradient(
            lambda p, x: (A / 2 * (p["w"] - x[0]).square()).sum(), {"w": updates[place].parameters[0]}, [theta],
            {"w": u[0]}, mode=mode, curvature=goes_on,
        )  # fmt: skip
        total.add_(by_theta)
        return list(curved.values())

    unrolled_hypergradient(updates, [B * (w.detach() - C)], visit)
    return float(total)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("steps", "momentum", "decay", "expected"),
    [
        (1, 0.0, 0.0, -0.147147), (2, 0.0, 0.0, -0.2924864943), (3, 0.0, 0.0, -0.4320425766),
        (5, 0.0, 0.0, -0.6851544241), (1, 0.9, 0.0, -0.148785), (2, 0.9, 0.0, -0.4678293165),
        (3, 0.9, 0.0, -0.9676777603), (5, 0.9, 0.0, -2.3010697101), (1, 0.9, 0.05, -0.1490125),
        (2, 0.9, 0.05, -0.4685543078), (3, 0.9, 0.05, -0.9675879710), (5, 0.9, 0.05, -2.2781214382),
    ],
)  # fmt: skip
def test_quadratic_with_a_known_answer(steps: int, momentum: float, decay: float, expected: float, mode: str) -> None:
    assert quadratic(steps, momentum, decay, mode) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_quadratic_in_closed_form(steps: int) -> None:
    """The factor before dL/dw is 1 - (1 - lr a)^K."""
    factor = 1 - (1 - LR * A) ** steps
    w = THETA + (1 - factor) * (W - THETA)
    assert quadratic(steps, 0.0, 0.0) == pytest.approx(factor * B * (w - C), abs=1e-13)


def test_quadratic_in_several_dimensions() -> None:
    """(I - M)^T B (w_T - c) with M = (I - lr A)^K."""
    generator = torch.Generator().manual_seed(0)
    n, lr, steps = 5, 0.05, 4
    draw = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
    a, b = (x @ x.T for x in draw)
    w0, theta, c = torch.randn(3, n, generator=generator, dtype=torch.float64)
    w, updates = nn.Parameter(w0.clone()), []
    optimizer = torch.optim.SGD([w], lr)
    for _ in range(steps):
        w.grad = a @ (w.detach() - theta)
        updates.append(Update.coming(optimizer, [w.grad]))
        optimizer.step()
    total = torch.zeros(n, dtype=torch.float64)

    def visit(place: int, u: list[Tensor], goes_on: bool) -> list[Tensor]:
        total.sub_(a @ u[0])
        return [a @ u[0]]

    unrolled_hypergradient(updates, [b @ (w.detach() - c)], visit)
    m = torch.matrix_power(torch.eye(n, dtype=torch.float64) - lr * a, steps)
    expected = (torch.eye(n, dtype=torch.float64) - m).T @ b @ (w.detach() - c)
    assert torch.allclose(total, expected, rtol=0, atol=1e-12)


def test_online_with_one_step_and_one_update_finds_the_fixed_point() -> None:
    """theta = w = c."""
    w = nn.Parameter(torch.tensor([W], dtype=torch.float64))
    theta = torch.tensor([THETA], dtype=torch.float64)
    optimizer = torch.optim.SGD([w], LR)
    for _ in range(4000):
        w.grad = A * (w.detach() - theta)
        update = Update.coming(optimizer, [w.grad])
        optimizer.step()
        (u,) = update.back([B * (w.detach() - C)], [{}])[0]
        theta = theta - 0.5 * -A * u
    assert float(theta) == pytest.approx(C, abs=1e-6)
    assert float(w.detach()) == pytest.approx(C, abs=1e-6)


# --- real optimisers against autograd -------------------------------------------------------------------------------

OPTIMISERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.05),
    "heavy_ball": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.99, nesterov=True, weight_decay=3e-2),
    "adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, betas=(0.8, 0.95), weight_decay=0.1),
    "groups": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], 0.1, momentum=0.5),
}
SHAPES = ((4,), (3, 2))


def loss(w: list[Tensor], x: Tensor) -> Tensor:
    """Bent in both, and mixed."""
    return (w[0] @ x).sin() + (w[1].tanh() * x[:3, None]).square().sum() + (w[0].square().sum() * x[3]).cos()


def validation(w: list[Tensor]) -> Tensor:
    return (w[0] - 1).tanh().pow(3).sum() + (w[1] @ w[1].T).sum().cos()


def written_out(w: list[Tensor], memory: list[dict[str, Any]], g: list[Tensor], kind: torch.optim.Optimizer,
                clip: float | None) -> tuple[list[Tensor], list[dict[str, Any]]]:  # fmt: skip
    """One update, by differentiable operations, from the optimiser's documentation."""
    if clip is not None:
        norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
        g = [x * (clip / (norm + 1e-6)).clamp(max=1) for x in g]
    groups = [group for group in kind.param_groups for _ in group["params"]]
    ws, memories = [], []
    for p, d, group, was in zip(w, g, groups, memory, strict=True):
        decay, lr, now = group["weight_decay"], group["lr"], dict(was)
        if isinstance(kind, torch.optim.SGD):
            d = d + decay * p
            if group["momentum"]:
                old = was.get("b")
                now["b"] = d if old is None else group["momentum"] * old + (1 - group["dampening"]) * d
                d = d + group["momentum"] * now["b"] if group["nesterov"] else now["b"]
            ws.append(p - lr * d)
        else:
            if isinstance(kind, torch.optim.AdamW):
                p = p * (1 - lr * decay)
            else:
                d = d + decay * p
            (b1, b2), t = group["betas"], was.get("t", 0) + 1
            now = {"t": t, "m": b1 * was.get("m", 0) + (1 - b1) * d, "s": b2 * was.get("s", 0) + (1 - b2) * d * d}
            ws.append(p - lr * now["m"] / (1 - b1**t) / ((now["s"] / (1 - b2**t)).sqrt() + group["eps"]))
        memories.append(now)
    return ws, memories


@pytest.mark.parametrize(("name", "before"), [
    (name, before) for name in OPTIMISERS for before in (0, 2) if before or not name.startswith("adam")
])  # fmt: skip
@pytest.mark.parametrize("clip", [None, 100.0, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_against_autograd_through_updates_written_out(name: str, clip: float | None, steps: int, before: int) -> None:
    """Adam from its third update on, since its first one has no derivative."""
    generator = torch.Generator().manual_seed(0)
    own = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    optimizer = OPTIMISERS[name](own)
    xs = torch.randn(before + steps, 4, generator=generator, dtype=torch.float64)
    theta = xs[before:].clone().requires_grad_()
    w: list[Tensor] = [p.detach().clone() for p in own]
    memory: list[dict[str, Any]] = [{}, {}]
    updates = []
    for number in range(before + steps):
        # torch's own optimiser
        grads = list(torch.autograd.grad(loss(list(own), xs[number]), own))
        if number >= before:
            updates.append(Update.coming(optimizer, grads, clip=clip))
        for p, g in zip(own, grads, strict=True):
            p.grad = g.clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
        # the same, differentiably
        x = xs[number] if number < before else theta[number - before]
        w = [p if p.requires_grad else p.requires_grad_() for p in w]
        g = torch.autograd.grad(loss(w, x), w, create_graph=True)
        w, memory = written_out(w, memory, list(g), optimizer, clip)
    for a, b in zip(w, own, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)
    (expected,) = torch.autograd.grad(validation(w), theta)
    leaves = [p.detach().requires_grad_() for p in own]
    direction = torch.autograd.grad(validation(leaves), leaves)
    found = torch.zeros_like(expected)

    def visit(place: int, u: list[Tensor], goes_on: bool) -> list[Tensor]:
        here = dict(zip("ab", updates[place].parameters, strict=True))
        (by_x,), curved = mixed_gradient(
            lambda p, x: loss([p["a"], p["b"]], x[0]), here, [xs[before + place]], dict(zip("ab", u, strict=True)),
            curvature=goes_on,
        )  # fmt: skip
        found[place] = by_x
        return list(curved.values())

    unrolled_hypergradient(updates, direction, visit)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["heavy_ball", "nesterov", "adam"])
def test_one_step_is_the_look_ahead(name: str) -> None:
    own = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in SHAPES]
    optimizer = OPTIMISERS[name](own)
    for p in own:
        p.grad = torch.randn_like(p)
    optimizer.step()
    g, v = [torch.randn_like(p) for p in own], [torch.randn_like(p) for p in own]
    seen: list[list[Tensor]] = []
    unrolled_hypergradient([Update.coming(optimizer, g)], v, lambda _, u, __: seen.append(u) or u)
    for a, b in zip(seen[0], look_ahead(optimizer, g, v), strict=True):
        assert torch.allclose(a, b, rtol=1e-13)


def test_an_update_is_a_copy() -> None:
    own = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(own, 0.1, momentum=0.9)
    g = [torch.ones(2)]
    for _ in range(2):
        own[0].grad = g[0].clone()
        update = Update.coming(optimizer, g)
        kept = update.parameters[0].clone()
        optimizer.step()
    g[0].zero_()
    optimizer.param_groups[0]["lr"] = 7.0
    assert torch.equal(update.parameters[0], kept)
    assert torch.equal(update.gradients[0], torch.ones(2))
    assert torch.equal(update.states[0]["momentum_buffer"], torch.ones(2))
    assert update.groups[0]["lr"] == 0.1


def test_parameters_without_gradient_pass_the_derivative_on() -> None:
    own = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.SGD(own, 0.1, momentum=0.9, weight_decay=0.5)
    updates = [Update.coming(optimizer, [torch.ones(1), None]) for _ in range(2)]
    seen: list[list[Tensor]] = []

    def visit(place: int, u: list[Tensor], goes_on: bool) -> list[Tensor]:
        seen.append(u)
        return [torch.zeros(1), torch.full((1,), 3.0)]

    unrolled_hypergradient(updates, [torch.ones(1), torch.ones(1)], visit)
    assert [float(u[1]) for u in seen] == [0.0, 0.0]


def test_what_has_no_derivative_is_refused() -> None:
    own = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ConfigError, match="warm up"):
        Update.coming(torch.optim.Adam(own), [torch.ones(1)])
    with pytest.raises(ConfigError, match="RMSprop"):
        Update.coming(torch.optim.RMSprop(own), [torch.ones(1)])
