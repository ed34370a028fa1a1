# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an audit found: one record a fault, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from monai_autoaug.errors import DataError, printable

__all__ = ["Finding", "Severity", "findings_to_json", "print_findings", "refusal", "refused", "sentence"]

Severity = Literal["refuse", "warn", "note"]
_ORDER: tuple[Severity, ...] = ("refuse", "warn", "note")
_SHOWN = 5  # refusals in an error message
_ALIKE = 3  # warnings or notes that say the same and are told one by one
_STYLE = {"refuse": "bold red", "warn": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Args:
        case: the case's name, or "" for the data set as a whole.
        check: the name of the check that found it.
        severity: "refuse" (no training with it), "warn" (think about it) or "note" (handled, so that it is known).
        message: what is wrong.
        expected: what was expected, or "".
        came: what came instead, or "".
        remedy: what to do, or "".
        file: the file, relative to the data set's folder, or "".
    """

    case: str
    check: str
    severity: Severity
    message: str
    expected: str = ""
    came: str = ""
    remedy: str = ""
    file: str = ""


def refused(findings: Iterable[Finding]) -> bool:
    """Whether a finding forbids training.

    >>> refused([Finding("a", "constant_image", "warn", "holds one value only")])
    False
    """
    return any(f.severity == "refuse" for f in findings)


def refusal(findings: Sequence[Finding], folder: Path) -> DataError | None:
    """The error that says what an audit has refused, its first findings in words; None: it has refused nothing.

    Args:
        findings: of an audit.
        folder: of the data.

    >>> print(refusal([Finding("a", "nan", "refuse", "holds NaN", file="a.nii", remedy="mend it")], Path("data")))
    data: the data can't be used, 1 finding:
      a.nii: holds NaN: mend it
    To do: correct the data as said; monai-autoaug check lists all faults in a table
    """
    wrong = [f for f in findings if f.severity == "refuse"]
    if not wrong:
        return None
    lines = [sentence(f) for f in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        lines.append(f"and {len(wrong) - _SHOWN} more")
    return DataError(
        f"the data can't be used, {len(wrong)} finding{'s' * (len(wrong) > 1)}:\n  " + "\n  ".join(lines) + "\n",
        file=folder.name or None,
        remedy="correct the data as said; monai-autoaug check lists all faults in a table",
    )


def sentence(finding: Finding) -> str:
    """What is wrong, and what to do.

    >>> sentence(Finding("a", "nan", "refuse", "holds NaN", file="a.nii", remedy="mend it"))
    'a.nii: holds NaN: mend it'
    """
    measured = f" (expected {finding.expected}, came {finding.came})" if finding.expected else ""
    remedy = f": {finding.remedy}" if finding.remedy else ""
    return printable(f"{finding.file or finding.case}: {finding.message}{measured}{remedy}")


def findings_to_json(findings: Sequence[Finding]) -> str:
    """A JSON object with the counts of each severity and all findings.

    >>> json.loads(findings_to_json([Finding("a", "nan", "refuse", "holds NaN")]))["counts"]
    {'refuse': 1, 'warn': 0, 'note': 0}
    """
    counts = Counter(f.severity for f in findings)
    content = {"version": 1, "counts": {s: counts[s] for s in _ORDER}, "findings": [asdict(f) for f in findings]}
    return json.dumps(content, indent=1)


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a table, the worst first, and a line that sums it up.

    Every refusal has a line of its own. Warnings and notes that say the same of many files are told once, with the
    number of files; `findings_to_json` lists all of them.

    Args:
        findings: what `audit` returned.
        console: where to; a new one on standard output if None.

    >>> note = Finding("a", "wide_label", "note", "stores labels in 64 bits", file="a.nii")
    >>> print_findings([note] * 40, Console(width=90))  # doctest: +ELLIPSIS
    ┏━...
    ...a.nii and 39 more files...
    0 refused, 0 warnings, 40 notes
    """
    console = console or Console()
    counts = Counter(f.severity for f in findings)
    if findings:
        table = Table(show_lines=False)
        for name in ("severity", "case", "what", "expected", "came", "to do"):
            table.add_column(name, overflow="fold")
        for finding, more in sorted(_groups(findings), key=lambda group: _ORDER.index(group[0].severity)):
            where = finding.file or finding.case or "data set"
            where += f" and {_count(more, 'more file')}" if more else ""
            cells = (finding.severity, where, finding.message, finding.expected, finding.came, finding.remedy)
            # file names may hold square brackets, which rich would read as markup, and what a terminal would obey
            table.add_row(*(printable(cell).replace("[", r"\[") for cell in cells), style=_STYLE[finding.severity])
        console.print(table)
    console.print(f"{counts['refuse']} refused, {_count(counts['warn'], 'warning')}, {_count(counts['note'], 'note')}")


def _groups(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Findings to be shown, each with the number of others of which it is the first."""
    same: dict[tuple[str, ...], list[Finding]] = {}
    for place, finding in enumerate(findings):
        own = str(place) if finding.severity == "refuse" else ""
        key = (own, finding.check, finding.message, finding.expected, finding.remedy)
        same.setdefault(key, []).append(finding)
    return [
        shown
        for group in same.values()
        for shown in ([(f, 0) for f in group] if len(group) <= _ALIKE else [(group[0], len(group) - 1)])
    ]


def _count(number: int, what: str) -> str:
    """A number of things.

    >>> _count(1, "note"), _count(2, "note")
    ('1 note', '2 notes')
    """
    return f"{number} {what}{'s' * (number != 1)}"
