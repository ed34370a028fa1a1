# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses that policies are judged by, against the official code's values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.meta_losses import meta_loss, view_losses

VECTORS = Path(__file__).parents[1] / "data" / "vectors" / "meta_losses.npz"


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    with np.load(VECTORS) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file}


def test_dice_and_cross_entropy_are_the_official_ones(official: dict[str, Tensor]) -> None:
    """Check 24 of joint_policy.md; there Dice counts as its negative."""
    p = official["dice_logits"].softmax(1)
    label = torch.nn.functional.one_hot(official["dice_target"].long(), 3).movedim(-1, 1).float()
    assert float(view_losses(p, label, None).mean() - 1) == pytest.approx(float(official["dice_persample"]), abs=1e-6)
    x = official["dice_logits"]
    assert float(meta_loss(x, label, None, "dice") - 1) == pytest.approx(float(official["dice_batch"]), abs=1e-6)
    entropy = meta_loss(x, label, None, "ce")
    assert float(entropy) == pytest.approx(float(official["ce"]), abs=1e-6)
    assert torch.isclose(meta_loss(x, label, None, "both"), meta_loss(x, label, None, "dice") + entropy)


@pytest.mark.parametrize("regions", [False, True])
def test_unknown_voxels_do_not_count(regions: bool) -> None:
    """What is predicted there changes nothing."""
    label, valid = torch.rand(2, 3, 4, 4, 4).softmax(1), torch.ones(2, 1, 4, 4, 4)
    valid[:, :, 2:] = 0
    one, other = torch.rand(2, 2, 3, 4, 4, 4)
    other = torch.where(valid > 0, one, other)
    for kind in ("ce", "dice"):
        a, b = (meta_loss(p, label * valid, valid, kind, sigmoid=regions, regions=regions) for p in (one, other))
        assert torch.allclose(a, b)
    a, b = (view_losses(p, label * valid, valid, regions=regions) for p in (one, other))
    assert torch.allclose(a, b)


def test_structures_that_are_absent_count_only_where_all_are() -> None:
    label = torch.zeros(2, 3, 4, 4)
    label[0, 1], label[1, 0] = 1, 1  # the first sample has the first structure only, the second none
    perfect = label.clone()
    assert torch.allclose(view_losses(perfect, label, None), torch.zeros(2), atol=1e-5)
    wrong = perfect.clone()
    wrong[0, 2, 0, 0], wrong[1, 2, 0, 0] = 1.0, 1.0  # a false positive of the second structure in each
    first, second = view_losses(wrong, label, None).tolist()
    assert first == pytest.approx(0, abs=1e-5)
    assert second > 0.4


def test_other_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of ce, dice, both, got 'mse'"):
        meta_loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2), None, "mse")
