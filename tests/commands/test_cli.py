# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The command line: what it writes, what it says, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result

from monai_autoaug import __version__
from monai_autoaug.cli import COMMANDS, main
from monai_autoaug.commands.train import train as train_command
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.report import augmentation_picture, prediction_picture, training_curves

SMALL = ["--epochs", "2", "--iterations", "2", "--validation-cases", "2", "--device", "cpu",
         "--network-option", "channels=[4, 8, 8]"]  # fmt: skip


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("cli") / "data", cases=5, size=20, test=1)


@pytest.fixture(scope="module")
def run(data: Path) -> tuple[Path, Result]:
    folder = data.parent / "run"
    return folder, call("train", data, "--output", folder, *SMALL)


def test_help_and_version() -> None:
    shown = call("--help").output
    assert [line.split()[0] for line in shown.split("Commands:")[1].strip().splitlines()] == list(COMMANDS)
    assert "Not a medical device" in shown
    assert call("--version").output.strip() == f"monai-autoaug, version {__version__}"
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0
    assert call("fly").exit_code == 2


def test_the_help_tells_the_true_defaults_of_all_options() -> None:
    options = {p.name: p for p in train_command.params}
    defaults = TrainOptions("data", "run")
    for field in fields(TrainOptions):
        assert field.name in options
        value = getattr(defaults, field.name)
        told = re.search(r"\[default: (.+)\]", getattr(options[field.name], "help", "") or "")
        if isinstance(value, int | float | str):
            assert told is not None, field.name
            assert told[1] == str(value), field.name


def test_train_leaves_a_run_and_says_what_came_out(run: tuple[Path, Result]) -> None:
    folder, result = run
    assert result.exit_code == 0, result.output
    names = {f.name for f in folder.iterdir()}
    assert names >= {"model.pt", "augmenters.pt", "config.json", "validation.json", "summary.json", "log.jsonl",
                     "training.png", "predictions.png", "augmentations.png", "audit.json"}  # fmt: skip
    evaluation = Evaluation.load(folder / "validation.json")
    assert evaluation.classes == ("head", "body", "round")
    assert len(evaluation.cases) == 2
    assert f"{evaluation.mean():.3f}" in result.output
    assert "adversarial: 2 validation cases" in result.output
    assert "3 training cases, 4 iterations" in result.output


def test_doubts_about_the_data_are_mentioned(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=5, size=20)
    for file in (data / "labelsTr").iterdir():
        label = nib.load(file)
        if "000" in file.name:
            nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), file)
    result = call("train", data, "--output", tmp_path / "run", *SMALL, "--method", "none")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["counts"]["warn"] > 0
    assert "the audit of the data warns" in result.output


def test_predict_and_evaluate(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    folder, _ = run
    result = call("predict", folder, data / "imagesTr", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "wrote 5 predictions" in result.output
    for file in (data / "imagesTr").iterdir():
        image, prediction = nib.load(file), nib.load(tmp_path / "out" / file.name)
        np.testing.assert_array_equal(prediction.affine, image.affine)
        assert prediction.shape == image.shape
    result = call("evaluate", tmp_path / "out", data, "--cases", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert "5 cases" in result.output
    assert len(Evaluation.load(tmp_path / "out.json").cases) == 5
    subset = call("evaluate", folder / "validation", data)
    assert "3 labelled cases have no prediction" in subset.output


def test_check_finds_what_is_wrong(data: Path, tmp_path: Path) -> None:
    good = call("check", data)
    assert good.exit_code == 0, good.output
    assert "5 labelled and 1 other cases (decathlon)" in good.output
    broken = write_phantom(tmp_path / "broken", cases=3, size=20)
    file = broken / "labelsTr" / "phantom_001.nii.gz"
    label = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj) + 7, label.affine), file)
    found = call("check", broken, "--json", tmp_path / "findings.json")
    assert found.exit_code == 1
    assert "phantom_001" in found.output
    assert json.loads((tmp_path / "findings.json").read_text())["counts"]["refuse"] > 0
    refused = call("train", broken, "--output", tmp_path / "run", *SMALL)
    assert refused.exit_code == 2
    assert "phantom_001" in refused.output
    assert not (tmp_path / "run").exists()


