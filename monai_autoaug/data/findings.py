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

from monai_autoaug.errors import DataError

__all__ = ["Finding", "Severity", "findings_to_json", "print_findings", "refusal", "refused", "sentence"]

Severity = Literal["refuse", "warn", "note"]
_ORDER: tuple[Severity, ...] = ("refuse", "warn", "note")
_SHOWN = 5  # refusals in an error message
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
    return f"{finding.file or finding.case}: {finding.message}{measured}{remedy}"


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

    Args:
        findings: what `audit` returned.
        console: where to; a new one on standard output if None.
    """
    console = console or Console()
    counts = Counter(f.severity for f in findings)
    if findings:
        table = Table(show_lines=False)
        for name in ("severity", "case", "what", "expected", "came", "to do"):
            table.add_column(name, overflow="fold")
        for finding in sorted(findings, key=lambda f: _ORDER.index(f.severity)):
            where = finding.file or finding.case or "data set"
            cells = (finding.severity, where, finding.message, finding.expected, finding.came, finding.remedy)
            # file names may hold square brackets, which rich would read as markup
            table.add_row(*(cell.replace("[", r"\[") for cell in cells), style=_STYLE[finding.severity])
        console.print(table)
    console.print(f"{counts['refuse']} refused, {_count(counts['warn'], 'warning')}, {_count(counts['note'], 'note')}")


def _count(number: int, what: str) -> str:
    """A number of things.

    >>> _count(1, "note"), _count(2, "note")
    ('1 note', '2 notes')
    """
    return f"{number} {what}{'s' * (number != 1)}"
