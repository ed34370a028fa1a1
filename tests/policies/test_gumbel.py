# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Sampling of operations: against the official implementation's values, and the exact conditional draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from monai_autoaug.policies import conditional_gumbel, gumbel, straight_through

VECTORS = Path(__file__).parents[1] / "data" / "vectors" / "gumbel.npz"


def test_the_official_draws_and_gradients() -> None:
    """Noise, index, weight and gradient of paper 002's official code (joint_policy.md, checks 4 and 5)."""
    v = np.load(VECTORS)
    noise = torch.from_numpy(-np.log(-np.log(v["gumbel_U"] + 1e-20) + 1e-20))
    for row in range(len(noise)):
        logits = torch.tensor(v["gumbel_logits"], dtype=torch.float64, requires_grad=True)
        index, weight = straight_through(logits, noise[row])
        weight.backward()
        assert int(index) == v["gumbel_ind"][row]
        assert float(weight.detach()) == pytest.approx(1, abs=1e-6)
        assert logits.grad is not None
        assert logits.grad.numpy() == pytest.approx(v["gumbel_dw_dlogits"][row], abs=1e-5)
        assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-7)
        assert (logits.detach() + noise[row]).softmax(0).numpy() == pytest.approx(v["gumbel_s"][row], abs=1e-5)


def test_operations_are_drawn_with_the_softmax_of_the_logits() -> None:
    logits = torch.tensor([1.0, -1.0, 0.5, -float("inf")])
    noise = gumbel((40_000, 4), torch.Generator().manual_seed(0))
    index, _ = straight_through(logits, noise)
    share = torch.bincount(index, minlength=4) / len(index)
    assert torch.allclose(share, logits.softmax(0), atol=0.01)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_the_conditional_draw_is_the_distribution_that_rejection_has(chosen: int) -> None:
    """Every component of the noise, against draws that happened to select the operation."""
    logits = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    free = gumbel((60_000, 3), torch.Generator().manual_seed(1))
    accepted = free[(logits + free).argmax(1) == chosen]
    index = torch.full((len(accepted),), chosen)
    drawn = conditional_gumbel(logits.expand(len(index), 3), index, torch.Generator().manual_seed(2))
    assert torch.equal((logits + drawn).argmax(1), index)
    for k in range(3):
        assert ks_2samp(accepted[:, k].numpy(), drawn[:, k].numpy()).pvalue > 1e-3, k
    for a, b in ((0, 1), (1, 2)):  # and together
        differences = [(x[:, a] - x[:, b]).numpy() for x in (accepted, drawn)]
        assert ks_2samp(*differences).pvalue > 1e-3


def test_an_operation_that_the_policy_has_left_far_behind() -> None:
    """One pass where rejection would draw e^60 times; padding stays out of it, and gradients stay finite."""
    logits = torch.tensor([[60.0, 0.0, -float("inf")]], requires_grad=True)
    index = torch.tensor([1])
    noise = conditional_gumbel(logits, index, torch.Generator().manual_seed(0))
    assert torch.isfinite(noise).all()
    got, weight = straight_through(logits, noise, index)
    weight.sum().backward()
    assert torch.equal(got, index)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 1]) >= 0


def test_a_generator_makes_it_reproducible() -> None:
    first, second = (gumbel((5,), torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
