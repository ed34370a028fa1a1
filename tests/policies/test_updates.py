# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Gradients of policies: against the official code, and what must come out exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_autoaug.policies import Sampled, TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.updates import training_gradient, view_gradient


def test_the_gradient_of_views_is_that_of_the_papers_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eqs. 13-15 written out, with draws whose softmax is known (check 8 of joint_policy.md, whose values aren't)."""
    policy, chosen, losses = TestTimePolicy.preset("nnunet").double(), torch.tensor([0, 5, 0, 83, 5, 0]), torch.rand(6)
    soft = torch.randn(6, 84, dtype=torch.float64).softmax(1)

    def weights(self: TestTimePolicy, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        s = soft[torch.arange(len(indices)), indices]
        jacobian = s[:, None] * (torch.nn.functional.one_hot(indices, 84) - soft)
        return 1 + jacobian @ (self.logits - self.logits.detach())

    monkeypatch.setattr(TestTimePolicy, "weights", weights)
    expected = torch.zeros(84, dtype=torch.float64)
    for k, view in enumerate(chosen.tolist()):
        often = sum(v == view for v in chosen.tolist())
        for j in range(84):
            derivative = soft[k, view] * (float(j == view) - soft[k, j])
            expected[j] += (losses[k] - losses.mean()) / 6 / often * derivative
    assert torch.allclose(view_gradient(policy, [losses], [chosen]), expected, atol=1e-7)


def test_views_of_several_patches_are_averaged() -> None:
    policy, losses, chosen = TestTimePolicy.preset("uniform"), torch.rand(2, 6), torch.randint(84, (2, 6))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    together = view_gradient(policy, list(losses), list(chosen), generators[0])
    one_by_one = [view_gradient(policy, [a], [b], generators[1]) for a, b in zip(losses, chosen, strict=True)]
    assert torch.allclose(together, sum(one_by_one, torch.zeros(84)) / 2, atol=1e-7)


def test_what_is_better_becomes_more_probable() -> None:
    """Over many samples: a step against the gradient raises the better operation of either class."""
    policy = TrainingPolicy.preset("uniform")
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(400) % 2
    drawn, _ = policy.sample(classes, generator)
    better = torch.where(classes == 0, drawn[:, 4] == 1, drawn[:, 5] == 1)  # background one mirror, foreground another
    gradient, _ = training_gradient(policy, Sampled(-better.float(), classes, drawn), generator)
    with torch.no_grad():
        policy.logits -= 10 * gradient
    for name, right, other in (("background", 4, 5), ("foreground", 5, 4)):
        p = policy.probabilities(name)
        assert p[right][1] > 0.9
        assert abs(float(p[other][1]) - 0.5) < 0.35


def test_nothing_is_learned_from_samples_that_do_not_differ() -> None:
    """Two samples, one of each class, are each other's company nowhere: without a pool nothing can be learned."""
    policy = TrainingPolicy.preset("nnunet")
    classes, drawn = torch.tensor([0, 1]), torch.zeros(2, 15, dtype=torch.long)
    gradient, centred = training_gradient(policy, Sampled(torch.tensor([1.0, 2.0]), classes, drawn))
    assert not gradient.any()
    assert not centred.any()
    alike = Sampled(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]), torch.zeros(3, 15, dtype=torch.long))
    assert not training_gradient(policy, alike)[0].any()
