# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug compare``: what it refuses, what it shows before, and all of it on a small data set."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import call

from monai_autoaug.commands.asking import seeds, words
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.evaluation.comparison import scheduling
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.comparison.working import Place, work
from monai_autoaug.evaluation.metrics import decided
from monai_autoaug.reading import read_json

SMALL = ["--epochs", "2", "--iterations", "2", "--option", "network_options={channels: [4, 8, 8]}", "--device", "cpu",
         "--test-cases", "6", "--validation-cases", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("compare") / "data", cases=12, size=16)


def told(*words: object) -> str:
    result = call("compare", *words)
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "none,random"], "which data? Give --data"),
        (["--data", "DATA"], "which methods? Give --methods"),
        (["--data", "DATA", "--methods", "none,randm"],
         "there is no arm 'randm'; monai-autoaug compare --arms lists those there are; did you mean 'random'?"),
        (["--data", "DATA", "--methods", "none,random", "--host", "nnunett"], "did you mean 'nnunet'?"),
        (["--data", "DATA", "--methods", "none,random", "--equal", "tim"],
         "--equal must be iterations or time, got 'tim'; did you mean 'time'?"),
        (["--data", "DATA", "--methods", "none,random", "--seeds", "three"], "--seeds must be a number of seeds"),
        (["--data", "DATA", "--methods", "none,random", "--seeds", "0"], "--seeds must be at least 1"),
        (["--data", "DATA", "--methods", "none,random", "--cases", "99"], "99 training cases can't be had"),
        (["--data", "DATA", "--methods", "none,random", "--test-cases", "x"], "--test-cases must be a number of cases"),
        (["--data", "DATA", "--methods", "none,random", "--option", "epoch=3"], "did you mean 'epochs'?"),
        (["--data", "DATA", "--methods", "none,random", "--option", "epochs"], "--option: 'epochs' is no key=value"),
        (["--data", "DATA", "--methods", "none,random", "--epochs", "3", "--option", "epochs=4"],
         "--epochs and --option epochs= are one option"),
        (["--data", "DATA", "--methods", "none,random", "--device", "tpu"], "device 'tpu' can't be used"),
        (["--data", "nowhere", "--methods", "none,random"], "nowhere"),
    ],
)  # fmt: skip
def test_what_is_refused(many: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = call("compare", *[many if w == "DATA" else w for w in words], "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_an_arm_that_cannot_work_is_refused_before_any_training(many: Path, tmp_path: Path) -> None:
    words = ["--data", many, "--methods", "none,adversarial:width=-3", "--output", tmp_path / "out", *SMALL]
    result = call("compare", *words)
    assert result.exit_code == 2
    assert "arm 'adversarial:width=-3'" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_one_case_cannot_be_set_apart(many: Path, tmp_path: Path) -> None:
    message = told(
        "--data", many, "--methods", "none,joint_policy", "--cases", "1", "--output", tmp_path / "out", *SMALL
    )
    assert "arm 'joint_policy' sets some of its training cases apart to learn from" in message


def test_arms_are_listed() -> None:
    text = told("--arms", "--host", "nnunet")
    for name in (
        "nnunet-reseeded",
        "da5",
        "randaugment-m",
        "joint_policy/class_specific",
        "adversarial/affine_without_image",
    ):
        assert name in text
    assert "its strongest hand-made augmentation" in text
    assert "da5" not in told("--arms")


def test_a_dry_run_shows_cells_and_time_and_writes_nothing(many: Path, tmp_path: Path) -> None:
    words = ["--data", many, "--methods", "none,adversarial", "--seeds", "2", "--cases", "2,all", "--output",
             tmp_path / "out", "--dry-run", "--equal", "time", *SMALL]  # fmt: skip
    text = told(*words)
    assert "6 test cases, 1 validation case, 5 to train on; reference none" in text
    assert text.count("to do") == 8
    assert "8 cells, 0 done; time: about" in text
    assert "by 4 real steps of each arm" in text
    assert "train again at equal time" in text
    assert "With 6 test cases and 4 comparisons no p can be below 0.05" in text
    assert not (tmp_path / "out").exists()


def test_a_file_of_options(many: Path, tmp_path: Path) -> None:
    config = tmp_path / "compare.yaml"
    config.write_text(
        f"data: {many}\nmethods: [none, 'random:mode=affine']\nseeds: 2\ncases: [2, all]\ntest-cases: 6\n"
        "validation_cases: 1\nequal: time\noption: {epochs: 3, network_options: {channels: [4, 8]}}\n"
    )
    text = told("--config", config, "--dry-run", "--output", tmp_path / "out", "--seeds", "1", "--device", "cpu")
    assert "4 cells" in text  # 2 arms, 2 numbers of cases, 1 seed: the command line wins
    assert "random:mode=affine" in text
    for content, message in (
        ("method: none", "there is no option 'method'"), ("seedz: 3", "did you mean 'seeds'?"),
        ("[1, 2]", "must hold options by name"), ("a: [", "can't be read as YAML"),
        ("dry_run: true", "no option 'dry_run'"),
    ):  # fmt: skip
        config.write_text(content)
        assert message in told("--config", config)


def test_lists_ofwords() -> None:
    assert words("none, joint_policy:without=[noise, gamma],random") == [
        "none", "joint_policy:without=[noise, gamma]", "random",
    ]  # fmt: skip
    assert (seeds("3"), seeds("4,7"), seeds("5,"), seeds(2)) == ([0, 1, 2], [4, 7], [5], [0, 1])
    with pytest.raises(ConfigError):
        seeds(",")


def made_up(place: Any) -> Any:
    """Cells whose training is made up: only what is around it is looked at."""

    def execute(cell: Cell, folder: CellFolder, stop: Any, listener: Any) -> None:
        values = {m: [[0.8 + (0.01 if cell.arm.name == "random" else 0.0)] * 3] * 6 for m in decided()}
        Evaluation(cell.parts.test, ("head", "body", "round"), {m: np.array(v) for m, v in values.items()}).save(
            folder.evaluation
        )
        if cell.seed == 1 and cell.arm.name == "random" and not (folder.path / "again").exists():
            (folder.path / "again").touch()
            raise scheduling.CellError("lr was not finite")
        result = {
            "training": {"seconds": 1.0, "cpu_seconds": 1.0, "iterations": 4}, "device": {"kind": "cpu", "name": "x"},
            "inference": {"seconds": 0.5, "cpu_seconds": 0.5, "cases": 6}, "versions": {}, "warnings": [],
            "peak_memory": {"host_mib": 1.0, "device_mib": None}, "learned": {},
        }  # fmt: skip
        folder.result.write_text(json.dumps(result))

    return execute


def test_a_failed_cell_is_told_and_tried_again(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.in_a_process", made_up)
    words = [
        "--data",
        many,
        "--methods",
        "none,random",
        "--seeds",
        "2",
        "--cases",
        "3",
        "--output",
        tmp_path / "out",
        *SMALL,
    ]
    first = call("compare", *words)
    assert first.exit_code == 1
    assert "random_3_1 could not be done: lr was not finite" in " ".join(first.output.split())
    assert "3 of 4 cells are done" in first.output
    second = call("compare", *words)
    assert second.exit_code == 0, second.output
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "comparison.json", "command.json", "cells", "comparison.html", "table.md", "table.csv", "cases.csv",
        "summary.json",
    }  # fmt: skip
    assert "With 6 test cases and 1 comparison" not in second.output
    changed = call("compare", *words, "--split-seed", "1")
    assert changed.exit_code == 2
    assert "split_seed: 0 there, 1 here" in " ".join(changed.output.split())


def test_ctrl_c_says_how_to_go_on(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(place: Any) -> Any:
        def execute(*given: Any) -> None:
            raise KeyboardInterrupt

        return execute

    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.in_a_process", interrupted)
    words = ["--data", many, "--methods", "none,random", "--seeds", "1", "--output", tmp_path / "out", *SMALL]
    result = call("compare", *words)
    assert result.exit_code == 130
    told = " ".join(result.output.split())
    assert f"go on with: monai-autoaug compare --resume --output {tmp_path / 'out'}" in told
    assert list((tmp_path / "out" / "cells").glob("*/claim*")) == []


def test_a_comparison_goes_on_with_the_options_that_it_was_begun_with(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.in_a_process", made_up)
    output = tmp_path / "out"
    nothing = call("compare", "--resume", "--output", output)
    assert nothing.exit_code == 2
    assert "no comparison to go on with" in nothing.output
    config = tmp_path / "compare.yaml"
    config.write_text("methods: [none, random]\nseeds: [1, 4]\ncases: [2, 3]\nequal: iterations\n")
    monkeypatch.chdir(many.parent)  # data is found again from anywhere
    first = call("compare", "--data", many.name, "--config", config, "--output", output, *SMALL)
    assert first.exit_code == 1, first.output  # a cell fails, the first time
    monkeypatch.chdir(tmp_path)
    second = call("compare", "--resume", "--output", output)
    assert second.exit_code == 0, second.output
    cells = {cell.name for cell in (output / "cells").iterdir()}
    assert cells == {f"{arm}_{cases}_{seed}" for arm in ("none", "random") for cases in (2, 3) for seed in (1, 4)}
    more = call("compare", "--resume", "--output", output, "--seeds", "1,4,5")  # what is given now wins
    assert more.exit_code == 0, more.output
    assert len(list((output / "cells").iterdir())) == 12
    shown = call("compare", "--resume", "--output", output, "--dry-run")
    assert "12 cells, 12 done; time: nothing is left to do" in " ".join(shown.output.split())


def sparing(place: Any) -> Any:
    """One cell in a process of its own, as all are; the others in this one, which has imported everything already."""
    apart = scheduling.in_a_process(place)

    def execute(cell: Cell, folder: CellFolder, stop: Any, listener: Any) -> None:
        if cell.name == "random_3_0":
            apart(cell, folder, stop, listener)
        else:
            work(folder, place, listener)

    return execute


@pytest.mark.parametrize("processes", ["one", pytest.param("all", marks=pytest.mark.long)])
def test_all_of_it(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str) -> None:
    """Two arms, two seeds; then a cell that was stopped goes on where it was."""
    if processes == "one":
        monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.in_a_process", sparing)
    output = tmp_path / "out"
    words = ["--data", many, "--methods", "none,random", "--seeds", "2", "--cases", "3", "--output", output, *SMALL]
    result = call("compare", *words)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "3 training cases, equal iterations, 6 test cases; against none" in text
    assert "no gain shown" in text or "better by" in text or "worse by" in text
    rows = list(csv.DictReader((output / "cases.csv").open()))
    assert len(rows) == 2 * 2 * 6 * 3
    configs = {f.parent.name: read_json(f) for f in output.glob("cells/*/config.json")}
    splits = {name: read_json(output / "cells" / name / "run" / "config.json")["split"] for name in configs}
    data = read_datalist(many)
    for name, config in configs.items():
        assert set(config["test"]).isdisjoint(
            {*splits[name]["train"], *splits[name]["meta"], *splits[name]["validation"]}
        )
        assert set(splits[name]["train"]) == set(config["train"])
        assert splits[name]["validation"] == config["validation"]
    assert splits["none_3_0"] == splits["random_3_0"] != splits["none_3_1"]
    assert {c.name for c in data.training} > {row["case"] for row in rows} == set(configs["none_3_0"]["test"])
    again(output, words, data)


def again(output: Path, words: list[Any], data: Any) -> None:
    """A cell loses its result, as if its process had been killed after training: the rest is made again, and alike."""
    cell = CellFolder(output / "cells" / "none_3_1")
    before, run = Evaluation.load(cell.evaluation), Run(cell.run)
    summary = run.summary.read_bytes()
    for file in (cell.result, cell.evaluation):
        file.unlink()
    cell.predictions.mkdir()
    (cell.predictions / "half.nii.gz").write_bytes(b"of a process that was killed")
    result = call("compare", *words)
    assert result.exit_code == 0, result.output
    assert run.summary.read_bytes() == summary  # not trained again
    assert Evaluation.load(cell.evaluation).to_dict() == before.to_dict()
    found = read_json(cell.result)
    assert found["inference"]["cases"] == 6
    assert found["peak_memory"]["host_mib"] > 100
    assert found["training"]["iterations"] == 4
    assert not cell.predictions.exists()


@pytest.mark.parametrize("killed", [pytest.param("before the checkpoint", marks=pytest.mark.long), "after an epoch"])
def test_training_goes_on_where_it_was_killed(many: Path, tmp_path: Path, killed: str) -> None:
    """Within a cell, too: the resumed training ends as one that never stopped."""
    from monai_autoaug.evaluation.comparison import Setting, plan

    options = {"epochs": 3, "iterations": 2, "network_options": {"channels": [4, 8]}}
    setting = Setting(options=options, test_cases=6, validation_cases=1)
    folders = []
    for name in ("whole", "stopped"):
        own = plan(read_datalist(many), tmp_path / name, setting, arms=("none", "random"), counts=(3,), seeds=(0,))
        cell = own.cells()[1]
        folder = own.place(cell)
        folder.begin(cell)
        folders.append(folder)
        place = Place(many, own.folder, "cpu")
        if name == "stopped":
            stop_at = 1 if killed == "before the checkpoint" else 5

            def hear(progress: Any, stop_at: int = stop_at) -> None:
                if progress.stage == "training" and progress.done == stop_at:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                work(folder, place, hear)
            assert not folder.done
        work(folder, place, lambda progress: None)
    states = [Run(folder.run).load_model().state_dict() for folder in folders]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    values = [Evaluation.load(folder.evaluation).to_dict() for folder in folders]
    assert values[0] == values[1]
