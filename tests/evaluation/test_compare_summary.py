# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is said of a comparison: verdicts, tables, notes; on made-up results whose truth is known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_helpers import STRUCTURES, datalist, making_up, small_plan

from monai_autoaug.evaluation import Evaluation
from monai_autoaug.evaluation.comparison import Plan, Setting, Summary, summarise
from monai_autoaug.evaluation.comparison import plan as make_plan
from monai_autoaug.evaluation.comparison.rows import COLUMNS, Versus, verdict
from monai_autoaug.evaluation.comparison.scheduling import run_cells
from monai_autoaug.evaluation.comparison.statistics import holm, signed_rank
from monai_autoaug.evaluation.comparison.tables import cases_csv, columns, groups, lines, markdown, summary_csv

ARMS = ("nnunet", "none", "adversarial", "random")
GAINS = {"adversarial": 0.03, "none": -0.04, "random": 0.0}


def done(root: Path, gains: dict[str, float] = GAINS, seconds: dict[str, float] | None = None, **changes: Any) -> Plan:
    own = small_plan(root, **{"arms": ARMS, "seeds": (0, 1, 2)} | changes)
    run_cells(own.cells(), own.place, making_up(gains, seconds))
    if own.equal_time:
        run_cells(own.equal_time_cells(), own.place, making_up(gains, seconds))
    return own


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    seconds = {"nnunet": 10.0, "none": 8.0, "adversarial": 20.0, "random": 12.0}
    setting = Setting(test_cases=12, validation_cases=2)  # of 8 cases, 12 comparisons could show nothing
    root = tmp_path_factory.mktemp("compared")
    return summarise(done(root, seconds=seconds, counts=(4, 8), equal_time=True, setting=setting))


def test_better_worse_and_no_gain(summary: Summary) -> None:
    kinds = {(row.arm, row.cases, row.equal): row.kind for row in summary.rows}
    for cases in (4, 8):
        for equal in ("iterations", "time"):
            assert kinds[("adversarial", cases, equal)] == "better"
            assert kinds[("none", cases, equal)] == "worse"
            assert kinds[("random", cases, equal)] == "none"
        assert kinds[("nnunet", cases, "iterations")] == "reference"
        assert ("nnunet", cases, "time") not in kinds
    told = {row.arm: row.verdict for row in summary.rows}
    assert told["adversarial"].startswith("better by 0.030 [0.0")
    assert told["none"].startswith("worse by 0.040 [0.0")
    assert told["random"].startswith("no gain shown (+0.000 [")


def test_numbers_by_hand(tmp_path: Path) -> None:
    own = done(tmp_path)
    row = next(r for r in summarise(own).rows if r.arm == "adversarial")
    arrays = {}
    for arm in ("adversarial", "nnunet"):
        cells = [c for c in own.cells() if c.arm.name == arm]
        arrays[arm] = np.stack([own.place(c).read()[0].values["dice"] for c in cells])
    assert row.metrics["dice"].mean == pytest.approx(arrays["adversarial"].mean())
    assert row.metrics["dice"].sd == pytest.approx(arrays["adversarial"].mean((1, 2)).std(ddof=1))
    assert row.metrics["dice"].structures["tail"] == pytest.approx(arrays["adversarial"][..., 1].mean())
    apart = arrays["adversarial"] - arrays["nnunet"]
    versus = (row.versus or {})["dice"]
    assert versus.mean == pytest.approx(apart.mean())
    assert versus.by_seed == pytest.approx(tuple(apart.mean((1, 2))))
    assert versus.p == pytest.approx(signed_rank(apart.mean((0, 2))))


def test_p_is_corrected_over_all_comparisons_of_a_metric(summary: Summary) -> None:
    rows = [row for row in summary.rows if row.versus is not None]
    assert len(rows) == 12  # 3 arms, 2 numbers of cases, equal iterations and equal time
    for metric in COLUMNS:
        found = [(row.versus or {})[metric] for row in rows]
        assert [v.p_corrected for v in found] == holm([v.p or 0.0 for v in found])


def test_ranks(summary: Summary) -> None:
    ranks = {row.arm: row.rank for row in summary.rows if (row.cases, row.equal) == (4, "iterations")}
    assert ranks == {"adversarial": 1.0, "none": 4.0, "nnunet": 2.5, "random": 2.5}
    assert summary.overall == ranks
    at_equal_time = {row.arm: row.rank for row in summary.rows if (row.cases, row.equal) == (4, "time")}
    assert at_equal_time == {"adversarial": 1.0, "none": 4.0, "random": 2.5}  # among them and the reference


