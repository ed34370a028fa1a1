# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What training and the demo leave, also when they are stopped, and that a bar shows every stage."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_helpers import SMALL, call
from click.testing import Result

from monai_autoaug import policies
from monai_autoaug.commands import complete
from monai_autoaug.commands.demo import demo as demo_command
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines import TrainOptions
from monai_autoaug.engines.folder import Run
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods import METHODS
from monai_autoaug.report import augmentation_picture, prediction_picture, training_curves


def test_train_leaves_a_run_and_says_what_came_out(run: tuple[Path, Result]) -> None:
    folder, result = run
    assert result.exit_code == 0, result.output
    names = {f.name for f in folder.iterdir()}
    assert names >= {"model.pt", "augmenters.pt", "config.json", "validation.json", "summary.json", "log.jsonl",
                     "training.png", "predictions.png", "augmentations.png", "audit.json"}  # fmt: skip
    evaluation = Evaluation.load(folder / "validation.json")
    assert evaluation.classes == ("head", "body", "round")
    assert len(evaluation.cases) == 2
    assert evaluation.without_prediction == ()  # the training cases are not asked for
    assert np.isnan(evaluation.interval().low)
    assert "no interval of fewer than 5 cases" in result.output
    assert "is another figure: on volumes resampled for the network" in " ".join(result.output.split())
    assert f"{evaluation.mean():.3f}" in result.output
    assert "adversarial: 2 validation cases" in result.output
    assert "3 training cases, 4 iterations" in result.output


def test_python_makes_what_the_command_makes(
    run: tuple[Path, Result], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"network_options": {"channels": [4, 8, 8]}, "validation_cases": 2, "device": "cpu"}
    options = TrainOptions(data, tmp_path / "run", epochs=2, iterations=2, **small)
    heard: list[str] = []
    evaluation = complete(options, listener=lambda progress: heard.append(progress.stage))
    assert {f.name for f in (tmp_path / "run").iterdir()} == {f.name for f in run[0].iterdir()}
    assert evaluation.to_dict() == Evaluation.load(run[0] / "validation.json").to_dict()
    stages = ["checking", "hashing", "preparing", "training", "predicting", "evaluating", "drawing"]
    assert list(dict.fromkeys(heard)) == stages
    assert capsys.readouterr().out == ""
    complete(replace(options, output=tmp_path / "shown", epochs=1, method="none"))
    assert "drawing" in capsys.readouterr().out  # progress bars, unless somebody listens


def test_a_full_disk_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    """A real process whose files may not be as large as a checkpoint."""
    pytest.importorskip("resource")
    folder = tmp_path / "run"
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY));"
        "from monai_autoaug.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(data), "--output", str(folder), *SMALL], check=False,
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    told = " ".join(done.stderr.split())
    assert f"error: {folder}/checkpoint.pt: File too large. To do: free some space, then go on with:" in told
    assert f"monai-autoaug train --resume --output {folder}" in told
    assert "Traceback" not in told
    result = call("train", "--resume", "--output", folder)
    assert result.exit_code == 0, result.output


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
    assert not (tmp_path / "new").exists()


def test_the_audit_of_a_run_is_written_whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_autoaug.engines import run as engine

    def failing(path: Path, text: str) -> Path:
        assert path.name == "audit.json"
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "write_text", failing)
    assert call("train", data, "--output", tmp_path / "new", *SMALL).exit_code == 130
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    assert call("train", data, "--output", tmp_path / "new", *SMALL, "--method", "none").exit_code == 0


