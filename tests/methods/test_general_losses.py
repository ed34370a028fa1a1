# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial term against its plain form in float64, and where that one overflows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from monai_autoaug.methods.general_losses import missing_the_label, not_class


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_is_the_logarithm_of_what_is_left(classes: int) -> None:
    logits = 3 * torch.randn(4, classes, 5, 6, dtype=torch.float64)
    assert torch.allclose(not_class(logits), -(1 - logits.softmax(1)).log(), atol=1e-10)


def test_of_hard_and_soft_labels() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    index = torch.randint(3, (2, 4, 4))
    hard = F.one_hot(index, 3).movedim(-1, 1).double()
    plain = -(1 - logits.softmax(1).gather(1, index[:, None])).log()
    assert torch.allclose(missing_the_label(logits, hard), plain.mean())
    valid = (torch.rand(2, 1, 4, 4) > 0.5).double()
    assert torch.allclose(missing_the_label(logits, hard, valid), (plain * valid).sum() / valid.sum())
    soft = torch.rand(2, 3, 4, 4, dtype=torch.float64).softmax(1)
    expected = -(soft * (1 - logits.softmax(1)).log()).sum(1).mean()
    assert torch.allclose(missing_the_label(logits, soft), expected)
    assert torch.allclose(missing_the_label(logits[:, :, 0, 0], hard[:, :, 0, 0]), plain[:, 0, 0, 0].mean())


def test_of_regions() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    label = (torch.rand(2, 3, 4) > 0.5).double()
    right = torch.where(label > 0.5, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(missing_the_label(logits, label, sigmoid=True), -(1 - right).log().mean())


def test_gradients_by_differences() -> None:
    logits = (2 * torch.randn(2, 4, 3, dtype=torch.float64)).requires_grad_()
    label = torch.rand(2, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(missing_the_label, (logits, label))
    assert torch.autograd.gradcheck(lambda x, y: missing_the_label(x, y, sigmoid=True), (logits, label))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_certain_network_gives_a_finite_value_and_a_gradient_of_one(sigmoid: bool) -> None:
    """In float32 1 - p is 0 from a logit of 17 on: the plain form is infinite, and its gradient no number."""
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    value = missing_the_label(logits, torch.tensor([[1.0, 0.0]]), sigmoid=sigmoid)
    value.backward()
    assert float(value) == pytest.approx(200.0 if sigmoid else 400.0)
    assert logits.grad is not None
    expected = [[0.5, -0.5]] if sigmoid else [[1.0, -1.0]]  # of regions the mean over two
    assert torch.allclose(logits.grad, torch.tensor(expected))
    assert not torch.isfinite(-(1 - logits.softmax(1)).log()).all()
