# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison as tables: columns for people (terminal, Markdown), one file of all numbers (CSV), one of all cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from monai_autoaug.evaluation.comparison.notes import counted
from monai_autoaug.evaluation.comparison.planning import Plan
from monai_autoaug.evaluation.comparison.rows import COLUMNS, PRIMARY, Row, Summary
from monai_autoaug.evaluation.metrics import METRICS

__all__ = ["TITLES", "cases_csv", "columns", "duration", "groups", "lines", "markdown", "summary_csv", "title"]

TITLES = {
    "dice": "Dice", "sensitivity": "sensitivity", "precision": "precision", "hd95": "HD95 in mm",
    "surface_dice": "surface Dice",
}  # fmt: skip


def groups(summary: Summary) -> Iterator[tuple[int, str, list[Row]]]:
    """(training cases, "iterations" or "time", rows) of each table."""
    for cases, equal in dict.fromkeys((row.cases, row.equal) for row in summary.rows):
        yield cases, equal, [r for r in summary.rows if (r.cases, r.equal) == (cases, equal)]


def title(summary: Summary, cases: int, equal: str) -> str:
    """What stands over a table.

    >>> title(Summary("monai", "none", (), 12, (), {}, (), {}, 0, 0), 20, "time")
    '20 training cases, equal time, 12 test cases; against none'
    """
    numbers = f"{counted(cases, 'training case')}, equal {equal}, {counted(summary.test_cases, 'test case')}"
    return f"{numbers}; against {summary.reference}"


def columns(rows: Sequence[Row]) -> list[str]:
    """Headings of a table."""
    seeds = any(len(row.seeds) > 1 for row in rows)
    names = [TITLES[m] + (" (sd over seeds)" if m == PRIMARY and seeds else "") for m in COLUMNS]
    memory = ["memory in MiB", *(["GPU memory in MiB"] if any(r.device_mib is not None for r in rows) else [])]
    return ["arm", *names, "rank", "verdict", "training", "inference a case", *memory]


def lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Texts of each row, by `columns`."""
    gpu = any(r.device_mib is not None for r in rows)
    for row in rows:
        if not row.metrics:
            yield [row.arm, *["-"] * len(COLUMNS), "-", row.verdict, "-", "-", "-", *(["-"] if gpu else [])]
            continue
        lacking = f" ({len(row.seeds)} of {len(row.seeds) + len(row.missing)} seeds)" if row.missing else ""
        yield [
            row.arm + lacking, *(_metric(row, m) for m in COLUMNS), _number(row.rank, 1), row.verdict,
            duration(row.training_seconds) + ("" if row.training_ratio is None else f" (x {row.training_ratio:.2f})"),
            duration(row.inference_seconds), _number(row.host_mib, 0),
            *([_number(row.device_mib, 0)] if gpu else []),
        ]  # fmt: skip


def _metric(row: Row, metric: str) -> str:
    value = row.metrics[metric]
    digits = 2 if METRICS[metric].unit else 3
    spread = "" if value.sd is None or metric != PRIMARY else f" ({value.sd:.3f})"
    return _number(value.mean, digits) + spread


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """How long a training or a prediction takes, in words.

    >>> duration(0.512), duration(75.0), duration(9000.0)
    ('0.51 s', '75 s', '2.5 h')
    """
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def markdown(summary: Summary) -> str:
    """All tables, verdicts and notes."""
    parts = []
    for cases, equal, rows in groups(summary):
        head = columns(rows)
        table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        table += [f"| {' | '.join([f'`{first}`', *rest])} |" for first, *rest in lines(rows)]
        parts.append("\n".join([f"**{title(summary, cases, equal)}**", "", *table]))
    if len({row.cases for row in summary.rows}) > 1:
        ranked = [f"`{name}` {_number(rank, 2)}" for name, rank in summary.overall.items()]
        parts.append(f"Average rank over all numbers of training cases: {', '.join(ranked)}.")
    if summary.done < summary.total:
        parts.append(f"{summary.done} of {summary.total} cells are done; what is missing is left out.")
    whats = {row.arm: row.what for row in summary.rows}
    parts.append("\n".join(f"- `{arm}`: {what}" for arm, what in whats.items()))
    parts.append("\n".join(f"- {note}" for note in summary.notes))
    return "\n\n".join(parts) + "\n"


def summary_csv(summary: Summary) -> str:
    """A line an arm and number of training cases: every number that the tables have, and those that they leave out."""
    rows: list[dict[str, object]] = []
    for row in summary.rows:
        line: dict[str, object] = {
            "arm": row.arm, "training_cases": row.cases, "equal": row.equal, "seeds": len(row.seeds),
            "missing_seeds": len(row.missing), "average_rank": row.rank, "verdict": row.kind,
            "verdict_text": row.verdict,
        }  # fmt: skip
        for metric in COLUMNS:
            value = row.metrics.get(metric)
            line[metric], line[f"{metric}_sd"] = (None, None) if value is None else (value.mean, value.sd)
            for structure in summary.structures:
                line[f"{metric}_{structure}"] = None if value is None else value.structures.get(structure)
        for metric in COLUMNS:
            versus = None if row.versus is None else row.versus[metric]
            for name in ("mean", "low", "high", "p", "p_corrected"):
                line[f"{metric}_difference_{name}"] = None if versus is None else getattr(versus, name)
        for name in ("iterations", "training_seconds", "training_ratio", "inference_seconds", "host_mib", "device_mib"):
            line[name] = getattr(row, name)
        rows.append(line)
    return _csv(list(rows[0]) if rows else [], ([line[name] for name in line] for line in rows))


def cases_csv(plan: Plan) -> str:
    """A line an arm, number of training cases, seed, test case and structure: for statistics of one's own.

    Args:
        plan: of the comparison; what isn't done is left out.
    """

    def values() -> Iterator[list[object]]:
        for cell in [*plan.cells(), *plan.equal_time_cells()]:
            folder = plan.place(cell)
            if not folder.done:
                continue
            found = folder.read()[0]
            for i, case in enumerate(found.cases):
                for k, structure in enumerate(found.classes):
                    numbers = [found.values[m][i, k] for m in COLUMNS]
                    yield [cell.arm.name, cell.cases, cell.equal, cell.seed, case, structure,
                           *(None if np.isnan(v) else round(float(v), 6) for v in numbers)]  # fmt: skip

    return _csv(["arm", "training_cases", "equal", "seed", "case", "structure", *COLUMNS], values())


def _csv(head: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)  # None becomes an empty field
    return text.getvalue()
