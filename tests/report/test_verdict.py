# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A gain is claimed only where it is shown, against every other training, on the same cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_autoaug.errors import DataError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.report.source import Source
from monai_autoaug.report.verdict import Baseline, differences, verdict_of

RNG = np.random.default_rng(0)
BASE = RNG.normal(0.8, 0.05, (12, 2))
NOISE = RNG.normal(0, 0.01, (12, 2))


def evaluation(values: Any, cases: int = 12, names: tuple[str, ...] = ("liver", "tumour")) -> Evaluation:
    return Evaluation(tuple(f"case_{k}" for k in range(cases)), names, {"dice": np.asarray(values)[:cases]})


def source(values: Any = BASE, *, method: str = "adversarial", count: int = 12, **facts: Any) -> Source:
    return Source("MONAI", Path("run"), method, ("liver", "tumour"), (), evaluation(values, count), facts=facts,
                  options={"seed": 0, "method": method})  # fmt: skip


def baseline(shift: float, name: str = "random", **given: Any) -> Baseline:
    """Another training whose Dice is lower by about ``shift``."""
    return Baseline(name, evaluation(BASE - shift + NOISE), given.get("source"))


def judged(given: Source, *against: Baseline) -> dict[str, Any]:
    return verdict_of(given, differences(given, against) if given.evaluation else [])


@pytest.mark.parametrize(
    ("shift", "outcome", "headline"),
    [
        (0.05, "gain", "A gain is shown"),
        (0.0, "none", "No gain shown"),
        (-0.05, "harm", "No gain shown: it does worse"),
    ],
)
def test_the_interval_decides(shift: float, outcome: str, headline: str) -> None:
    (row,) = differences(source(), [baseline(shift)])
    assert row["mean"] == pytest.approx(shift - NOISE.mean())
    assert row["low"] < row["mean"] < row["high"]
    assert row["cases"] == 12
    assert [part["name"] for part in row["structures"]] == ["liver", "tumour"]
    assert row["structures"][0]["mean"] == pytest.approx(shift - NOISE[:, 0].mean())
    assert row["here"] == pytest.approx(BASE.mean())
    verdict = judged(source(), baseline(shift))
    assert (verdict["outcome"], verdict["headline"]) == (outcome, headline)
    assert "other seeds" in verdict["sentences"][-1]


def test_a_gain_has_to_be_one_over_every_other_training() -> None:
    both = judged(source(), baseline(0.05, "none"), baseline(0.0, "random"))
    assert (both["outcome"], both["headline"]) == ("none", "No gain shown")
    assert "from random includes 0" in both["sentences"][0]
    assert "higher than with none, though" in both["sentences"][0]
    assert judged(source(), baseline(0.05, "none"), baseline(0.04, "random"))["outcome"] == "gain"
    assert judged(source(), baseline(0.05, "none"), baseline(-0.04, "random"))["outcome"] == "harm"


def test_without_a_comparison_no_gain_is_shown() -> None:
    alone = judged(source())
    assert (alone["outcome"], alone["headline"]) == ("unknown", "No gain shown")
    assert "--against" in alone["sentences"][1]
    control = judged(source(method="random"))
    assert "Nothing was learned" in control["sentences"][0]
    assert "gain" not in control["headline"]
    assert judged(source(method="random"), baseline(0.05, "none"))["outcome"] == "unknown"
    unfinished = Source("MONAI", Path("run"), "adversarial", (), (), ended=False)
    assert "has not ended" in judged(unfinished)["sentences"][0]


def test_of_few_cases_nothing_is_claimed() -> None:
    given = source(count=4)
    (row,) = differences(given, [Baseline("random", evaluation(BASE - 0.5, 4))])
    assert (row["low"], row["high"], row["outcome"]) == (None, None, "few")
    assert judged(given, Baseline("random", evaluation(BASE - 0.5, 4)))["outcome"] == "unknown"


def test_cases_are_paired_by_name() -> None:
    mixed = evaluation(BASE - 0.05)
    order = RNG.permutation(12)[:9]
    other = Evaluation(tuple(mixed.cases[k] for k in order), mixed.classes, {"dice": mixed.values["dice"][order]})
    (row,) = differences(source(), [Baseline("random", other)])
    assert row["mean"] == pytest.approx(0.05)
    assert (row["cases"], row["left_out"]) == (9, 3)
    strangers = Evaluation(("x", "y"), mixed.classes, {"dice": BASE[:2]})
    with pytest.raises(DataError, match="other cases"):
        differences(source(), [Baseline("random", strangers)])
    with pytest.raises(DataError, match="other structures"):
        differences(source(), [Baseline("random", evaluation(BASE, names=("a", "b")))])


