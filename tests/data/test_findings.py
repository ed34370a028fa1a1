# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Findings are shown with the worst first, and written as JSON."""

from __future__ import annotations

import json
from io import StringIO

from rich.console import Console

from monai_autoaug.data import Finding, findings_to_json, print_findings
from monai_autoaug.data.findings import Severity


def test_table_and_json() -> None:
    found = [
        Finding("b", "constant_image", "warn", "holds one value only", came="[7]", file="images[1]/b.nii.gz"),
        Finding("a", "nan", "refuse", "holds NaN", "finite voxels", "1 NaN", "fill them", "images/a.nii.gz"),
    ]
    text = StringIO()
    print_findings(found, Console(file=text, width=200))
    shown = text.getvalue()
    assert shown.index("holds NaN") < shown.index("holds one value only")  # the worst first
    assert "images[1]/b.nii.gz" in shown
    assert "(nan)" not in shown  # the name of the check is for programs
    assert "1 refused, 1 warning, 0 notes" in shown
    content = json.loads(findings_to_json(found))
    assert content["counts"] == {"refuse": 1, "warn": 1, "note": 0}
    assert [Finding(**f) for f in content["findings"]] == found
    print_findings([], Console(file=text, width=200))
    assert "0 refused, 0 warnings, 0 notes" in text.getvalue()


def test_the_same_of_many_files_is_told_once() -> None:
    def shown(severity: Severity, count: int) -> str:
        text = StringIO()
        found = [Finding(f"c{i}", "x", severity, "is odd", "even", f"{i}", "look", f"{i}.nii") for i in range(count)]
        print_findings(found, Console(file=text, width=200))
        assert len(json.loads(findings_to_json(found))["findings"]) == count
        return text.getvalue()

    assert "0.nii and 19 more files" in shown("warn", 20)
    assert "5.nii" not in shown("note", 20)
    assert all(f"{i}.nii" in shown("warn", 3) for i in range(3))
    assert all(f" {i}.nii" in shown("refuse", 20) for i in range(20))  # each of these has to be mended
    assert "0 refused, 20 warnings" in shown("warn", 20)
