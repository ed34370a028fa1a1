# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a report says of learned policies: every operation against its start, what is decided, and the views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_autoaug.evaluation.comparison.statistics import compare
from monai_autoaug.evaluation.metrics import decide_pairs
from monai_autoaug.policies.evidence import DECIDED
from monai_autoaug.report.names import headings, readable, readable_cascade
from monai_autoaug.report.policy_rows import PolicyRow, policy_rows, verdict
from monai_autoaug.report.source import Source, finite

__all__ = ["course_of", "most_changed", "policy_content", "views_content"]

_LINES = 6  # curves of a class


def policy_content(source: Source) -> dict[str, Any] | None:
    """The training policy, or None where there is none.

    Returns:
        ``verdict`` (a sentence) and ``well``; ``classes``; ``learned``: whether the start is known; ``cascades``: each
        with its name and its ``operations``, each with a cell for every class (probability, start, advantage in
        standard errors, ``decided``, ``no_op``); ``risen``: for each class what rose and is decided; ``collapsed``:
        cascades that are as good as certain of an operation that is not decided; ``course``: probabilities over the
        epochs.
    """
    if source.policies is None or source.policies.training is None:
        return None
    rows, seen = policy_rows(source.policies, source.no_ops), source.policies.seen
    told, well = verdict(rows)
    classes = list(dict.fromkeys(row.kind for row in rows))
    evidence: dict[tuple[str, int], float | None] = {}
    if seen is not None:
        for k, name in enumerate(classes):
            for place in range(seen.advantage.shape[1]):
                error = float(seen.error[k, place])
                known = error > 0 and error != float("inf")
                evidence[name, place] = round(float(seen.advantage[k, place]) / error, 2) if known else None
    by_class = {name: [row for row in rows if row.kind == name] for name in classes}
    cascades: list[dict[str, Any]] = []
    for place, row in enumerate(by_class[classes[0]]):
        if not cascades or cascades[-1]["name"] != row.cascade:
            cascades.append({"name": row.cascade, "readable": readable_cascade(row.cascade), "operations": []})
        cells = {name: _cell(by_class[name][place], evidence.get((name, place))) for name in classes}
        cascades[-1]["operations"].append({"name": row.operation, "readable": readable(row.operation), "cells": cells})
    for cascade in cascades:  # what tells a cascade's operations apart
        short = headings([o["name"] for o in cascade["operations"][1:]])
        for operation, words in zip(cascade["operations"], ["nothing", *short], strict=True):
            operation["short"] = words
    return {
        "verdict": told, "well": well, "classes": classes, "learned": seen is not None, "errors": DECIDED,
        "cascades": cascades, "risen": {
            name: _risen([r for r in of_class if r.rose and r.decided and not r.no_op])
            for name, of_class in by_class.items()
        },
        "collapsed": [
            {"kind": row.kind, "cascade": row.cascade, **_risen([row])[0]} for row in rows if row.collapsed
        ],
        "no_ops": sorted({readable(row.operation) for row in rows if row.no_op}),
        "course": {name: course_of(source.course, name, of_class) for name, of_class in by_class.items()},
    }  # fmt: skip


def _cell(row: PolicyRow, errors: float | None) -> dict[str, Any]:
    """One operation of one class."""
    return {
        "probability": round(row.probability, 4), "start": None if row.start is None else round(row.start, 4),
        "standard_errors": errors, "decided": row.decided and not row.no_op, "no_op": row.no_op,
    }  # fmt: skip


def _risen(rows: Sequence[PolicyRow]) -> list[dict[str, Any]]:
    """Operations with their probabilities at the start and now, what rose most first."""
    return [
        {"operation": readable(r.operation), "start": round(r.start or 0.0, 4), "probability": round(r.probability, 4)}
        for r in sorted(rows, key=lambda r: (r.start or 0.0) - r.probability)
    ]


def most_changed(rows: Sequence[PolicyRow], number: int) -> list[PolicyRow]:
    """The operations of one class that rose, the decided first, one a cascade; of a given policy the likeliest.

    Args:
        rows: of one class.
        number: how many.
    """
    acting = [row for row in rows if not row.operation.startswith("no ") and not row.no_op]
    acting = [row for row in acting if row.rose or row.start is None]
    acting.sort(key=lambda row: (not row.decided, (row.start or 0.0) - row.probability))
    first: dict[str, PolicyRow] = {}
    for row in acting:
        first.setdefault(row.cascade, row)
    return list(first.values())[:number]


def course_of(course: Sequence[Mapping[str, Any]], name: str, rows: Sequence[PolicyRow]) -> list[dict[str, Any]]:
    """Probabilities over the epochs of the operations of a class that have changed most.

    Args:
        course: lines of ``policy.jsonl``.
        name: of the class.
        rows: of the class.

    Returns:
        For each: ``name``, ``epochs`` and ``values``, the start first (epoch 0) where it is known.
    """
    if not course:
        return []
    moved = sorted(rows, key=lambda row: 0.0 if row.start is None else -abs(row.probability - row.start))
    curves = []
    for row in moved[:_LINES]:
        key = "identity" if row.operation.startswith("no ") else row.operation
        epochs, values = ([], []) if row.start is None else ([0], [round(row.start, 5)])
        for line in course:
            cascade = line.get("training", {}).get(name, {}).get(row.cascade)
            if cascade is not None and key in cascade["probabilities"]:
                epochs.append(int(line["epoch"]))
                values.append(round(float(cascade["probabilities"][key]), 5))
        if len(epochs) > 1:
            curves.append({"name": readable(row.operation), "epochs": epochs, "values": values})
    return curves


@torch.no_grad()
def views_content(source: Source) -> dict[str, Any] | None:
    """The views at test time, or None where there are none.

    Returns:
        ``z`` of ``views``; ``rows``: name, weight and probability, the heaviest first; ``average``; ``forwards``;
        ``seconds`` of the validation cases and of them without views; ``gain``: difference of Dice with and without
        views on the validation cases, with its interval, and ``meta_gain``: on meta-validation patches, by epoch.
    """
    policy = None if source.policies is None else source.policies.test_time
    if policy is None:
        return None
    views, weights = policy.top(policy.z)
    share = dict(zip((o.name for o in policy.operations), policy.probabilities().tolist(), strict=True))
    gain: dict[str, Any] | None = None
    if source.evaluation is not None and source.without_views is not None:
        both = (e.values["dice"][None] for e in (source.evaluation, source.without_views))
        found = compare(*decide_pairs(*both))
        mean, low, high = found.interval
        gain = {"mean": finite(mean), "low": finite(low), "high": finite(high), "cases": found.cases,
                "with": finite(source.evaluation.mean()), "without": finite(source.without_views.mean())}  # fmt: skip
    meta = [(int(r["epoch"]), float(r["views_gain"])) for r in source.log if finite(r.get("views_gain")) is not None]
    return {
        "z": policy.z, "views": len(policy.operations), "average": policy.average, "level": policy.level,
        "forwards": policy.z,
        "rows": [
            {"name": o.name, "readable": readable(o.name), "weight": round(weight, 4),
             "probability": round(share[o.name], 4)}
            for o, weight in zip(views, weights.tolist(), strict=True)
        ],
        "seconds": source.prediction.get("seconds"),
        "seconds_without_views": source.prediction.get("seconds_without_views"),
        "gain": gain, "meta_gain": {"epochs": [e for e, _ in meta], "values": [v for _, v in meta]},
    }  # fmt: skip
