# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The weighted cross-entropy of paper 001: against torch's, soft labels, unknown voxels, several levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_autoaug.methods.weighted_cross_entropy import weighted_cross_entropy

WEIGHTS = {"background": 0.1, "foreground": 0.3}


def case(size: int = 3, shape: tuple[int, ...] = (6, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 4, *shape, generator=generator, dtype=torch.float64)
    index = torch.randint(4, (size, *shape), generator=generator)
    return logits, index, torch.nn.functional.one_hot(index, 4).movedim(-1, 1).double()


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 5)])
def test_of_hard_labels_it_is_torchs(shape: tuple[int, ...]) -> None:
    logits, index, label = case(shape=shape)
    weight = torch.tensor([0.1, 0.3, 0.3, 0.3], dtype=torch.float64)
    voxel = torch.nn.functional.cross_entropy(logits, index, weight=weight, reduction="none")
    torch.testing.assert_close(weighted_cross_entropy(logits, label, None, **WEIGHTS), voxel.flatten(1).mean(1))


def test_of_unknown_voxels_the_mean_is_that_over_the_known_ones_of_the_batch() -> None:
    logits, index, label = case()
    valid = (torch.rand(3, 1, 6, 8, generator=torch.Generator().manual_seed(1)) > 0.4).double()
    weight = torch.tensor([0.1, 0.3, 0.3, 0.3], dtype=torch.float64)
    voxel = torch.nn.functional.cross_entropy(logits, index, weight=weight, reduction="none")
    wanted = (voxel * valid[:, 0]).sum() / valid.sum()
    torch.testing.assert_close(weighted_cross_entropy(logits, label, valid, **WEIGHTS).mean(), wanted)


def test_background_of_weight_0_is_not_counted() -> None:
    logits, index, label = case()
    logits.requires_grad_()
    weighted_cross_entropy(logits, label, None, background=0.0, foreground=0.3).mean().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, index > 0)


def test_it_is_linear_in_the_label_whose_gradient_is_right() -> None:
    logits, _, label = case()
    soft = (0.3 * label + 0.7 * label.flip(0)).requires_grad_()
    losses = weighted_cross_entropy(logits, soft, None, **WEIGHTS)
    hard = [weighted_cross_entropy(logits, y, None, **WEIGHTS) for y in (label, label.flip(0))]
    torch.testing.assert_close(losses, 0.3 * hard[0] + 0.7 * hard[1])
    assert torch.autograd.gradcheck(lambda y: weighted_cross_entropy(logits, y, None, **WEIGHTS), [soft])


def test_levels_of_deep_supervision_count_as_in_nnunet() -> None:
    logits, _, label = case(shape=(8, 8))
    valid = torch.ones(3, 1, 8, 8, dtype=torch.float64)
    levels = [logits, logits[:, :, ::2, ::2], logits[:, :, ::4, ::4]]
    smaller = torch.nn.functional.avg_pool2d(label, 2)
    one, two = (weighted_cross_entropy(x, y, None, **WEIGHTS) for x, y in ((logits, label), (levels[1], smaller)))
    torch.testing.assert_close(weighted_cross_entropy(levels, label, valid, **WEIGHTS), (2 * one + two) / 3)
    torch.testing.assert_close(weighted_cross_entropy([logits], label, None, **WEIGHTS), one)
