# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Whether learned augmentation has helped: differences from other trainings on the same cases, in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation import LEAST_CASES, Evaluation
from monai_autoaug.evaluation.comparison.statistics import compare
from monai_autoaug.evaluation.metrics import decide_pairs
from monai_autoaug.evaluation.result import class_mean
from monai_autoaug.methods import METHODS, find
from monai_autoaug.report.reading import read_evaluation, read_source
from monai_autoaug.report.source import Source, finite

__all__ = ["Baseline", "chooses_epoch", "differences", "read_baseline", "verdict_of"]

NOTHING_LEARNED = ("none", "random")
# what has to be alike for a difference to be the augmentation's
_ALIKE = {
    "epochs": "epochs", "iterations": "iterations", "batch_size": "batch size", "patch_size": "patch size",
    "parameters": "network parameters", "spacing": "voxel size",
}  # fmt: skip
_ALIKE_OPTIONS = {"learning_rate": "learning rate", "weight_decay": "weight decay", "network": "network"}


@dataclass(frozen=True)
class Baseline:
    """Another training that this one is compared with.

    Args:
        name: what it is called: its method, or the trainer's.
        evaluation: of its validation cases.
        source: what its folder says, or None for a trainer of plain nnU-Net.
    """

    name: str
    evaluation: Evaluation
    source: Source | None = None


def read_baseline(folder: str | Path) -> Baseline:
    """Read a training to compare with: a run, a fold of this package's trainers, or one of plain nnU-Net's.

    Raises:
        ConfigError: it is neither, or its validation cases have not been evaluated.
    """
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    try:
        source = read_source(folder)
    except ConfigError:
        if evaluation is None:
            raise
        return Baseline(folder.parent.name.split("__")[0], evaluation)  # plain nnU-Net names the folder by the trainer
    if evaluation is None:
        raise ConfigError(
            f"{folder}: has no evaluation of its validation cases to compare with. To do: let it end (train --resume,"
            " or nnUNetv2_train --val)"
        )
    name = str(source.options.get("trainer") or source.method)
    return Baseline(name, evaluation, source)


def _paired(one: Evaluation, other: Evaluation, what: str) -> tuple[Any, Any, list[str]]:
    """Dice of the cases that both have, (1, cases, structures) each."""
    if one.classes != other.classes:
        raise DataError(
            f"{what} has other structures", expected=", ".join(one.classes), came=", ".join(other.classes),
            remedy="compare runs on the same data set",
        )  # fmt: skip
    shared = [case for case in one.cases if case in set(other.cases)]
    if not shared:
        remedy = "train both with the same --split-seed and --validation-cases"
        raise DataError(f"{what} was validated on other cases", remedy=remedy)
    rows = [[e.values["dice"][e.cases.index(case)] for case in shared] for e in (one, other)]
    return *decide_pairs(np.array(rows[0])[None], np.array(rows[1])[None]), shared


def _unlike(source: Source, other: Source | None) -> list[str]:
    """In which of what has to be alike for a difference to be the augmentation's two trainings differ."""
    found = []
    if chooses_epoch(source.method) and not (other is not None and chooses_epoch(other.method)):
        found.append("epoch: chosen by these validation cases here, the last one there, so the result here is too good")
    if other is None:
        return found
    pairs = [(words, source.facts.get(key), other.facts.get(key)) for key, words in _ALIKE.items()]
    pairs += [(words, source.options.get(key), other.options.get(key)) for key, words in _ALIKE_OPTIONS.items()]
    for words, mine, theirs in pairs:
        if mine is not None and theirs is not None and mine != theirs:
            found.append(f"{words}: {_said(mine)} here, {_said(theirs)} there")
    trained = [sum((s.facts.get("cases") or {}).get(part, 0) for part in ("train", "meta")) for s in (source, other)]
    if all(trained) and trained[0] != trained[1]:
        found.append(f"cases to learn from: {trained[0]} here, {trained[1]} there")
    return found


def _unsure(source: Source, other: Source | None) -> list[str]:
    """What a reader should know of another training, without which a difference still says something."""
    if other is None:
        return ["whether both trained alike is not known (only its validation could be read)"]
    seeds = [s.options.get("seed") for s in (source, other)]
    return [] if seeds[0] == seeds[1] else [f"seed: {seeds[0]} here, {seeds[1]} there"]


