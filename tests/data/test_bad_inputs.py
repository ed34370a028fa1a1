# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The contract on bad input, row by row: refused or explained, with the file, what was expected, came, and to do."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from bad_inputs import ROWS, Row
from rich.console import Console

from monai_autoaug.data import audit, print_findings, refused
from monai_autoaug.data.datalist import DataList


@pytest.mark.parametrize("row", ROWS, ids=[row.number for row in ROWS])
def test_row(data: DataList, row: Row) -> None:
    first, case, last = data.training
    case, paths = row.apply(case)
    found = audit(replace(data, training=(first, case, last)), workers=2)
    mine = [f for f in found if f.check == row.check]
    others = {f.check for f in found} - {row.check, *row.besides}
    assert not others, found
    if not row.severity:
        assert found == []
        return
    assert [f.file for f in mine] == [str(p.relative_to(data.folder)) for p in paths], found
    for finding in mine:
        assert finding.case == case.name
        assert finding.severity == row.severity
        for part in ("message", "expected", "came", "remedy"):
            assert getattr(row, part) in getattr(finding, part), (part, finding)
        assert finding.message
        assert finding.expected
        assert finding.came
        assert finding.remedy or row.severity == "note"
    assert refused(found) == (row.severity == "refuse")
    text = StringIO()
    print_findings(found, Console(file=text, width=1000))
    for part in (row.message, row.expected, row.came, row.remedy, mine[0].file):
        assert part in text.getvalue()


def test_all_thirty_rows_are_there() -> None:
    assert {int(row.number.split("-")[0]) for row in ROWS} == set(range(1, 31))
    assert len({row.number for row in ROWS}) == len(ROWS)


def test_all_rows_in_one_pass(data: DataList) -> None:
    """Every row spoils a case of its own; one audit names all of them."""
    import shutil

    template, cases = data.training[0], []
    for row in ROWS:
        images = tuple(shutil.copy(f, f.with_name(f"row_{row.number}.nii.gz")) for f in template.images)
        label = shutil.copy(template.label, template.label.with_name(f"row_{row.number}.nii.gz"))
        case = replace(template, name=f"row_{row.number}", images=images, label=label)
        cases.append(row.apply(case)[0])
    found = audit(replace(data, training=tuple(cases)), workers=2)
    told = {(f.case, f.check, f.severity) for f in found}
    assert {(f"row_{r.number}", r.check, r.severity) for r in ROWS if r.severity} <= told
