# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mixup: the distribution of the shares, image and label alike, unknown labels, what stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.mixup import draw_shares, mixup


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    """Of the lower half, because float32 has no numbers close enough to 1."""
    shares = draw_shares(4000, alpha, torch.Generator().manual_seed(0)).double().numpy()
    lower = shares[shares < 0.5]
    assert len(lower) == pytest.approx(2000, abs=100)
    assert stats.kstest(np.maximum(lower, 1e-40), lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01


def test_shares_of_a_tiny_alpha_are_numbers() -> None:
    shares = draw_shares(1000, 1e-4, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(shares).all())
    assert 0.4 < float((shares > 0.5).float().mean()) < 0.6


def batch(size: int = 6, *, valid: bool = False) -> Batch:
    """Each sample's image is its number everywhere, its label one-hot of it."""
    number = torch.arange(float(size)).view(size, 1, 1, 1)
    label = torch.eye(size).view(size, size, 1, 1).expand(size, size, 4, 4)
    known = (torch.arange(4) < 2).float().expand(size, 1, 4, 4).clone() if valid else None
    if known is not None:
        known[::2] = 1.0
    return Batch(number.expand(size, 1, 4, 4).contiguous(), label.contiguous(), valid=known,
                 extra=number.expand(size, 1, 4, 4).contiguous(), case=tuple("abcdef"[:size]))  # fmt: skip


def test_image_label_and_further_channels_are_mixed_with_the_same_share() -> None:
    given = batch()
    rows = torch.tensor([3, 4, 5])
    made = mixup(given, rows, 1.0, torch.Generator().manual_seed(0))
    for k in range(6):
        weights = made.label[k, :, 0, 0]
        assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
        assert int((weights > 0).sum()) == (2 if k >= 3 else 1)  # of two different samples
        assert float(made.image[k, 0, 0, 0]) == pytest.approx(float(weights @ torch.arange(6.0)), abs=1e-5)
        assert torch.equal(made.extra[k], made.image[k])  # type: ignore[index]  # there are some
    assert torch.equal(made.image[:3], given.image[:3])
    assert torch.equal(made.label[:3], given.label[:3])
    i, j = (("abcdef").index(c) for c in made.case[3].split("+"))
    assert float(made.label[3, i, 0, 0] + made.label[3, j, 0, 0]) == pytest.approx(1, abs=1e-6)
    assert made.case[:3] == given.case[:3]


def test_pairs_come_of_the_whole_batch() -> None:
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        made = mixup(batch(), torch.tensor([5]), 1.0, generator)
        seen |= {k for k in range(6) if float(made.label[5, k, 0, 0]) > 0}
    assert seen == set(range(6))


def test_where_one_label_is_unknown_the_other_counts() -> None:
    given = batch(2, valid=True)  # the second one is known in its left half only
    made = mixup(given, torch.tensor([1]), 1.0, torch.Generator().manual_seed(1))
    assert made.valid is not None
    share = float(made.label[1, 0, 0, 0])
    assert 0.01 < share < 0.99
    assert float(made.valid[1, 0, 0, 0]) == pytest.approx(1)
    assert float(made.valid[1, 0, 0, 3]) == pytest.approx(share)
    torch.testing.assert_close(made.label[1, :, 0, 3], torch.tensor([1.0, 0.0]))
    assert float(made.image[1, 0, 0, 0]) == pytest.approx(1 - share, abs=1e-6)


def test_nothing_to_mix_with() -> None:
    alone = batch(1)
    assert mixup(alone, torch.tensor([0]), 0.1, torch.Generator()) is alone
    with pytest.raises(ConfigError, match="mixup_alpha must be above 0, got 0"):
        mixup(batch(), torch.tensor([0]), 0, torch.Generator())