def chooses_epoch(method: str) -> bool:
    """Whether a method deploys the network of the epoch that was best on the validation cases.

    >>> chooses_epoch("task_driven"), chooses_epoch("adversarial")
    (True, False)
    """
    return method in METHODS and find(method).keeps_best


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " × ".join(_said(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def differences(source: Source, against: Sequence[Baseline]) -> list[dict[str, Any]]:
    """How this training's Dice differs from each other's, paired by case.

    Args:
        source: the training, with an evaluation.
        against: the others.

    Returns:
        For each: ``name``, ``mean``, ``low`` and ``high`` (95 % bootstrap interval over cases; None of too few), ``p``
        (Wilcoxon's signed-rank test over cases), ``cases``, ``here`` and ``there`` (mean Dice), ``outcome`` ("gain",
        "none", "harm" or "few"), ``structures`` (the same of each), ``unlike`` (in what else they differ, so that
        nothing follows from the difference) and ``unsure`` (what a reader should know besides).

    Raises:
        DataError: they have other structures, or no case in common.
    """
    assert source.evaluation is not None  # noqa: S101  # callers have asked
    rows, own = [], str(source.options.get("trainer") or source.method)
    for baseline in against:
        name = baseline.name if baseline.name != own else _told_apart(source, baseline)
        mine, theirs, shared = _paired(source.evaluation, baseline.evaluation, baseline.name)
        per_structure = []
        for k, structure in enumerate(source.evaluation.classes):
            if np.isnan(mine[..., k] - theirs[..., k]).all():
                continue
            per_structure.append({"name": structure, **_difference(mine[..., [k]], theirs[..., [k]])})
        rows.append(
            {"name": name, **_difference(mine, theirs), "structures": per_structure,
             "unlike": _unlike(source, baseline.source), "unsure": _unsure(source, baseline.source),
             "left_out": len(source.evaluation.cases) - len(shared)}
        )  # fmt: skip
    return rows


def _told_apart(source: Source, baseline: Baseline) -> str:
    """What another training of the same name is called: by the options of its method that are not those of this one."""
    mine = source.options.get("method_options") or {}
    theirs = (baseline.source.options.get("method_options") if baseline.source else None) or {}
    other = [f"{name}={json.dumps(value)}" for name, value in theirs.items() if mine.get(name) != value]
    return f"{baseline.name} with {', '.join(other)}" if other else f"another run of {baseline.name}"


def _difference(mine: Any, theirs: Any) -> dict[str, Any]:
    found = compare(mine, theirs)
    mean, low, high = found.interval
    outcome = "none"
    if np.isnan(low):
        outcome = "few"
    elif low > 0:
        outcome = "gain"
    elif high < 0:
        outcome = "harm"
    both = ~np.isnan(mine - theirs)
    here, there = (float(class_mean(np.where(both, x, np.nan))[0]) for x in (mine, theirs))
    return {
        "mean": finite(mean), "low": finite(low), "high": finite(high), "p": finite(found.p), "cases": found.cases,
        "here": finite(here), "there": finite(there), "outcome": outcome,
    }  # fmt: skip


def verdict_of(source: Source, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain words for what `differences` found.

    A gain is claimed only where the whole interval of the difference from every other training is above 0, and only if
    nothing but the augmentation differs between them, as far as is known.

    Args:
        source: the training.
        rows: of `differences`; none: nothing was compared.

    Returns:
        ``outcome`` ("gain", "none", "harm" or "unknown"), ``headline`` and ``sentences``.
    """
    seeds = (
        "The interval tells how the difference would vary with other cases, not with other trainings: repeat both with"
        " other seeds before you rely on it (monai-autoaug compare does)."
    )
    if source.evaluation is None:
        what = "its validation cases have not been evaluated" if source.ended else "this training has not ended"
        return {"outcome": "unknown", "headline": "No gain shown", "sentences": [f"There is no result yet: {what}."]}
    if not rows:
        if source.method in NOTHING_LEARNED:
            told = f"Nothing was learned here (method {source.method}): this is a training to compare others with."
            return {"outcome": "unknown", "headline": "A reference, no comparison", "sentences": [told]}
        return {
            "outcome": "unknown", "headline": "No gain shown",
            "sentences": [
                "This training has not been compared with any other, so nothing is known of what learned augmentation"
                " has gained.",
                "Train the same with method random (augmentation within the same bounds that is not learned) and with"
                " method none, with the same seed and split, and give their folders to this report by --against.",
            ],
        }  # fmt: skip
    outcomes = [row["outcome"] for row in rows]
    if "few" in outcomes:
        told = f"Of fewer than {LEAST_CASES} validation cases no interval can be given."
        return {"outcome": "unknown", "headline": "No gain shown", "sentences": [told]}
    if source.method in NOTHING_LEARNED:
        told = f"Nothing was learned here (method {source.method}); the differences are those of the references."
        return {"outcome": "unknown", "headline": "References compared", "sentences": [told, seeds]}
    unlike = [f"{row['name']} ({'; '.join(row['unlike'])})" for row in rows if row["unlike"]]
    if unlike:
        told = f"More than the augmentation differs from {' and '.join(unlike)}: what is due to which can't be told."
        todo = "Train both alike (the same options but for the method's), or let monai-autoaug compare do it."
        return {"outcome": "unknown", "headline": "No gain shown", "sentences": [told, todo]}
    if all(outcome == "gain" for outcome in outcomes):
        other = "the other training" if len(rows) == 1 else f"all {len(rows)} other trainings"
        told = f"Dice is higher than in {other} on the same cases; the whole 95 % interval is above 0."
        return {"outcome": "gain", "headline": "A gain is shown", "sentences": [told, seeds]}
    worse = [row["name"] for row in rows if row["outcome"] == "harm"]
    if worse:
        told = f"Dice is lower than with {' and '.join(worse)} on the same cases; the whole 95 % interval is below 0."
        return {"outcome": "harm", "headline": "No gain shown: it does worse", "sentences": [told, seeds]}
    level = " and ".join(row["name"] for row in rows if row["outcome"] == "none")
    told = f"The 95 % interval of the difference from {level} includes 0: what is seen may be chance."
    better = [row["name"] for row in rows if row["outcome"] == "gain"]
    if better:
        told += f" Dice is higher than with {' and '.join(better)}, though."
    return {"outcome": "none", "headline": "No gain shown", "sentences": [told, seeds]}
