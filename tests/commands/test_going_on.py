# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``--resume`` of predictions and demos: what is there stays, the rest is made."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import call
from click.testing import Result

from monai_autoaug.engines import prediction
from monai_autoaug.engines.folder import Run

demo_module = import_module("monai_autoaug.commands.demo")
DEMO = ["--cases", 8, "--size", 16, "--epochs", 2, "--method", "none", "--device", "cpu"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that takes seconds."""
    monkeypatch.setitem(demo_module._TRAINING, "iterations", 3)
    monkeypatch.setitem(demo_module._TRAINING, "patch_size", (16, 16, 16))


def test_predictions_that_are_there_stay(
    run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", run[0], data / "imagesTr", tmp_path / "out", "--device", "cpu"]
    original, calls = prediction.predict_cases, list[object]()

    def stop(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(prediction, "predict_cases", stop)
    stopped = call(*words)
    assert stopped.exit_code == 130
    again = f"go on with: monai-autoaug predict {run[0]} {data / 'imagesTr'} {tmp_path / 'out'} --device cpu --resume"
    assert again in " ".join(stopped.output.split())
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    assert len(before) == 2
    monkeypatch.undo()
    refused = call(*words)
    assert refused.exit_code == 2
    assert "make only those that are missing (--resume)" in " ".join(refused.output.split())
    result = call(*words, "--resume")
    assert result.exit_code == 0, result.output
    assert "2 of 5 predictions are there already and stay" in result.output
    assert "5 predictions in" in result.output
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    assert len(after) == 5
    assert after.items() > before.items()
    nothing = call(*words, "--resume")
    assert nothing.exit_code == 0
    assert "5 of 5 predictions are there already and stay" in nothing.output
    assert "give one" in call(*words, "--resume", "--overwrite").output
    single = call("predict", run[0], sorted((data / "imagesTr").iterdir())[0], tmp_path / "one.nii.gz", "--resume")
    assert single.exit_code == 0, single.output
    assert "1 prediction in" in single.output
    assert "already" not in single.output


@pytest.mark.usefixtures("short")
def test_a_demo_goes_on_wherever_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    words = ["demo", "--output", folder, *DEMO]

    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # before there is a run: nothing to go on with but the same call
        patched.setattr("monai_autoaug.engines.run.train", interrupted)
        begun = call(*words)
    assert begun.exit_code == 130
    assert "go on with" not in begun.output
    with monkeypatch.context() as patched:  # within the training
        patched.setattr("monai_autoaug.engines.fit.Fit._after_iteration", interrupted)
        stopped = call(*words, "--resume")  # the data is there, the run has yet to begin
    assert stopped.exit_code == 130, stopped.output
    assert f"go on with: monai-autoaug demo --resume --output {folder}" in stopped.output
    assert "finish it with --resume" in " ".join(call(*words).output.split())
    extra = call(*words, "--resume")
    assert extra.exit_code == 2
    assert "leave out cases, epochs, method, size" in " ".join(extra.output.split())
    with monkeypatch.context() as patched:  # behind the training
        patched.setattr("monai_autoaug.engines.prediction.predict", interrupted)
        assert call("demo", "--output", folder, "--resume").exit_code == 130
    run = Run(folder / "run")
    assert json.loads(run.config.read_text())["options"]["epochs"] == 2
    assert run.evaluation.exists()
    model = run.model.stat().st_mtime_ns
    done = call("demo", "--output", folder, "--resume", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert run.model.stat().st_mtime_ns == model
    assert len(list((folder / "predictions").iterdir())) == 2
    assert "none: 2 validation cases" in done.output
    shutil.rmtree(folder / "predictions")
    run.evaluation.unlink()  # killed between training and pictures
    assert call("demo", "--output", folder, "--resume").exit_code == 0
    assert run.evaluation.exists()
    assert len(list((folder / "predictions").iterdir())) == 2


@pytest.mark.usefixtures("short")
def test_a_demo_of_a_method_that_learns_from_unlabelled_images(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = call(
        "demo", "--output", folder, "--method", "task_driven", "--cases", 8, "--size", 16, "--epochs", 3,
        "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "8 cases: 6 train the network, 2 validate it, and 8 unlabelled images" in result.output
    assert len(list((folder / "predictions").iterdir())) == 2
    config = json.loads((folder / "run" / "config.json").read_text())
    assert len(config["unlabelled"]) == 8
