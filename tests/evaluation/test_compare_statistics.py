# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Tests, corrections, intervals and ranks against closed forms and second implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from monai_autoaug.evaluation.comparison.statistics import (
    average_ranks,
    compare,
    holm,
    interval,
    signed_rank,
    smallest_p,
)


def exact(differences: np.ndarray) -> float:
    """The test by its definition: all signs are equally probable."""
    d = differences[differences != 0]
    ranks = stats.rankdata(np.abs(d))
    observed = ranks[d > 0].sum()
    middle = ranks.sum() / 2
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(d))
    ]
    return float(np.mean(np.abs(np.array(sums) - middle) >= abs(observed - middle) - 1e-9))


@pytest.mark.parametrize("seed", range(4))
def test_signed_rank_by_counting_all_signs(seed: int) -> None:
    d = np.random.default_rng(seed).normal(0.3, 1, 9)
    assert signed_rank(d) == pytest.approx(exact(d))
    assert signed_rank(np.append(d, 0.0)) == pytest.approx(exact(d), abs=0.02)  # a pair without difference is left out


def test_signed_rank_where_nothing_differs() -> None:
    assert signed_rank(np.zeros(7)) == 1.0
    assert signed_rank(np.full(7, 1e-14)) == 1.0  # rounding is no difference
    assert np.isnan(signed_rank(np.zeros(0)))


def test_smallest_p_is_what_the_test_gives() -> None:
    for cases in (3, 5, 8):
        assert smallest_p(cases) == pytest.approx(signed_rank(np.arange(1.0, cases + 1)))
    assert smallest_p(5, tests=100) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_by_its_definition(seed: int) -> None:
    p = np.random.default_rng(seed).random(7) ** 2

    # adjusted p: the smallest level at which the step-down procedure rejects
    def rejected(level: float) -> set[int]:
        out: set[int] = set()
        for place, i in enumerate(np.argsort(p)):
            if p[i] > level / (len(p) - place):
                break
            out.add(int(i))
        return out

    found = holm(p.tolist())
    for i, adjusted in enumerate(found):
        if adjusted < 1:
            assert i in rejected(adjusted + 1e-9)
        assert i not in rejected(adjusted - 1e-9)


def test_holm_leaves_out_what_is_no_test() -> None:
    assert holm([0.02, float("nan"), 0.01])[0] == 0.02
    assert np.isnan(holm([0.02, float("nan")])[1])
    assert holm([0.02, float("nan")])[0] == 0.02
    assert holm([]) == []


def test_interval_covers_the_cases() -> None:
    """One seed and one structure: the classical bootstrap of a mean, whose deviation is known."""
    d = np.random.default_rng(0).normal(0.1, 0.2, (1, 40, 1))
    mean, low, high = interval(d, resamples=10000)
    assert mean == pytest.approx(d.mean())
    error = d.std(ddof=1) / np.sqrt(40)
    assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.1 * error)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_interval_covers_the_seeds(seeds: int) -> None:
    """All cases alike: scipy's t test of the seeds' effects has the same bounds."""
    effects = np.random.default_rng(1).normal(0, 1, seeds)
    d = np.broadcast_to(effects[:, None, None], (seeds, 12, 1))
    for level in (0.5, 0.95):
        expected = stats.ttest_1samp(effects, 0).confidence_interval(level)
        assert interval(d, level=level)[1:] == pytest.approx(tuple(expected))


def test_both_parts_add_as_squares() -> None:
    cases, effects = np.random.default_rng(5).normal(0, 0.1, 30), np.array([-0.1, 0.0, 0.1])
    of_cases = interval(cases[None, :, None])
    d = cases[None, :, None] + effects[:, None, None]
    low = np.hypot(of_cases.mean - of_cases.low, stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    assert interval(d).mean - interval(d).low == pytest.approx(low)


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    cases = rng.normal(0, 0.05, (1, 30, 2))
    alike = np.repeat(cases, 4, axis=0)
    apart = alike + rng.normal(0, 0.1, (4, 1, 1))
    narrow, wide = (interval(d) for d in (alike, apart))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_structures_count_alike_and_undefined_values_are_left_out() -> None:
    d = np.full((2, 10, 2), np.nan)
    d[:, :, 0], d[:, :2, 1] = 0.2, 0.6
    assert interval(d).mean == pytest.approx(0.4)
    low, high = interval(d)[1:]
    # 0.2 where none of the two cases that have the second structure was drawn, stretched as said
    assert low == pytest.approx(0.4 - 0.2 * np.sqrt(10 / 9))
    assert high == pytest.approx(0.4)


def test_of_few_cases_no_bounds_are_given() -> None:
    assert np.isnan(interval(np.zeros((3, 4, 1))).low)
    only = np.full((3, 20, 1), np.nan)
    only[:, :4] = 1.0
    assert interval(only).mean == 1.0
    assert np.isnan(interval(only).high)


def test_compare_pairs_by_seed_case_and_structure() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 1, (1, 25, 1))
    other = difficulty + rng.normal(0, 0.01, (3, 25, 2))
    found = compare(other + 0.05, other)
    assert found.interval.low == pytest.approx(0.05)  # how hard the cases are doesn't matter
    assert found.by_seed == pytest.approx((0.05, 0.05, 0.05))
    assert found.p == pytest.approx(signed_rank(np.full(25, 0.05)))
    assert found.cases == 25
    swapped = compare(other[:, ::-1] + 0.05, other)
    assert swapped.interval.low < 0 < swapped.interval.high


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_case", "of_both"),
    [(6, 0.03, 0.05, 0.05), (3, 0.05, 0.0, 0.01), (3, 0.0, 0.05, 0.05), (3, 0.02, 0.05, 0.05), (2, 0.05, 0.05, 0.05)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(
    seeds: int, of_seed: float, of_case: float, of_both: float
) -> None:
    """With effects of seeds and of cases, 95 % intervals should hold the true difference, of few seeds too."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        d = rng.normal(0, of_seed, (seeds, 1, 1)) + rng.normal(0, of_case, (1, 25, 1))
        _, low, high = interval(d + rng.normal(0, of_both, (seeds, 25, 1)), resamples=300)
        held += low <= 0 <= high
    assert held / 400 >= 0.92


def test_ranks_by_hand() -> None:
    means = {"dice": [0.8, 0.9, 0.7], "hd95": [3.0, 4.0, 4.0], "gone": [0.1, float("nan"), 0.3]}
    better = {"dice": True, "hd95": False, "gone": True}
    assert average_ranks(means, better) == [(2 + 1) / 2, (1 + 2.5) / 2, (3 + 2.5) / 2]
    assert np.isnan(average_ranks({"gone": [float("nan"), 1.0]}, {"gone": True})).all()
