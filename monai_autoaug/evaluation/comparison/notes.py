# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a reader of a comparison has to know to judge it, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai_autoaug.evaluation.comparison.planning import Plan
from monai_autoaug.evaluation.comparison.rows import PLAIN, Row
from monai_autoaug.evaluation.comparison.statistics import smallest_p
from monai_autoaug.evaluation.result import LEAST_CASES

__all__ = ["counted", "notes", "plain_note", "power_note"]

_FEW_SEEDS = 5


def notes(
    plan: Plan, results: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], tests: int
) -> Iterator[str]:  # fmt: skip
    """The sentences.

    Args:
        plan: of the comparison.
        results: of the cells that are done, by what they are called.
        rows: what is said of the arms.
        tests: comparisons with the reference.
    """
    caution = plain_note(rows, plan.reference)
    if caution:
        yield caution
    yield from _cases(plan)
    seeds = len(plan.seeds)
    over = "test cases and seeds" if seeds > 1 else "test cases alone"
    yield (
        f"Differences to {plan.reference} are paired by seed, case and structure. Their 95 % intervals are over {over}"
        + (
            ": other test cases of the same kind, other training cases and other random numbers."
            if seeds > 1
            else "; how the result varies with the training isn't known of one seed."
        )
    )
    if 1 < seeds < _FEW_SEEDS:
        yield f"How much trainings vary is estimated from {seeds} seeds, so the intervals are wide (Student's t)."
    yield (
        "p is of Wilcoxon's signed-rank test over test cases (each with its mean over structures and seeds), corrected"
        f" by Holm's method for {counted(tests, 'comparison')}. 'Better' and 'worse' are said where the interval leaves"
        " out 0 and p is below 0.05."
    )
    power = power_note(len(plan.parts.test), tests)
    if power:
        yield power
    yield (
        "A structure that is neither there nor predicted counts as 1 (0 mm), one that is missed or invented as 0 (the"
        f" diagonal of the volume); surface Dice within {plan.setting.tolerance:g} mm. The average rank is over Dice,"
        " sensitivity, precision and HD95."
    )
    if plan.equal_time:
        yield (
            f"At equal time each arm has as many iterations as fit into the training time of {plan.reference}; the"
            " learning rate falls to its end in them."
        )
    yield from _machines([*results.values()])
    yield from _warnings(results)


def _cases(plan: Plan) -> Iterator[str]:
    """How cases were chosen, and who looked at which."""
    parts = plan.parts
    yield (
        f"{counted(len(parts.test), 'test case')}, which no arm has looked at. All arms train on the same cases for a"
        " seed, those that a method sets apart to learn from included; they are drawn from"
        f" {len(parts.pool)} cases by the seed."
    )
    choosing = [arm.name for arm in plan.arms if arm.chooses_epoch]
    others = "no other arm looks at them" if choosing else "no arm chooses anything by them"
    chosen = f"on which {', '.join(choosing)} choose their epoch; " if choosing else "which hosts want; "
    yield f"{counted(len(parts.validation), 'validation case')} beside these, {chosen}{others}."
    if plan.setting.test_time == "own":
        views = "nnU-Net's mirroring, learned views" if plan.setting.host == "nnunet" else "learned or mirrored views"
        yield f"Each arm averages at test time what it comes with ({views}), which its inference time shows."


def power_note(cases: int, tests: int) -> str:
    """That nothing could be shown with so few cases, where that is so; else empty.

    >>> power_note(5, 1)
    'With 5 test cases and 1 comparison no p can be below 0.05 (the smallest is 0.062), so nothing can be shown.'
    >>> power_note(20, 8)
    ''
    """
    smallest = smallest_p(cases, max(tests, 1))
    if smallest < 0.05 and cases >= LEAST_CASES:
        return ""
    return (
        f"With {counted(cases, 'test case')} and {counted(tests, 'comparison')} no p can be below 0.05 (the"
        f" smallest is {smallest:.2g}), so nothing can be shown."
    )


def plain_note(rows: Sequence[Row], reference: str) -> str:
    """That the reference itself does worse than no augmentation, where that is so; else empty.

    >>> plain_note([], "nnunet")
    ''
    """
    if not any(row.arm == PLAIN and row.kind == "better" for row in rows):
        return ""
    return (
        f"Training without augmentation ({PLAIN}) is better than {reference}, so to be better than {reference} doesn't"
        f" show that an augmentation helps: compare with {PLAIN} (--resume --reference {PLAIN}; trains nothing)."
    )


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "case"), counted(3, "case")
    ('1 case', '3 cases')
    """
    return f"{number} {what}" + ("" if number == 1 else "s")


def _warnings(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What trainings have warned of, each text once."""
    who: dict[str, list[str]] = {}
    for name, result in results.items():
        for text in result["warnings"]:
            who.setdefault(text, []).append(name)
    for text, names in who.items():
        yield f"Training of {'; '.join(names)} has warned: {text}."


def _machines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What times are of, and where cells have run under different conditions."""
    if results and all(r["device"]["kind"] == "cpu" and r["training"].get("cpu_seconds") for r in results):
        yield "Training times are CPU time, which other programs on the machine don't change; inference times are not."
    devices = {(r["device"]["kind"], r["device"]["name"]) for r in results}
    if len(devices) > 1:
        kinds = {kind for kind, _ in devices}
        yield (
            f"Cells ran on {len(devices)} kinds of machine, so their times can't be compared"
            + (", and on CPU and GPU, whose precision differs." if len(kinds) > 1 else ".")
        )
    versions = {name for r in results for name in r["versions"]}
    for name in sorted(versions):
        found = sorted({r["versions"].get(name, "?") for r in results})
        if len(found) > 1:
            yield f"Cells ran with different versions of {name}: {', '.join(found)}."