def test_an_interrupted_write_leaves_no_half_file(
    run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings, the audit of a run, the evaluation and the pictures: whole or not there."""
    files = [run[0] / name for name in ("validation.json", "training.png", "predictions.png", "augmentations.png")]
    before = [f.read_bytes() for f in files]
    names = sorted(f.name for f in run[0].iterdir())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_autoaug.writing.os.fsync", stop)
    assert call("check", data, "--json", tmp_path / "findings.json").exit_code == 130
    assert call("evaluate", run[0] / "validation", data, "--json", files[0]).exit_code == 130
    assert call("train", data, "--output", tmp_path / "new", *SMALL).exit_code == 130
    result, datalist = Evaluation.load(files[0]), read_datalist(data)
    for draw in (
        lambda: training_curves(run[0] / "log.jsonl", files[1]),
        lambda: prediction_picture(Run(run[0]), datalist, result, files[2]),
        lambda: augmentation_picture(Run(run[0]), datalist, files[3]),
    ):
        with pytest.raises(KeyboardInterrupt):
            draw()
    assert [f.read_bytes() for f in files] == before
    assert sorted(f.name for f in run[0].iterdir()) == names
    assert not (tmp_path / "findings.json").exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_audit_of_a_run_is_written_whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_autoaug.engines import run as engine

    def failing(path: Path, text: str) -> Path:
        assert path.name == "audit.json"
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "write_text", failing)
    assert call("train", data, "--output", tmp_path / "new", *SMALL).exit_code == 130
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["preprocessing.json"]
    monkeypatch.undo()
    assert call("train", data, "--output", tmp_path / "new", *SMALL, "--method", "none").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "Give the folder: monai-autoaug train DATA"),
        (["train", "DATA", "--method", "magic"], "there is no method 'magic'; choose one of adversarial, none, random"),
        (["train", "DATA", "--method-option", "gamma"], "is no key=value"),
        (["train", "DATA", "--method-option", "gamma=1"], "method 'adversarial' has no option gamma"),
        (["train", "DATA", "--method-option", "mode=afine"], "mode must be 'combined' or one of affine,"),
        (["train", "DATA", "--method-option", "width=0"], "method 'adversarial' can't work with width=0"),
        (["train", "DATA", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "DATA", "--validation-cases", "many"], "is no number"),
        (["train", "nowhere"], "nowhere: is not a folder"),
        (["train", "--resume"], "which run? Give its folder"),
        (["train", "--resume", "--output", "RUN", "--epochs", "9"], "leave out epochs"),
        (["train", "--resume", "--output", "RUN"], "this run has ended"),
        (["predict", "nowhere", "DATA", "out"], "preprocessing.json"),
        (["evaluate", "nowhere", "DATA"], "holds no prediction"),
        (["check", "nowhere"], "is not a folder"),
        (["demo", "--method", "magic"], "there is no method 'magic'"),
    ],
)
def test_faults_are_one_message_and_exit_code_2(
    words: list[str], message: str, run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*({"DATA": data, "RUN": run[0]}.get(w, w) for w in words))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_numbers_in_scientific_notation_are_numbers(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("learning_rate: 2e-3\nmethod_options: {learning_rate_generator: 1E-4}\n")
    words = ["train", data, "--config", file, "--output", tmp_path / "run", *SMALL, "--epochs", 1]
    words += ["--normalisation", "ct"]
    result = call(*words, "--method-option", "learning_rate_discriminator=3e-4", "--method-option", "noise_size=8")
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["learning_rate"] == 0.002
    assert options["normalisation"] == ["ct"]
    # options on the command line win over the file's, as a whole
    assert options["method_options"] == {"learning_rate_discriminator": 0.0003, "noise_size": 8}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("--debug", "check", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "DataError"


def test_options_from_a_file_and_the_command_line(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        f"data: {data}\noutput: {tmp_path / 'a'}\nmethod: none\nepochs: 5\niterations: 2\nvalidation_cases: 2\n"
        "device: cpu\npatch_size: [16, 16, 16]\nnetwork_options: {channels: [4, 8]}\n"
    )
    result = call("train", "--config", file, "--epochs", 1)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["options"]["epochs"] == 1
    assert config["options"]["method"] == "none"
    assert config["patch_size"] == [16, 16, 16]
    file.write_text("epoch: 5\ndata: x\noutput: y\n")
    assert "unknown training options: epoch" in call("train", "--config", file).output
    file.write_text("- 1\n")
    assert "must hold options by name" in call("train", "--config", file).output


def test_a_killed_run_is_resumed_from_the_command_line(data: Path, tmp_path: Path) -> None:
    """A real process, stopped by Ctrl-C after its first checkpoint."""
    folder = tmp_path / "run"
    words = ["train", str(data), "--output", str(folder), *SMALL, "--method", "random"]
    words[words.index("--epochs") + 1], words[words.index("--iterations") + 1] = "6", "40"
    process = subprocess.Popen(
        [sys.executable, "-c", "from monai_autoaug.cli import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped" in output
    assert "Traceback" not in output
    assert 1 <= len((folder / "log.jsonl").read_text().splitlines()) < 6
    result = call("train", "--resume", "--output", folder)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert (folder / "validation.json").exists()


@pytest.mark.parametrize("lacks", [["validation.json"], ["augmentations.png", "predictions.png"]])
def test_resuming_makes_what_is_missing(run: tuple[Path, Result], tmp_path: Path, lacks: list[str]) -> None:
    """Killed between the end of training and the last picture."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    model = (folder / "model.pt").stat().st_mtime_ns
    for name in lacks:
        (folder / name).unlink()
    result = call("train", "--resume", "--output", folder)
    assert result.exit_code == 0, result.output
    assert {f.name for f in folder.iterdir()} == {f.name for f in run[0].iterdir()}
    assert (folder / "validation.json").read_text() == (run[0] / "validation.json").read_text()
    assert (folder / "model.pt").stat().st_mtime_ns == model  # nothing was trained
    again = call("train", "--resume", "--output", folder)
    assert again.exit_code == 2
    assert "has ended and lacks nothing" in again.output


@pytest.mark.parametrize("method", ["adversarial", "none"])
def test_demo_in_small(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = call("demo", "--output", folder, "--method", method, "--cases", 8, "--size", 16, "--epochs", 1,
                  "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(list((folder / "predictions").iterdir())) == 2
    assert (folder / "run" / "augmentations.png").exists() == (method == "adversarial")
    assert f"{method}: 6 validation cases" in result.output
    again = call("demo", "--output", folder)
    assert again.exit_code == 2
    assert "holds a demo already" in again.output


def test_the_bar_shows_every_stage(data: Path, tmp_path: Path) -> None:
    """On a terminal: a pseudo-terminal gets stages, epoch, loss and Dice."""
    pty = pytest.importorskip("pty")
    words = ["train", str(data), "--output", str(tmp_path / "run"), *SMALL, "--method", "none"]
    code = "from monai_autoaug.cli import main; main()"
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=child, stderr=child, stdin=child, close_fds=True,
        env=os.environ | {"COLUMNS": "160", "TERM": "xterm"},
    )  # fmt: skip
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(parent)
    assert process.wait(timeout=60) == 0
    text = seen.decode(errors="replace")
    for word in ("checking", "preparing", "training", "predicting", "epoch 2/2", "loss ", "Dice 0."):
        assert word in text, word