def test_values_that_are_not_defined_are_left_out_of_both() -> None:
    mine, theirs = BASE.copy(), BASE - 0.05
    mine[:2, 1] = theirs[:2, 1] = np.nan
    (row,) = differences(source(mine), [Baseline("random", evaluation(theirs))])
    assert row["mean"] == pytest.approx(0.05)
    assert row["cases"] == 12
    mine[:, 1] = theirs[:, 1] = np.nan  # a structure that no case has
    (row,) = differences(source(mine), [Baseline("random", evaluation(theirs))])
    assert [part["name"] for part in row["structures"]] == ["liver"]


def test_a_structure_that_one_training_invents_counts_against_it() -> None:
    """Labels without it, where Dice of the other training has no value."""
    mine, theirs = BASE.copy(), BASE - 0.01
    mine[6:], theirs[6:] = 0.0, np.nan
    (row,) = differences(source(mine), [Baseline("random", evaluation(theirs))])
    assert (row["cases"], row["outcome"]) == (12, "harm")
    assert row["mean"] == pytest.approx(-0.495)
    (turned,) = differences(source(theirs), [Baseline("random", evaluation(mine))])
    assert turned["mean"] == pytest.approx(0.495)


@pytest.mark.parametrize(
    "options", [{"epochs": 20}, {"parameters": 7}, {"learning_rate": 1e-4}, {"network": "segresnet"}]
)
def test_trainings_that_are_not_alike_show_no_gain(options: dict[str, Any]) -> None:
    facts = {"epochs": 40, "parameters": 9}
    mine = source(**facts)
    other = source(method="random", **(facts | {k: v for k, v in options.items() if k in facts}))
    mine = replace(mine, options={**mine.options, "learning_rate": 1e-3, "network": "unet"})
    told = {"learning_rate": 1e-3, "network": "unet"} | {k: v for k, v in options.items() if k not in facts}
    other = replace(other, options={**other.options, **told})
    verdict = judged(mine, baseline(0.05, source=other))
    assert (verdict["outcome"], verdict["headline"]) == ("unknown", "No gain shown")
    assert "More than the augmentation differs from random" in verdict["sentences"][0]


def test_another_seed_is_told_and_a_gain_may_be_one() -> None:
    other = replace(source(method="random"), options={"seed": 1})
    (row,) = differences(source(), [baseline(0.05, source=other)])
    assert (row["unlike"], row["unsure"]) == ([], ["seed: 0 here, 1 there"])
    assert judged(source(), baseline(0.05, source=other))["outcome"] == "gain"


def test_an_epoch_that_was_chosen_by_these_cases_shows_no_gain() -> None:
    """Over a training that was not; over one that was, too, it may."""
    verdict = judged(source(method="task_driven"), baseline(0.05, source=source(method="random")))
    assert verdict["outcome"] == "unknown"
    assert "chosen by these validation cases" in verdict["sentences"][0]
    assert judged(source(method="task_driven"), baseline(0.05))["outcome"] == "unknown"
    both = judged(source(method="task_driven"), baseline(0.05, source=source(method="task_driven")))
    assert both["outcome"] == "gain"


def test_what_else_differs_is_told() -> None:
    facts = {"epochs": 40, "iterations": 2000, "cases": {"train": 20, "meta": 5}, "patch_size": [32, 32, 32]}
    other = source(method="random", **(facts | {"epochs": 20, "cases": {"train": 30}, "patch_size": [16, 32, 32]}))
    (row,) = differences(source(**facts), [baseline(0.0, source=other)])
    assert row["unlike"] == [
        "epochs: 40 here, 20 there", "patch size: 32 × 32 × 32 here, 16 × 32 × 32 there",
        "cases to learn from: 25 here, 30 there",
    ]  # fmt: skip
    (same,) = differences(source(**facts), [baseline(0.0, source=source(method="random", **facts))])
    assert same["unlike"] == []
    (unknown,) = differences(source(**facts), [baseline(0.0)])
    assert unknown["unlike"] == []
    assert "not known" in unknown["unsure"][0]


def test_another_run_of_the_same_method_is_called_so() -> None:
    (row,) = differences(source(), [baseline(0.0, "adversarial")])
    assert row["name"] == "another run of adversarial"


def test_of_the_same_method_with_other_options_these_are_told() -> None:
    options = source().options
    mine = replace(source(), options={**options, "method_options": {"width": 4}})
    start = replace(source(), options={**options, "method_options": {"width": 4, "mode": "affine"}})
    (row,) = differences(mine, [baseline(0.0, "adversarial", source=start)])
    assert row["name"] == 'adversarial with mode="affine"'
    (row,) = differences(start, [baseline(0.0, "adversarial", source=mine)])
    assert row["name"] == "another run of adversarial"