def test_costs(summary: Summary) -> None:
    row = next(r for r in summary.rows if (r.arm, r.cases, r.equal) == ("adversarial", 4, "iterations"))
    assert (row.training_seconds, row.training_ratio, row.inference_seconds) == (20.0, 2.0, 2.0 / 12)
    assert (row.host_mib, row.device_mib, row.iterations) == (720.0, None, 100)


def test_what_is_missing_is_left_out_and_told(tmp_path: Path) -> None:
    own = small_plan(tmp_path, ARMS, seeds=(0, 1, 2))
    assert {row.kind for row in summarise(own).rows} == {"reference", "unknown"}
    todo = [c for c in own.cells() if (c.arm.name, c.seed) not in (("adversarial", 1), ("nnunet", 2), ("random", 0))]
    run_cells([c for c in todo if c.arm.name != "none"], own.place, making_up(GAINS))
    found = summarise(own)
    rows = {row.arm: row for row in found.rows}
    assert (rows["adversarial"].seeds, rows["adversarial"].missing) == ((0, 2), (1,))
    assert len((rows["adversarial"].versus or {})["dice"].by_seed) == 1  # the reference lacks seed 2
    assert rows["none"].verdict == "not known yet"
    assert found.done, found.total == (6, 12)
    text = markdown(found)
    assert "| `adversarial (2 of 3 seeds)` |" in text
    assert "6 of 12 cells are done" in text
    assert any(None in (r.rank, 0) for r in found.rows)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("versus", "kind", "words"),
    [
        (Versus(0.02, 0.01, 0.03, (), 0.001, 0.01, 20), "better", "better by 0.020 [0.010, 0.030]"),
        (Versus(0.02, 0.01, 0.03, (), 0.03, 0.09, 20), "none", "no gain shown (+0.020 [+0.010, +0.030], p = 0.09)"),
        (Versus(0.02, -0.01, 0.05, (), 0.001, 0.004, 20), "none", "no gain shown (+0.020 [-0.010, +0.050], p = 0.004)"),
        (Versus(-0.02, -0.03, -0.01, (), 0.001, 0.01, 20), "worse", "worse by 0.020 [0.010, 0.030]"),
        (Versus(0.2, None, None, (), 0.1, 0.1, 4), "none", "no gain shown (+0.200; of fewer than 5 test cases nothing"),
        (None, "unknown", "not known yet"),
    ],
)
def test_verdicts(versus: Versus | None, kind: str, words: str) -> None:
    found = verdict(versus)
    assert found[0] == kind
    assert found[1].startswith(words)
    assert verdict(versus, is_reference=True) == ("reference", "the reference")


def test_tables_have_every_column(summary: Summary) -> None:
    for _, _, rows in groups(summary):
        assert {len(line) for line in lines(rows)} == {len(columns(rows))}
    text = markdown(summary)
    assert text.count("training cases, equal") == 4
    assert "4 training cases, equal time, 12 test cases; against nnunet" in text
    assert "x 2.00" in text
    assert "Average rank over all numbers of training cases" in text
    assert "- `random`: What a learned method must beat" in text or "- `random`:" in text


def test_csv_holds_all_numbers(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(summary_csv(summary))))
    assert len(rows) == len(summary.rows)
    row = next(r for r in rows if (r["arm"], r["training_cases"], r["equal"]) == ("adversarial", "8", "time"))
    own = next(r for r in summary.rows if (r.arm, r.cases, r.equal) == ("adversarial", 8, "time"))
    assert float(row["dice"]) == own.metrics["dice"].mean
    assert float(row["dice_tail"]) == own.metrics["dice"].structures["tail"]
    assert float(row["hd95_difference_low"]) == (own.versus or {})["hd95"].low
    assert row["verdict"] == "better"
    assert row["device_mib"] == ""
    reference = next(r for r in rows if r["verdict"] == "reference")
    assert reference["dice_difference_mean"] == ""


def test_csv_of_every_case(tmp_path: Path) -> None:
    own = done(tmp_path)
    rows = list(csv.DictReader(io.StringIO(cases_csv(own))))
    assert len(rows) == 4 * 3 * 8 * len(STRUCTURES)
    row = next(r for r in rows if (r["arm"], r["seed"], r["structure"]) == ("none", "1", "tail"))
    cell = next(c for c in own.cells() if (c.arm.name, c.seed) == ("none", 1))
    evaluation = own.place(cell).read()[0]
    place = evaluation.cases.index(row["case"])
    assert float(row["sensitivity"]) == pytest.approx(evaluation.values["sensitivity"][place, 1], abs=1e-6)


