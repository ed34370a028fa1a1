# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The mixed second derivative: three ways against central differences, and against each other through real layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import with_parameters
from monai_autoaug.optim import mixed_gradient
from monai_autoaug.optim.hypergradient import MODES


def network(norm: str) -> nn.Module:
    torch.manual_seed(0)
    middle: dict[str, nn.Module] = {
        "none": nn.Identity(), "instance": nn.InstanceNorm2d(4, affine=True), "batch": nn.BatchNorm2d(4),
        "group": nn.GroupNorm(2, 4),
    }  # fmt: skip
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), middle[norm], nn.Tanh(), nn.Conv2d(4, 3, 3, stride=2),
                         nn.ConvTranspose2d(3, 2, 2, stride=2)).double()  # fmt: skip


def task(norm: str) -> tuple[nn.Module, dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    net = network(norm)
    image = torch.randn(3, 1, 9, 9, dtype=torch.float64)
    label = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    own = {n: p.detach() for n, p in net.named_parameters()}
    return net, own, [image, label], {n: torch.randn_like(p) for n, p in own.items()}


def loss_of(net: nn.Module):  # type: ignore[no-untyped-def]
    def loss(parameters: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        with with_parameters(net, parameters):
            logits = net(inputs[0])
        return -(inputs[1] * logits.log_softmax(1)).mean()

    return loss


@pytest.mark.parametrize(("mode", "norm"), [
    (mode, norm) for mode in MODES for norm in ("none", "instance", "batch", "group")
    if (mode, norm) != ("jvp", "group")
])  # fmt: skip
def test_inputs_and_curvature_against_central_differences(mode: str, norm: str) -> None:
    """<d, answer> against the difference of <u, grad_w L> as inputs, or parameters, move along d."""
    net, own, inputs, u = task(norm)
    loss = loss_of(net)
    by_input, by_parameter = mixed_gradient(
        loss, own, inputs, u, mode=mode, curvature=True, relative_step=1e-5
    )  # fmt: skip

    def inner(parameters: Mapping[str, Tensor], given: Sequence[Tensor]) -> float:
        leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        grads = torch.autograd.grad(loss(leaves, given), list(leaves.values()))
        return sum(float((g * u[n]).sum()) for n, g in zip(leaves, grads, strict=True))

    h = 1e-5
    for place in range(2):
        d = torch.randn_like(inputs[place])
        ends = [inner(own, [x + s * h * d if i == place else x for i, x in enumerate(inputs)]) for s in (1, -1)]
        assert float((by_input[place] * d).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-9)
    direction = {n: torch.randn_like(p) for n, p in own.items()}
    ends = [inner({n: p + s * h * direction[n] for n, p in own.items()}, inputs) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * h)
    assert sum(float((by_parameter[n] * d).sum()) for n, d in direction.items()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_the_two_exact_ways_agree(norm: str) -> None:
    net, own, inputs, u = task(norm)
    a, b = (mixed_gradient(loss_of(net), own, inputs, u, mode=m, curvature=True) for m in ("double_backward", "jvp"))
    for x, y in zip([*a[0], *a[1].values()], [*b[0], *b[1].values()], strict=True):
        assert torch.allclose(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_changed_and_curvature_is_given_only_when_asked_for(mode: str) -> None:
    net, own, inputs, u = task("none")
    before = [t.clone() for t in (*own.values(), *inputs, *u.values())]
    _, curved = mixed_gradient(loss_of(net), own, inputs, u, mode=mode)
    assert curved == {}
    assert all(torch.equal(a, b) for a, b in zip(before, (*own.values(), *inputs, *u.values()), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert not any(t.requires_grad for t in (*own.values(), *inputs))


@pytest.mark.parametrize("mode", MODES)
def test_what_doesnt_matter_has_derivative_zero(mode: str) -> None:
    """A loss that is linear, an input and a parameter that nothing uses, no direction at all."""
    w = {"w": torch.tensor([1.0, 2.0]), "unused": torch.ones(2)}
    x = [torch.tensor([3.0, 4.0]), torch.ones(1)]
    u = {"w": torch.ones(2), "unused": torch.ones(2)}
    ((a, b), curved) = mixed_gradient(lambda p, x: (p["w"] * x[0]).sum(), w, x, u, mode=mode, curvature=True)
    assert torch.allclose(a, torch.ones(2), atol=1e-4)
    assert not b.any()
    assert torch.allclose(curved["w"], torch.zeros(2), atol=1e-4)
    assert not curved["unused"].any()
    ((a, _), _) = mixed_gradient(lambda p, x: (p["w"] * 2).sum(), w, x, u, mode=mode)
    assert not a.any()
    nowhere = {n: torch.zeros(2) for n in w}
    ((a, _), curved) = mixed_gradient(lambda p, x: (p["w"] * x[0]).sum(), w, x, nowhere, mode=mode, curvature=True)
    assert not a.any()
    assert not curved["w"].any()


def test_a_direction_may_leave_parameters_out() -> None:
    w = {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}
    for mode in MODES:
        (found,), _ = mixed_gradient(
            lambda p, x: p["a"] ** 2 * x[0] + p["b"] ** 2 * x[0], w, [torch.tensor(1.0)], {"b": torch.tensor(1.0)},
            mode=mode,
        )  # fmt: skip
        assert float(found) == pytest.approx(10, rel=1e-3)


def test_a_layer_that_forward_mode_doesnt_know_is_told() -> None:
    with pytest.raises(ConfigError, match="double_backward or finite_difference"):
        mixed_gradient(lambda p, x: nn.functional.silu(p["w"] * x[0]).sum(), {"w": torch.ones(1)}, [torch.ones(1)],
                       {"w": torch.ones(1)}, mode="jvp")  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_differences_are_taken_in_full_float32(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of losses; the exact ways run as they always do."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []

    def loss(parameters: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return parameters["w"] ** 2 * given[0] ** 3

    mixed_gradient(loss, {"w": torch.tensor(3.0)}, [torch.tensor(2.0)], {"w": torch.tensor(1.0)}, mode=mode)
    assert set(seen) == {mode != "finite_difference"}
    assert torch.backends.cudnn.allow_tf32


def test_unknown_modes_and_strangers_are_refused() -> None:
    w, x = {"w": torch.ones(1)}, [torch.ones(1)]
    with pytest.raises(ConfigError, match="mode must be one of"):
        mixed_gradient(lambda p, x: p["w"].sum(), w, x, w, mode="reverse")
    with pytest.raises(ConfigError, match="given for v"):
        mixed_gradient(lambda p, x: p["w"].sum(), w, x, {"v": torch.ones(1)})