# a shell starts what is to run in the background with Ctrl-C ignored, and so all that the tests start there
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def test_a_killed_run_is_resumed_from_the_command_line(data: Path, tmp_path: Path) -> None:
    """A real process, stopped by Ctrl-C after its first checkpoint."""
    folder = tmp_path / "run"
    words = ["train", str(data), "--output", str(folder), *SMALL, "--method", "random"]
    words[words.index("--epochs") + 1], words[words.index("--iterations") + 1] = "6", "40"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{INTERRUPTIBLE}; from monai_autoaug.cli import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"stopped; go on with: monai-autoaug train --resume --output {folder}" in output
    assert "Traceback" not in output
    assert 1 <= len((folder / "log.jsonl").read_text().splitlines()) < 6
    result = call("train", "--resume", "--output", folder)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert (folder / "validation.json").exists()


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "cpu_seconds")} for line in lines]


def kill(words: list[str], folder: Path, after: float) -> None:
    """Run a command in a process of its own and kill it some seconds after the run's folder has its configuration."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from monai_autoaug.cli import main; main()", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "config.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.long)])
def test_a_run_survives_kills_at_any_moment(data: Path, tmp_path: Path, kills: int) -> None:
    """Nothing can be tidied up when SIGKILL comes, and the run ends as the one that was never disturbed."""
    words = ["train", str(data), *SMALL, "--method", "adversarial"]
    words[words.index("--epochs") + 1], words[words.index("--iterations") + 1] = "5", "6"
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    result = call(*words, "--output", whole)
    assert result.exit_code == 0, result.output
    resumed = ["train", "--resume", "--output", str(folder)]
    moments = random.Random(kills)  # noqa: S311
    for n in range(kills):
        # the first kill within training; the others anywhere from the imports of a resumed run to its last picture
        after = moments.uniform(0, 4) if n == 0 else moments.uniform(0, 15)
        kill(resumed if (folder / "config.json").exists() else [*words, "--output", str(folder)], folder, after)
    result = call(*(resumed if (folder / "config.json").exists() else [*words, "--output", folder]))
    assert result.exit_code == 0 or "lacks nothing" in result.output, result.output
    assert log_of(folder) == log_of(whole)
    models = [Run(f).load_model().state_dict() for f in (folder, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models), strict=True))
    assert (folder / "validation.json").read_text() == (whole / "validation.json").read_text()
    assert {f.name for f in folder.rglob("*")} == {f.name for f in whole.rglob("*")}  # no temporary file is left


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


def test_joint_policies_from_data_to_predictions(data: Path, tmp_path: Path) -> None:
    """Trained, kept, told, and applied by predict unless it is told not to."""
    folder, image = tmp_path / "run", sorted((data / "imagesTs").iterdir())[0]
    (tmp_path / "options.yaml").write_text("meta-split: resampled\nmethod-option: [views=3, meta_batch=4]\n")
    words = ["--method", "joint_policy"]
    meta = ["--meta-cases", "0.4", "--config", tmp_path / "options.yaml"]
    result = call("train", data, "--output", folder, *SMALL, *words, "--method-option", "warm_up=4", *meta)
    assert result.exit_code == 2
    assert "the policy would never be updated: training has 4 steps" in " ".join(result.output.split())
    assert not folder.exists()
    result = call("train", data, "--output", folder, *SMALL, *words, *meta)
    assert result.exit_code == 0, result.output
    assert "2 training cases and 1 for meta-validation" in result.output
    # of 4 updates, those for which a batch of 4 has enough samples of both classes
    assert "the policy is updated 2 times only" in " ".join(result.output.split())
    assert json.loads((folder / "config.json").read_text())["options"]["meta_cases"] == 0.4
    for kind in ("background", "foreground"):  # two updates decide nothing
        assert any(kind in line and "no operation is decided" in line for line in result.output.splitlines())
    assert "averaged at test time, with their weights: " in result.output
    assert (folder / "policy.png").read_bytes()[:4] == b"\x89PNG"
    assert "policy.png" in result.output
    found = policies.load(folder / "policy.json")
    assert found.seen is not None
    assert not found.seen.decided().any()
    (folder / "policy.png").unlink()  # killed before the last picture
    assert call("train", "--resume", "--output", folder).exit_code == 0
    assert (folder / "policy.png").exists()
    for name, more in (("learned", []), ("alone", ["--z", "0"]), ("three", ["--z", "3", "--average", "probabilities"])):
        result = call("predict", folder, image, tmp_path / f"{name}.nii.gz", "--device", "cpu", *more)
        assert result.exit_code == 0, result.output
    learned, alone = (np.asarray(nib.load(tmp_path / f"{n}.nii.gz").dataobj) for n in ("learned", "alone"))
    assert (learned != alone).any()
    assert "warning" not in result.stderr
    (folder / "policy.json").unlink()
    result = call("predict", folder, image, tmp_path / "without.nii.gz", "--device", "cpu")
    assert result.exit_code == 0
    assert f"warning: {folder / 'policy.json'}: is not there, but this run (method joint_policy)" in result.stderr
    assert "images are predicted as they are" in result.stderr
    assert "(--z 0)" in result.stderr
    assert "AutoAugWarning" not in result.stderr  # one plain line
    meant = call("predict", folder, image, tmp_path / "meant.nii.gz", "--device", "cpu", "--z", "0")
    assert meant.exit_code == 0
    assert meant.stderr == ""
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "without.nii.gz").dataobj), alone)
    result = call("predict", folder, image, tmp_path / "x.nii.gz", "--z", "8")
    assert result.exit_code == 2
    assert "policy.json: is not there" in " ".join(result.output.split())


def test_the_help_knows_every_method() -> None:
    for command in ("train", "demo"):
        told = " ".join(call(command, "--help").output.split())
        assert all(name in told for name in METHODS), command


@pytest.mark.parametrize("method", ["adversarial", "none", "task_driven"])
def test_demo_in_small(method: str, tmp_path: Path) -> None:
    folder, epochs = tmp_path / "demo", 3 if method == "task_driven" else 1  # a phase of one each
    result = call("demo", "--output", folder, "--method", method, "--cases", 8, "--size", 16, "--epochs", epochs,
                  "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(list((folder / "predictions").iterdir())) == 2
    assert len(list((folder / "data" / "labelsTr").iterdir())) == 8
    assert (folder / "run" / "augmenters.pt").exists() == (method != "none")
    for stage in ("writing", "checking", "preparing", "training", "predicting", "evaluating", "drawing"):
        assert stage in result.output, stage
    for structure in ("head", "body", "round", "mean"):
        assert structure in result.output.split("validation cases")[1]
    assert (folder / "run" / "augmentations.png").exists() == (method != "none")
    assert (folder / "unlabelled").exists() == (method == "task_driven")
    assert "8 cases: 6 train the network, 2 validate it" in result.output
    assert (", and 8 unlabelled images" in result.output) == (method == "task_driven")
    assert f"{method}: 2 validation cases" in result.output
    again = call("demo", "--output", folder)
    assert again.exit_code == 2
    assert "holds a demo already" in again.output


def test_the_demo_is_the_size_that_is_promised() -> None:
    defaults = {p.name: p.default for p in demo_command.params}
    assert (defaults["cases"], defaults["size"], defaults["method"], defaults["device"]) == (
        24, 48, "adversarial", "auto"
    )  # fmt: skip


@pytest.mark.long
def test_the_demo_takes_less_than_five_minutes(tmp_path: Path) -> None:
    """Of one core's time, which is stricter than two cores and doesn't change with other work on the machine."""
    resource = pytest.importorskip("resource")
    folder = tmp_path / "demo"
    words = ["demo", "--output", str(folder), "--device", "cpu"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "from monai_autoaug.cli import main; main()", *words], check=True,
        stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5 * 60
    assert Evaluation.load(folder / "run" / "validation.json").mean() > 0.6


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
    stages = ("checking", "hashing", "preparing", "training", "predicting", "evaluating", "drawing")
    for word in (*stages, "epoch 2/2", "loss ", "Dice 0.", "(head ", "iB"):
        assert word in text, word