def test_a_structure_that_no_test_case_has(tmp_path: Path) -> None:
    """Its sensitivity has no value; all else goes on, and no NaN gets into JSON."""
    own = done(tmp_path, arms=("none", "adversarial"))
    for cell in own.cells():
        folder = own.place(cell)
        found = Evaluation.load(folder.evaluation)
        found.values["sensitivity"][:] = np.nan
        found.save(folder.evaluation)
    summary = summarise(own)
    row = next(r for r in summary.rows if r.arm == "adversarial")
    assert row.metrics["sensitivity"].mean is None
    versus = (row.versus or {})["sensitivity"]
    assert (versus.mean, versus.by_seed, versus.p, versus.cases) == (None, (None, None, None), None, 0)
    assert row.kind == "better"
    assert row.rank is not None  # over the three that are left
    json.dumps(summary.to_dict(), allow_nan=False)
    assert "| - |" in markdown(summary)
    assert summary_csv(summary).count("\n") == 3


def told(own: Plan) -> str:
    return "\n".join(summarise(own).notes)


def test_notes_say_what_the_interval_covers(tmp_path: Path) -> None:
    three = told(done(tmp_path / "three"))
    assert "95 % intervals are over test cases and seeds" in three
    assert "How much trainings vary is estimated from 3 seeds, so the intervals are wide" in three
    assert "Holm's method for 3 comparisons" in three
    assert "8 test cases, which no arm has looked at" in three
    assert "drawn from 14 cases by the seed" in three
    one = told(done(tmp_path / "one", seeds=(0,)))
    assert "over test cases alone; how the result varies with the training isn't known of one seed" in one


def test_notes_tell_what_cannot_be_shown(tmp_path: Path) -> None:
    setting = Setting(test_cases=5, validation_cases=2)
    own = make_plan(datalist(tmp_path / "data"), tmp_path / "out", setting, arms=ARMS, counts=(4,), seeds=(0,))
    run_cells(own.cells(), own.place, making_up(GAINS))
    assert "With 5 test cases and 3 comparisons no p can be below 0.05 (the smallest is 0.19)" in told(own)
    assert {row.kind for row in summarise(own).rows} == {"reference", "none"}


def test_notes_begin_with_a_reference_that_loses_to_no_augmentation(tmp_path: Path) -> None:
    caution = "Training without augmentation (none) is better than nnunet"
    own = done(tmp_path / "loses", {"none": 0.04, "adversarial": 0.05})
    assert summarise(own).notes[0].startswith(caution)
    assert "--resume --reference none" in markdown(summarise(own))
    assert caution not in told(done(tmp_path / "wins"))


def test_notes_tell_who_looks_at_validation_cases_and_who_ran_where(tmp_path: Path) -> None:
    own = done(tmp_path, arms=("none", "affine", "mixup"))
    assert "on which affine, mixup choose their epoch; no other arm looks at them" in told(own)
    cell = own.place(own.cells()[0])
    result = json.loads(cell.result.read_text())
    result |= {"device": {"kind": "cuda", "name": "a GPU"}, "versions": {"torch": "2.9"}}
    cell.result.write_text(json.dumps(result))
    text = told(own)
    assert "Cells ran on 2 kinds of machine, so their times can't be compared, and on CPU and GPU" in text
    assert "Cells ran with different versions of torch: 2.8, 2.9." in text
    ratios = {row.arm: row.training_ratio for row in summarise(own).rows}
    assert ratios["affine"] == 1.0  # of the seeds that ran on one machine
    assert "no arm chooses anything by them" in told(done(tmp_path / "more"))


def test_notes_tell_what_trainings_have_warned_of(tmp_path: Path) -> None:
    own = done(tmp_path, arms=("none", "adversarial"))
    for cell in own.cells():
        if cell.seed < 2:
            file = own.place(cell).result
            file.write_text(json.dumps(json.loads(file.read_text()) | {"warnings": ["an update was skipped"]}))
    found = [note for note in summarise(own).notes if "warned" in note]
    who = "; ".join(f"{c.arm.name} with {c.cases} cases, seed {c.seed}" for c in own.cells() if c.seed < 2)
    assert len(found) == 1
    assert sorted(found[0].removeprefix("Training of ").split(" has warned")[0].split("; ")) == sorted(who.split("; "))
    assert found[0].endswith(" has warned: an update was skipped.")


def test_no_path_and_no_case_is_in_a_summary(summary: Summary, tmp_path: Path) -> None:
    text = json.dumps(summary.to_dict())
    assert "case_0" not in text
    assert str(tmp_path.parent) not in text


def test_tables_are_not_replaced_by_older_ones(tmp_path: Path) -> None:
    """Of a process that sums up while another one does the last cells."""
    from monai_autoaug.commands.compare import _write_latest

    own = small_plan(tmp_path)
    run_cells(own.cells()[:2], own.place, making_up(GAINS))
    early = summarise(own)
    run_cells(own.cells(), own.place, making_up(GAINS))
    assert (early.done, _write_latest(own, early)[0].done) == (2, 4)
    assert json.loads((own.folder / "summary.json").read_text())["done"] == 4
