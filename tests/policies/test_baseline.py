# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pooled samples of several iterations: what they have in common goes, what operations change stays."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.policies import Sampled
from monai_autoaug.policies.baseline import Baseline


def pooled(generator: torch.Generator, correlation: float, scale: float = 10.0) -> tuple[Sampled, torch.Tensor]:
    """Eight samples of each class from as many iterations, and what their operations change."""
    common = scale * torch.randn(16, generator=generator)
    effect = torch.randn(16, generator=generator)
    plain = correlation * common + (1 - correlation**2) ** 0.5 * scale * torch.randn(16, generator=generator)
    classes = torch.tensor([0, 1]).repeat(8)
    return Sampled(common + effect, classes, torch.zeros(16, 15, dtype=torch.long), plain), effect


@pytest.mark.parametrize(("correlation", "left"), [(0.99, 0.35), (0.0, 1.1)])
def test_what_iterations_have_in_common_goes_as_far_as_it_is_known(correlation: float, left: float) -> None:
    """With a good baseline the effect stands out; with one that says nothing, nothing is lost."""
    generator = torch.Generator().manual_seed(0)
    baseline = Baseline(2)
    before, after = [], []
    for _ in range(50):
        samples, effect = pooled(generator, correlation)
        found = baseline.remove(samples).values
        for k in range(2):
            rows = samples.classes == k
            centred = effect[rows] - effect[rows].mean()
            assert float(found[rows].sum()) == pytest.approx(0, abs=1e-3)
            before.append((samples.values[rows] - samples.values[rows].mean() - centred).square().mean())
            after.append((found[rows] - centred).square().mean())
    ratio = (torch.stack(after).mean() / torch.stack(before).mean()).sqrt()
    assert float(ratio) < left
    assert float(ratio) > left / 3


def test_without_a_baseline_values_are_centred_by_class_and_a_state_goes_on() -> None:
    baseline = Baseline(2)
    samples = Sampled(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1]), torch.zeros(3, 15, dtype=torch.long))
    assert baseline.remove(samples).values.tolist() == [-1.0, 1.0, 0.0]
    # what is not known of some samples is not 0
    mixed = Sampled(
        torch.tensor([1.0, 1.0, 5.0, 5.0]), torch.zeros(4, dtype=torch.long), torch.zeros(4, 15, dtype=torch.long),
        torch.tensor([torch.nan, torch.nan, 5.0, 5.0]),
    )  # fmt: skip
    assert baseline.remove(mixed).values.tolist() == [-2.0, -2.0, 2.0, 2.0]
    generator = torch.Generator().manual_seed(0)
    baseline.remove(pooled(generator, 0.9)[0])
    resumed = Baseline(2)
    resumed.load_state_dict(baseline.state_dict())
    more = pooled(generator, 0.9)[0]
    assert torch.equal(baseline.remove(more).values, resumed.remove(more).values)
