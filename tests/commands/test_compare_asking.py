# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Several calls of ``monai-autoaug compare`` with one folder, each of which asks for a part."""

from __future__ import annotations

import csv
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import call

from monai_autoaug.commands import asking
from monai_autoaug.commands.asking import FILE, asked_before, joined, keep
from monai_autoaug.data import write_phantom
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.metrics import decided
from monai_autoaug.reading import read_json

PLAIN = {"comparison.html", "table.md", "table.csv", "cases.csv", "summary.json"}
AGAINST_NONE = {"comparison_against_none.html", "table_against_none.md", "table_against_none.csv",
                "summary_against_none.json"}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("asked") / "data", cases=12, size=16)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells that were done, made up."""
    names: list[str] = []

    def made_up(place: Any) -> Any:
        def execute(cell: Cell, folder: CellFolder, stop: Any, listener: Any) -> None:
            names.append(cell.name)
            gain = {"none": 0.0, "random": 0.01}.get(cell.arm.name, 0.02)
            values = {m: np.full((6, 3), 0.8 + gain) for m in decided()}
            Evaluation(cell.parts.test, ("head", "body", "round"), values).save(folder.evaluation)
            seconds = 1.0 if cell.arm.name == "none" else 2.0
            result = {
                "training": {"seconds": seconds, "cpu_seconds": seconds, "iterations": 4}, "learned": {},
                "inference": {"seconds": 0.5, "cpu_seconds": 0.5, "cases": 6}, "versions": {}, "warnings": [],
                "peak_memory": {"host_mib": 1.0, "device_mib": None}, "device": {"kind": "cpu", "name": "x"},
            }  # fmt: skip
            folder.result.write_text(json.dumps(result))

        return execute

    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.in_a_process", made_up)
    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.check_arms", lambda plan: None)
    return names


def ask(data: Path, output: Path, *words: object, code: int = 0) -> str:
    common = ["--epochs", "2", "--iterations", "2", "--device", "cpu", "--test-cases", "6", "--validation-cases", "1"]
    given = words if "--resume" in words else ("--data", data, *common, *words)
    result = call("compare", *given, "--output", output)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def rows(output: Path, file: str = "table.csv") -> set[tuple[str, str, str]]:
    with (output / file).open() as opened:
        return {(row["arm"], row["training_cases"], row["seeds"]) for row in csv.DictReader(opened)}


def pages(output: Path) -> set[str]:
    return {f.name for f in output.iterdir() if f.is_file()} - {"comparison.json", FILE}


def test_a_call_with_fewer_arms_forgets_no_others(data: Path, tmp_path: Path, done: list[str]) -> None:
    output = tmp_path / "out"
    ask(data, output, "--methods", "none,random", "--seeds", "2", "--cases", "2")
    told = ask(data, output, "--methods", "random,adversarial", "--seeds", "1", "--cases", "3,2")
    assert done == ["none_2_0", "random_2_0", "none_2_1", "random_2_1", "random_3_0", "adversarial_3_0",
                    "adversarial_2_0"]  # fmt: skip
    assert "7 of 12 cells are done" in told
    assert "against none" in told
    assert rows(output) == {("none", "2", "2"), ("random", "2", "2"), ("adversarial", "2", "1"), ("none", "3", "0"),
                            ("random", "3", "1"), ("adversarial", "3", "1")}  # fmt: skip
    summary = read_json(output / "summary.json")
    assert (summary["reference"], summary["done"], summary["total"]) == ("none", 7, 12)
    assert pages(output) == PLAIN
    with (output / "cases.csv").open() as opened:
        assert len(list(csv.DictReader(opened))) == 7 * 6 * 3
    ask(data, output, "--resume")
    assert len(done) == len(set(done)) == 12
    assert {(arm, cases) for arm, cases, seeds in rows(output) if seeds == "2"} == {
        (arm, cases) for arm in ("none", "random", "adversarial") for cases in ("2", "3")
    }


def test_another_reference_has_files_of_its_own(data: Path, tmp_path: Path, done: list[str]) -> None:
    output = tmp_path / "out"
    ask(data, output, "--methods", "none,random,adversarial", "--reference", "random", "--seeds", "1", "--cases", "2")
    assert pages(output) == PLAIN
    told = ask(data, output, "--resume", "--reference", "none")
    assert len(done) == 3  # nothing was trained
    assert "against none" in told
    assert "against random" not in told
    assert "comparison_against_none.html" in told
    assert pages(output) == PLAIN | AGAINST_NONE
    assert read_json(output / "summary.json")["reference"] == "random"
    assert read_json(output / "summary_against_none.json")["reference"] == "none"
    assert "against none" in (output / "table_against_none.md").read_text()
    told = ask(data, output, "--resume", "--seeds", "2")
    assert "against random" in told
    assert read_json(output / "summary.json")["reference"] == "random"
    assert (
        rows(output)
        == rows(output, "table_against_none.csv")
        == {(arm, "2", "2") for arm in ("none", "random", "adversarial")}
    )  # those against none are kept up, too
    ask(data, output, "--methods", "none,random", "--seeds", "1", "--cases", "2")  # unless it is said, the first one
    assert read_json(output / "summary.json")["reference"] == "random"
    assert pages(output) == PLAIN | AGAINST_NONE


def test_equal_time_is_that_of_the_first_reference(data: Path, tmp_path: Path, done: list[str]) -> None:
    output = tmp_path / "out"
    words = ["--methods", "none,random,adversarial", "--seeds", "1", "--cases", "2"]
    ask(data, output, *words, "--equal", "time")
    assert done[3:] == ["random_2_0_equal_time", "adversarial_2_0_equal_time"]
    told = ask(data, output, "--resume", "--reference", "random")
    assert len(done) == 5
    assert "equal time" not in told
    message = ask(data, output, "--resume", "--reference", "random", "--equal", "time", code=2)
    assert "arms take the time of none, not of random; have none among --methods and leave --reference out" in message
    assert "equal time" in ask(data, output, "--resume")
    ask(data, output, *words)  # at equal iterations alone
    assert len(rows(output)) == 3
    assert len(read_json(output / "summary.json")["rows"]) == 5
    assert len(read_json(output / "summary_against_random.json")["rows"]) == 3


def test_unlabelled_images_of_other_calls_are_counted(data: Path, tmp_path: Path, done: list[str]) -> None:
    output, images = tmp_path / "out", tmp_path / "images"
    images.mkdir()
    (images / "image.nii.gz").write_bytes(b"x")
    few = ["--seeds", "1", "--cases", "2"]
    ask(data, output, "--methods", "none,task_driven", "--unlabelled", images, *few)
    ask(data, output, "--methods", "none,random", *few)
    assert read_json(output / "summary.json")["provenance"]["unlabelled"] == 1
    assert read_json(output / FILE)["unlabelled"] == str(images)
    (images / "image.nii.gz").unlink()
    told = ask(data, output, "--methods", "none,random", *few)  # which doesn't need them
    assert "unlabelled images are not counted on the page" in told


def test_a_damaged_file_is_told(data: Path, tmp_path: Path, done: list[str]) -> None:
    output = tmp_path / "out"
    ask(data, output, "--methods", "none,random", "--seeds", "1", "--cases", "2")
    (output / FILE).write_text("{")
    assert f"{FILE}: can't be read" in ask(data, output, "--resume", code=2)


def test_calls_that_begin_together_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what there is before it writes, which takes a while."""
    before = asking.asked_before

    def slowly(folder: Path) -> dict[str, Any]:
        found = before(folder)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(asking, "asked_before", slowly)
    given = {"cases": "all", "reference": "none", "equal": "iterations"}
    calls = [
        threading.Thread(target=keep, args=(tmp_path, {**given, "methods": f"none,arm{n}", "seeds": f"{n},"}))
        for n in range(6)
    ]
    for thread in calls:
        thread.start()
    for thread in calls:
        thread.join()
    found = before(tmp_path)
    assert set(found["methods"].split(",")) == {"none", *(f"arm{n}" for n in range(6))}
    assert sorted(asking.seeds(found["seeds"])) == list(range(6))
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_what_is_joined() -> None:
    first = {"methods": "none,random:mode=[a, b]", "seeds": "1", "cases": "4", "reference": "none", "equal": "time",
             "unlabelled": "there", "device": "cpu", "data": "here"}  # fmt: skip
    kept = joined({}, first)
    assert kept == first | {"references": ["none"]}
    assert joined(kept, first) == kept | {"seeds": "0,"}
    second = first | {"methods": "random:mode=[a, b],none", "unlabelled": None, "equal": "iterations", "device": "cuda",
                      "reference": "random"}  # fmt: skip
    found = joined(kept, second)
    assert found == kept | {"seeds": "0,", "device": "cuda"}
    with pytest.raises(ConfigError):
        joined(kept, second | {"seeds": "x"})
    assert asked_before(Path("nowhere")) == {}
