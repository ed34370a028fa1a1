# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a comparison's result consists of, and what is said of an arm."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from monai_autoaug.evaluation.metrics import METRICS
from monai_autoaug.evaluation.result import LEAST_CASES

__all__ = [
    "COLUMNS", "LEVEL", "PLAIN", "PRIMARY", "RANKED", "ComparedMetric", "Kind", "Row", "Summary", "Versus", "verdict",
]  # fmt: skip

PRIMARY = "dice"  # which the verdict is of
RANKED = ("dice", "sensitivity", "precision", "hd95")  # those of paper 002's average rank
COLUMNS = tuple(METRICS)
LEVEL = 0.05
PLAIN = "none"  # the arm without augmentation, which says whether a reference was worth beating
Kind = Literal["reference", "better", "worse", "none", "unknown"]


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of an arm.

    Args:
        mean: over structures, cases and seeds; None where nothing has a value.
        sd: standard deviation over seeds; None of one seed.
        structures: mean of each structure.
    """

    mean: float | None
    sd: float | None
    structures: dict[str, float | None]


@dataclass(frozen=True)
class Versus:
    """An arm against the reference, by one metric.

    Args:
        mean: difference, paired by seed, case and structure; None where no case has a value.
        low: lower bound of its 95 % interval over seeds and cases; None of too few cases.
        high: upper bound.
        by_seed: mean difference of each seed.
        p: of the signed-rank test over cases.
        p_corrected: by Holm's method, for all tests of this metric in the comparison.
        cases: test cases.
    """

    mean: float | None
    low: float | None
    high: float | None
    by_seed: tuple[float | None, ...]
    p: float | None
    p_corrected: float | None
    cases: int


@dataclass(frozen=True)
class Row:
    """An arm with a number of training cases.

    Args:
        arm: its name.
        what: it is.
        cases: training cases.
        equal: what it has in common with the others, "iterations" or "time".
        seeds: whose cells are done.
        missing: seeds whose cells are not.
        metrics: by name.
        rank: average over the metrics of `RANKED` among the arms of the same number of cases; 1 is best.
        versus: the reference, by metric; None of the reference itself.
        kind: of the verdict.
        verdict: in words.
        iterations: of a training.
        training_seconds: median over seeds.
        training_ratio: to the reference's, by seed; the median of these.
        inference_seconds: of one case, median over seeds.
        host_mib: largest memory of the process, in MiB.
        device_mib: of tensors on the GPU.
    """

    arm: str
    what: str
    cases: int
    equal: str
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    metrics: dict[str, ComparedMetric]
    rank: float | None
    versus: dict[str, Versus] | None
    kind: Kind
    verdict: str
    iterations: int | None = None
    training_seconds: float | None = None
    training_ratio: float | None = None
    inference_seconds: float | None = None
    host_mib: float | None = None
    device_mib: float | None = None


@dataclass(frozen=True)
class Summary:
    """A comparison's result: plain numbers, strings, lists and dicts, see `to_dict`.

    Args:
        host: "monai" or "nnunet".
        reference: the arm that all others are compared with.
        structures: names.
        test_cases: how many.
        rows: by number of training cases, in the order of the arms; those of equal time last.
        overall: average rank of each arm over all numbers of training cases, at equal iterations.
        notes: what a reader has to know.
        provenance: data, versions, machines.
        done: cells that are.
        total: cells in all.
    """

    host: str
    reference: str
    structures: tuple[str, ...]
    test_cases: int
    rows: tuple[Row, ...]
    overall: dict[str, float | None]
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    done: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def verdict(versus: Versus | None, *, is_reference: bool = False) -> tuple[Kind, str]:
    """What can be said of an arm: "better" and "worse" only where interval and corrected test agree.

    Args:
        versus: the arm against the reference, by Dice.
        is_reference: whether it is the reference itself.

    >>> verdict(Versus(0.021, 0.008, 0.034, (0.02, 0.022), 0.001, 0.004, 30))
    ('better', 'better by 0.021 [0.008, 0.034]')
    >>> verdict(Versus(0.01, -0.004, 0.02, (0.0, 0.02), 0.2, 0.4, 30))[1]
    'no gain shown (+0.010 [-0.004, +0.020], p = 0.40)'
    """
    if is_reference:
        return "reference", "the reference"
    if versus is None or versus.mean is None:
        return "unknown", "not known yet"
    if versus.low is None or versus.high is None:
        return "none", f"no gain shown ({versus.mean:+.3f}; of fewer than {LEAST_CASES} test cases nothing can be said)"
    decided = versus.p_corrected is not None and versus.p_corrected < LEVEL
    if decided and versus.low > 0:
        return "better", f"better by {versus.mean:.3f} [{versus.low:.3f}, {versus.high:.3f}]"
    if decided and versus.high < 0:
        return "worse", f"worse by {-versus.mean:.3f} [{-versus.high:.3f}, {-versus.low:.3f}]"
    p = "" if versus.p_corrected is None else f", p = {versus.p_corrected:.2f}"
    if versus.p_corrected is not None and versus.p_corrected < 0.01:
        p = f", p = {versus.p_corrected:.1g}"
    return "none", f"no gain shown ({versus.mean:+.3f} [{versus.low:+.3f}, {versus.high:+.3f}]{p})"
