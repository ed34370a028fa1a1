# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``--dry-run``: what it shows is what is done without it, and nothing is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import SMALL, call
from click.testing import Result

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import TrainOptions
from monai_autoaug.engines.folder import read_json
from monai_autoaug.engines.run import train


def everything(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder below, with size and time."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def rows(output: str) -> dict[str, str]:
    """The table that is shown: name -> text."""
    lines = [line.rstrip() for line in output.splitlines()]
    return {m[1]: m[2] for line in lines if (m := re.match(r"^([a-z]+) {2,}(\S.*)$", line))}


def test_a_training_is_planned_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    before = everything(data, tmp_path)
    words = ["train", data, "--output", tmp_path / "run", *SMALL, "--patch-size", 16, 16, 8]
    result = call(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert everything(data, tmp_path) == before
    told = rows(result.output)
    assert told["method"] == "adversarial"
    assert told["cases"] == "5 cases: 3 train the network, 2 validate it"
    assert told["patches"].startswith("4 a batch of 16 x 16 x 8 voxels, cut 2 x 2 x 1 larger on each side")
    assert "2; 2 iterations each, validated every 5 epochs" in told["epochs"]
    assert "float32" in told["network"]
    assert re.search(r"about [\d.]+ \w+: .*training [\d.]+ ", told["time"])
    assert re.search(r"about [\d.]+ [MG]iB", told["memory"])
    assert call(*words).exit_code == 0
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["patch_size"], config["margin"]) == ([16, 16, 8], [2, 2, 1])
    summary = read_json(tmp_path / "run" / "summary.json")
    assert f"{summary['parameters'] / 1e6:.2f} M" in told["network"]


def test_what_training_would_refuse_is_refused(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    broken = write_phantom(tmp_path / "broken", cases=3, size=16)
    file = broken / "labelsTr" / "phantom_001.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    for words, message in (
        (["train", data, "--output", run[0]], "holds a run already"),
        (["train", broken, "--output", tmp_path / "a"], "phantom_001"),
        (["train", data, "--output", tmp_path / "a", "--method-option", "width=0"], "width"),
        (["train", "--resume", "--output", run[0]], "this run has ended"),
        (["train", "--resume", "--output", tmp_path], "can't be read"),
        (["predict", run[0], data / "imagesTr", run[0] / "validation"], "a prediction is there already"),
        (["predict", run[0], data / "imagesTr", tmp_path / "x.png"], "is neither a folder nor a name"),
    ):  # fmt: skip
        result = call(*words, "--dry-run")
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
    assert not (tmp_path / "a").exists()


def test_a_stopped_run_tells_what_is_left(data: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"network_options": {"channels": [4, 8, 8]}, "validation_cases": 2, "device": "cpu"}
    options = TrainOptions(data, tmp_path / "run", method="none", epochs=5, iterations=2, **small)

    def stop(progress: Any) -> None:
        if progress.stage == "training" and progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, listener=stop)
    before = everything(tmp_path)
    result = call("train", "--resume", "--output", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert rows(result.output)["epochs"].startswith("3 of 5, 2 are done; 2 iterations each")
    assert everything(tmp_path) == before
    assert call("train", "--resume", "--output", tmp_path / "run").exit_code == 0
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 5


def test_a_prediction_is_planned_and_nothing_is_written(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(data / "imagesTr", images)
    first = sorted(images.iterdir())[0]
    assert call("predict", run[0], first, out, "--device", "cpu").exit_code == 0
    broken = sorted(images.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:500])
    before = everything(tmp_path, run[0])
    result = call("predict", run[0], images, out, "--resume", "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert everything(tmp_path, run[0]) == before
    told = rows(result.output)
    assert told["images"] == "3 to predict; 1 are there already; 1 can't be used"
    patch = " x ".join(map(str, read_json(run[0] / "config.json")["patch_size"]))
    assert re.match(rf"\d+ of {patch} voxels in an image of \d+ x \d+ x \d+", told["windows"])
    assert told["views"] == "1"
    assert told["device"] == "cpu, float32"
    assert told["time"].startswith("about ")
    assert told["output"].startswith(str(out))


def test_the_demo_is_planned_with_all_methods_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ["demo", "--output", tmp_path / "demo", "--cases", 8, "--size", 16, "--epochs", 3, "--device", "cpu"]
    result = call(*words, "--method", "task_driven", "--dry-run")
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    told = rows(result.output)
    assert told["cases"] == "8 cases: 6 train the network, 2 validate it, and 8 unlabelled images"
    assert told["epochs"].endswith("phases: deformation 1, appearance 1, network 1")
    assert "30 iterations each, validated every 4 epochs" in told["epochs"]


def test_a_comparison_is_planned_by_real_steps_of_its_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_autoaug.evaluation.comparison import estimate as module

    data = write_phantom(tmp_path / "data", cases=12, size=16)
    tried: list[tuple[str, str]] = []
    original = module.rehearsed

    def look(plan: Any, *given: Any, **named: Any) -> Any:
        tried.append((plan.options.method, plan.options.precision))
        return original(plan, *given, **named)

    monkeypatch.setattr(module, "rehearsed", look)
    before = everything(tmp_path)
    result = call(
        "compare", "--data", data, "--methods", "none,random,joint_policy", "--cases", "3,all", "--seeds", 1,
        "--output", tmp_path / "out", "--epochs", 20, "--iterations", 5, "--test-cases", 6, "--validation-cases", 1,
        "--option", "network_options={channels: [4, 8]}", "--device", "cpu", "--amp", "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert everything(tmp_path) == before
    assert tried == [("none", "mixed"), ("random", "mixed"), ("joint_policy", "mixed")]
    text = " ".join(result.output.split())
    assert re.search(r"6 cells, 0 done; time: about [\d.]+ \w+ in one process, by 4 real steps of each arm", text)
    assert re.search(r"memory: up to about [\d.]+ [MG]iB a process", text)
