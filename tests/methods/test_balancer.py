# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Weights that are ratios of gradients."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.methods.balancer import Balancer


@pytest.mark.parametrize("steps", [1, 4])
def test_the_balance_is_a_ratio_of_gradients(steps: int) -> None:
    """What reaches the head is of unit size a whole batch, and the realism game's share is the weight asked for."""
    balancer = Balancer(("head", "task", "realism"), "cpu")
    x, y = torch.ones(6, requires_grad=True), torch.ones(6, requires_grad=True)
    for _ in range(2):
        x.grad = y.grad = None
        for _ in range(steps):
            task = (balancer.metered("task")(y) * 3).sum()
            realism = (balancer.ratio("realism", "task", 0.25)(y) * torch.arange(6.0)).sum()
            ((1e3 * balancer.unit("head", 1 / steps)(x)).sum() + task + realism).backward()
            balancer.update()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad.sum(), torch.ones(()))
    share = (y.grad / steps - 3).norm() / (3 * torch.ones(6)).norm()
    assert float(share) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("strength", [0.04, 0.5])
def test_a_warm_up_changes_neither_the_unit_nor_the_mean(strength: float) -> None:
    """All gradients at a place grow with the strength of the augmentation: a mean that lags behind would overshoot."""
    balancer = Balancer(("head",), "cpu")
    x = torch.ones(4, requires_grad=True)
    for now in (1.0, strength, strength / 2):
        x.grad = None
        (1e3 * now * balancer.unit("head", strength=now)(x)).sum().backward()
        balancer.update(strengths={"head": now})
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.full((4,), 0.25))
    assert float(balancer.means[0]) == pytest.approx(2e3, rel=1e-5)


def test_a_place_without_gradient_keeps_its_mean() -> None:
    balancer = Balancer(("head", "other"), "cpu")
    x = torch.ones(4, requires_grad=True)
    balancer.metered("head")(x).sum().backward()
    balancer.update(2.0)
    assert balancer.means.tolist() == pytest.approx([1.0, 0.0])
    balancer.update()
    (balancer.metered("head")(x) * float("nan")).sum().backward()
    balancer.update()
    assert balancer.means.tolist() == pytest.approx([1.0, 0.0])
