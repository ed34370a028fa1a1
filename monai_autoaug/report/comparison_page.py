# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison as one page that loads nothing and runs nothing: verdicts with intervals, tables, how it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from monai_autoaug.evaluation.comparison.rows import COLUMNS, PLAIN, PRIMARY, Row, Summary
from monai_autoaug.evaluation.comparison.tables import TITLES, groups
from monai_autoaug.evaluation.metrics import METRICS
from monai_autoaug.report.html import render

__all__ = ["page"]

_BEST = 3  # arms that are named in the headline


def page(content: Summary) -> str:
    """The page of a comparison.

    Args:
        content: what is known of it; names of cases and paths are not in it.

    >>> text = page(Summary("monai", "none", ("head",), 12, (), {}, (), {"setting": {}, "versions": {}}, 0, 4))
    >>> "0 of 4 trainings are done" in text, "<script" in text
    (True, False)
    """
    rows = content.rows
    return render(
        "comparison.html.j2",
        title=f"Comparison against {content.reference}",
        c=content,
        headline=_headline(content),
        outcome=_outcome(rows),
        groups=[
            {"cases": cases, "equal": equal, "rows": some, "span": _span(some), "least": _least(some),
             "best": {m: _best(some, m) for m in COLUMNS}}
            for cases, equal, some in groups(content)
        ],
        metrics=COLUMNS, primary=PRIMARY, titles=TITLES, digits={m: 2 if METRICS[m].unit else 3 for m in COLUMNS},
        several=len({row.cases for row in rows}) > 1,
        gpu=any(row.device_mib is not None for row in rows),
        whats={row.arm: row.what for row in rows},
        setting=_setting(content.provenance),
    )  # fmt: skip


def _headline(content: Summary) -> str:
    """What a reader takes away, in one sentence."""
    compared = [row for row in content.rows if row.versus is not None]
    if not compared:
        return "Nothing is known yet"
    better = [row for row in compared if row.kind == "better"]
    if not better:
        return f"No gain over {content.reference} shown"
    better.sort(key=lambda row: -(row.versus[PRIMARY].mean or 0.0) if row.versus else 0.0)
    found = Counter(row.arm for row in better)
    plain = found.pop(PLAIN, 0)
    if not found:
        return f"Training without augmentation ({PLAIN}) is better than {content.reference}; no other arm is"
    tables = len({(row.cases, row.equal) for row in compared})
    names = [arm + (f" (in {n} of {tables} tables)" if n < tables else "") for arm, n in found.items()]
    more = f" and {len(names) - _BEST} more" if len(names) > _BEST else ""
    also = f"; but so is training without augmentation ({PLAIN})" if plain else ""
    return f"Better than {content.reference}: {', '.join(names[:_BEST])}{more}{also}"


def _outcome(rows: Sequence[Row]) -> str:
    """The class of the box around the headline."""
    kinds = {row.kind for row in rows} - {"reference"}
    if any(row.kind == "better" and row.arm != PLAIN for row in rows):
        return "gain"
    return "unknown" if kinds <= {"unknown"} else "none"


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """What the axis of differences shows: all intervals, and 0 in the middle."""
    found = [row.versus[PRIMARY] for row in rows if row.versus is not None]
    ends = [abs(v) for d in found for v in (d.mean, d.low, d.high, *d.by_seed) if v is not None]
    most = max([0.01, *ends]) * 1.08
    return -most, most


def _least(rows: Sequence[Row]) -> float:
    """The smallest mean Dice, from which bars are drawn."""
    return min([1.0, *(v for row in rows if row.metrics and (v := row.metrics[PRIMARY].mean) is not None)])


def _best(rows: Sequence[Row], metric: str) -> float | None:
    """The best mean of a metric."""
    values = [v for row in rows if row.metrics and (v := row.metrics[metric].mean) is not None]
    if not values:
        return None
    return max(values) if METRICS[metric].higher_is_better else min(values)


def _setting(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of all that the arms have in common."""
    setting = dict(provenance.get("setting", {}))
    options = setting.pop("options", {})
    return [(name.replace("_", " "), str(value)) for name, value in (setting | dict(options)).items()]
