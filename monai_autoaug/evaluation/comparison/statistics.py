# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How sure a difference between two arms is: intervals over seeds and cases, a test, its correction, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from monai_autoaug.evaluation.result import LEAST_CASES, Interval, class_mean

__all__ = [
    "Difference", "average_ranks", "bootstrap", "compare", "holm", "interval", "signed_rank",
    "smallest_p",
]  # fmt: skip

Values = NDArray[np.float64]


class Difference(NamedTuple):
    """How one arm differs from another.

    Args:
        interval: mean difference over structures, cases and seeds, with its 95 % bounds (see `interval`); NaN bounds
            of too few cases.
        by_seed: mean difference of each seed.
        p: of the signed-rank test over cases, not corrected; NaN where there are no pairs.
        cases: test cases in which both have a value.
    """

    interval: Interval
    by_seed: tuple[float, ...]
    p: float
    cases: int


def compare(arm: Values, other: Values, *, resamples: int = 5000, seed: int = 0) -> Difference:
    """Difference of two arms, paired by seed, case and structure.

    Args:
        arm: (seeds, cases, structures), NaN where a value is not defined.
        other: of the same shape, with the same seeds, cases and structures.
        resamples: of the bootstrap.
        seed: of its draws.

    >>> a, b = np.random.default_rng(0).normal(0.8, 0.05, (2, 3, 20, 1))
    >>> found = compare(a + 0.3, b)
    >>> found.interval.low > 0, found.p < 0.001
    (True, True)
    """
    paired = arm - other
    by_seed = class_mean(paired)
    cases = _case_means(paired)
    return Difference(
        interval(paired, resamples=resamples, seed=seed), tuple(by_seed.tolist()), signed_rank(cases), len(cases)
    )


def _case_means(paired: Values) -> Values:
    """One number a case: the mean over seeds and structures of what is defined; cases without any are left out."""
    defined = ~np.isnan(paired)
    count = defined.sum((0, 2))
    total = np.where(defined, paired, 0).sum((0, 2))
    means: Values = total[count > 0] / count[count > 0]
    return means


def signed_rank(differences: Values) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; exact where there are no ties and up to 50 pairs.

    A case counts once, with the mean over its structures and seeds: trainings on the same case are no independent
    observations. Pairs without a difference are left out; if nothing is left, p is 1.

    Args:
        differences: one a case.

    Source: Wilcoxon 1945, "Individual comparisons by ranking methods".

    >>> signed_rank(np.arange(1.0, 9.0))
    0.0078125
    >>> signed_rank(np.zeros(8))
    1.0
    """
    if not len(differences):
        return float("nan")
    # what is left of rounding is no difference, and no order either
    rounded = np.round(differences, 12)
    if not rounded.any():
        return 1.0
    return float(stats.wilcoxon(rounded, zero_method="wilcox", alternative="two-sided").pvalue)


def smallest_p(cases: int, tests: int = 1) -> float:
    """The smallest p-value, corrected by `holm`, that so many cases can give, if all differ in one direction.

    >>> smallest_p(6), smallest_p(6, tests=5)
    (0.03125, 0.15625)
    """
    return min(1.0, 2.0 ** (1 - cases) * tests)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are; NaN is none and stays.

    Args:
        values: p-values of one family of tests.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(values) if not np.isnan(p)), key=lambda i: values[i])
    corrected, largest = [float("nan")] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(order) - place)))
        corrected[i] = largest
    return corrected


def interval(paired: Values, *, level: float = 0.95, resamples: int = 5000, seed: int = 0) -> Interval:
    """Mean of paired differences with its interval over seeds and cases.

    It tells how the mean would vary with other test cases of the same kind and with other trainings (initial weights,
    batches, and which cases are trained on, as these follow the seed). Of cases there are many, so their part is a
    bootstrap (see `bootstrap`); of seeds there are few, of which no resampling shows how much they vary, so their part
    is Student's t interval of the mean over seeds. As both are independent, the distances of a bound from the mean add
    as squares do. What varies with seed and case together is in both parts, which errs on the safe side. Of one seed
    the interval is over cases alone, and of fewer than `LEAST_CASES` cases no bounds are given.

    Args:
        paired: (seeds, cases, structures), NaN where a value is not defined.
        level: share of such intervals that hold the true mean, in (0, 1).
        resamples: number of draws of the bootstrap.
        seed: of the draws.

    Source: Student 1908, "The probable error of a mean"; Howe 1974, "Approximate confidence limits on the mean of X+Y"
    for the sum.

    >>> interval(np.full((3, 10, 2), 0.25))
    Interval(mean=0.25, low=0.25, high=0.25)
    """
    by_seed = class_mean(paired)  # (seeds,)
    mean, count = float(np.mean(by_seed)), len(by_seed)
    low, high = bootstrap(_mean_over_seeds(paired), level=level, resamples=resamples, seed=seed)
    of_seeds = 0.0
    if count > 1:
        of_seeds = float(stats.t.ppf((1 + level) / 2, count - 1) * np.std(by_seed, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - float(np.hypot(low, of_seeds)), mean + float(np.hypot(high, of_seeds)))


def bootstrap(values: Values, *, level: float = 0.95, resamples: int = 5000, seed: int = 0) -> tuple[float, float]:
    """How far the bounds of a percentile bootstrap over cases are below and above the mean; NaN of too few cases.

    The draws are stretched by ``sqrt(n / (n - 1))``, without which n draws of n values vary too little.

    Args:
        values: (cases, structures), NaN where a value is not defined.
        level: share of the resampled means within the bounds, in (0, 1).
        resamples: number of draws.
        seed: of the draws.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".

    >>> bootstrap(np.full((10, 2), 0.25))
    (0.0, 0.0)
    """
    cases = len(values)
    if int((~np.isnan(values)).any(axis=1).sum()) < LEAST_CASES:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(cases, size=(resamples, cases))
    apart = class_mean(values[drawn]) - class_mean(values)
    apart = apart[~np.isnan(apart)] * np.sqrt(cases / (cases - 1))  # a structure of few cases may be in none of them
    low, high = np.quantile(apart, [(1 - level) / 2, (1 + level) / 2])
    return max(0.0, -float(low)), max(0.0, float(high))


def _mean_over_seeds(paired: Values) -> Values:
    """(..., seeds, cases, structures) -> without seeds."""
    defined = ~np.isnan(paired)
    count, total = defined.sum(-3), np.where(defined, paired, 0).sum(-3)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def average_ranks(means: Mapping[str, Sequence[float]], higher_is_better: Mapping[str, bool]) -> list[float]:
    """The rank of each arm, averaged over metrics; 1 is best, equal arms share their ranks.

    Args:
        means: metric -> its mean for each arm, in one order; a metric that some arm has no value of doesn't count.
        higher_is_better: by metric.

    Source: paper 002, section IV ("AVG rank" over DSC, SEN, PRC and HD).

    >>> average_ranks({"dice": [0.9, 0.8, 0.8], "hd95": [2.0, 1.0, 3.0]}, {"dice": True, "hd95": False})
    [1.5, 1.75, 2.75]
    """
    ranks = [
        stats.rankdata(np.negative(values) if higher_is_better[metric] else values)
        for metric, values in means.items()
        if not np.isnan(values).any()
    ]
    count = max((len(values) for values in means.values()), default=0)
    return np.mean(ranks, axis=0).tolist() if ranks else [float("nan")] * count
