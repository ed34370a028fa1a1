# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What goes wrong around a run: one message, the last good state stays, no process is left, and it can be gone on."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import PATIENCE, children, complete, gone, needs_kill, run_command, said, server, temporary
from run_helpers import options, rows, stop_at, weights

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import log, predict, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.prediction import PredictionError
from monai_autoaug.errors import AutoAugError, AutoAugWarning, CheckpointError, DataError, WorkerError
from monai_autoaug.precision import Precision

SMALL = ["--epochs", "4", "--iterations", "2", "--validation-cases", "1", "--device", "cpu", "--batch-size", "2",
         "--patch-size", "8", "8", "8", "--network-option", "channels=[2, 4]"]  # fmt: skip


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("faults") / "data", cases=4, size=16, test=3)


def small(data: Path, folder: Path, **changes: Any) -> Any:
    given = {"method": "random", "epochs": 3, "iterations": 2, "validation_cases": 1, "batch_size": 2,
             "patch_size": (8, 8, 8), "network_options": {"channels": [2, 4]}}  # fmt: skip
    return options(data, folder, **(given | changes))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing has disturbed."""
    return train(small(data, tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def begun() -> Callable[[], list[int]]:
    """Processes that have begun within the test; tests before it may have left others, such as torch's compiler."""
    before = set(children())
    return lambda: [child for child in children() if child not in before]


def as_whole(run: Run, whole: Run) -> None:
    assert rows(run) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(whole).values(), strict=True))
    assert not temporary(run.folder)
    assert {p.name for p in run.folder.iterdir()} == {p.name for p in whole.folder.iterdir()}


@pytest.mark.parametrize("number", [3, 5, 8, 9])
def test_a_disk_that_is_full_from_some_write_on(
    number: int, data: Path, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the configuration, over checkpoints, model and predictions, to the summary."""
    original, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file)

    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            train(small(data, run.folder))
    assert len(calls) == number
    assert Path(str(caught.value.filename)).parent in (run.folder, run.validation)
    if number > 3:
        complete(run.folder)
        assert not temporary(run.folder)
        resume(run.folder)
        as_whole(run, whole)
    else:  # nothing had begun
        assert not run.folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*log.jsonl'"):
        log.append(tmp_path / "log.jsonl", {"epoch": 1})


@needs_kill
def test_a_folder_that_may_not_be_written(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    """Before anything is read; of the tests' own permissions a real process has only what files say."""
    closed, output = tmp_path / "closed", tmp_path / "said.txt"
    closed.mkdir(mode=0o500)
    for words in (["train", data, "--output", closed / "run"], ["train", data, "--output", closed],
                  ["train", data, "--output", tmp_path / "run", "--cache", closed]):  # fmt: skip
        process = run_command(processes, output, *words, *SMALL, restricted=True)
        process.join()
        assert process.exitcode == 2
        assert "can't be written (Permission denied); choose a folder that can be made and written" in said(output)
        assert "Traceback" not in said(output)
    assert list(closed.iterdir()) == []
    assert not (tmp_path / "run").exists()


@needs_kill
def test_a_folder_that_becomes_read_only(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    folder, output = tmp_path / "run", tmp_path / "said.txt"
    process = run_command(processes, output, "train", data, "--output", folder, *SMALL, "--epochs", 200,
                          restricted=True)  # fmt: skip
    wait_for(Run(folder).checkpoint, process)
    folder.chmod(0o500)
    process.join()
    try:
        assert process.exitcode == 2
        assert "Permission denied. To do: choose a file or folder that you may use, or change" in said(output)
        assert f"its permissions, then go on with: monai-autoaug train --resume --output {folder}" in said(output)
        assert "Traceback" not in said(output)
        before = Run(folder).load_checkpoint()["trainer"]["iteration"]
        assert before > 0
        process = run_command(processes, output, "train", "--resume", "--output", folder, restricted=True)
        process.join()
        assert process.exitcode == 2
        assert "can't be written (Permission denied)" in said(output)
    finally:
        folder.chmod(0o700)
    process = run_command(processes, output, "train", "--resume", "--output", folder, restricted=True)
    deadline = time.monotonic() + PATIENCE
    while Run(folder).load_checkpoint()["trainer"]["iteration"] <= before:
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()


@needs_kill
@pytest.mark.parametrize("what", ["image", "checkpoint", "model"])
def test_a_file_that_may_not_be_read(what: str, data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    output, run = tmp_path / "said.txt", Run(tmp_path / "run")
    images = write_phantom(tmp_path / "data", cases=3, size=16)
    if what == "image":
        file = sorted((images / "imagesTr").iterdir())[0]
        words = ["train", images, "--output", run.folder, *SMALL]
    else:
        stop = stop_at(5) if what == "checkpoint" else lambda progress: None
        try:
            train(small(images, run.folder), listener=stop)
        except KeyboardInterrupt:
            pass
        file = run.checkpoint if what == "checkpoint" else run.model
        words = ["train", "--resume", "--output", run.folder] if what == "checkpoint" else ["predict", run.folder,
                 images / "imagesTr", tmp_path / "out"]  # fmt: skip
    file.chmod(0)
    process = run_command(processes, output, *words, restricted=True)
    process.join()
    assert process.exitcode == 2
    assert file.name.split(".")[0] in said(output)
    assert "Permission denied" in said(output)
    assert "Traceback" not in said(output)


def deleting(stage: str, done: int, files: Callable[[], Any]) -> Any:
    """A listener that moves files away at a point of a stage."""

    def listen(progress: Any) -> None:
        if (progress.stage, progress.done) == (stage, done):
            for file in files():
                file.rename(file.with_name(file.name + ".gone"))

    return listen


def back(folder: Path) -> None:
    for file in list(folder.rglob("*.gone")):
        file.rename(file.with_name(file.name.removesuffix(".gone")))


def test_a_case_deleted_before_it_is_prepared(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=16)
    images = data / "imagesTr"
    gone_away = deleting("checking", 4, lambda: sorted(images.iterdir())[2:3])
    with pytest.raises((DataError, OSError), match=r"phantom_002.nii.gz.*|No such file.*phantom_002"):
        train(small(data, tmp_path / "run"), listener=gone_away)
    assert not (tmp_path / "run").exists()
    back(images)
    train(small(data, tmp_path / "run"))


def halving(done: int, files: Callable[[], Any]) -> Any:
    """A listener after which only half of each file is there."""

    def listen(progress: Any) -> None:
        if (progress.stage, progress.done) == ("training", done):
            for file in files():
                file.with_name(file.name + ".gone").write_bytes(file.read_bytes())
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return listen


@pytest.mark.parametrize(("damaged", "workers"), [(False, 0), (False, 2), (True, 2)])
def test_a_case_deleted_while_it_is_trained_on(
    damaged: bool, workers: int, tmp_path: Path, whole: Run, begun: Callable[[], list[int]]
) -> None:
    """Volumes on disk: the prepared one and what it was made of."""
    copy, cache = write_phantom(tmp_path / "data", cases=4, size=16, test=3), tmp_path / "cache"
    run = Run(tmp_path / "run")
    message = r"phantom_00\d.nii.gz: can't be opened; .*No such file or directory. To do: check the path"
    listener = deleting("training", 3, lambda: [*cache.rglob("*.pt"), *(copy / "imagesTr").iterdir()])
    if damaged:
        message = r"phantom_00\d: can't be read any more \(.*\)\. To do: put its files back as they were"
        listener = halving(3, lambda: list(cache.rglob("*.pt")))
    with pytest.raises(DataError, match=message) as caught:
        train(small(copy, run.folder, cache=cache, workers=workers), listener=listener)
    assert "Traceback" not in str(caught.value)
    assert not begun()
    complete(run.folder)
    assert run.load_checkpoint()["trainer"]["iteration"] == 2
    back(tmp_path)
    resume(run.folder)
    as_whole(run, whole)


def test_a_damaged_prepared_volume_is_made_again(tmp_path: Path, data: Path, whole: Run) -> None:
    """A kill or a full disk within MONAI's own write, which is a copy from another disk, leaves half of one."""
    cache = tmp_path / "cache"
    train(small(data, tmp_path / "first", cache=cache))
    assert not temporary(cache)
    files = sorted(cache.rglob("*.pt"))
    wanted = files[0].read_bytes()
    files[0].write_bytes(wanted[: len(wanted) // 2])
    with pytest.warns(AutoAugWarning, match=r"\.pt: is damaged .* this volume is made and written again"):
        run = train(small(data, tmp_path / "second", cache=cache))
    assert files[0].read_bytes() == wanted
    as_whole(run, whole)


def test_an_image_deleted_while_others_are_predicted(data: Path, tmp_path: Path, whole: Run) -> None:
    images = write_phantom(tmp_path / "data", cases=1, size=16, test=3) / "imagesTs"
    gone_away = deleting("predicting", 1, lambda: sorted(images.iterdir())[1:2])
    with pytest.raises(PredictionError) as caught:
        predict(whole.folder, images, tmp_path / "out", device="cpu", listener=gone_away)
    assert list(caught.value.failed) == ["phantom_002"]
    assert "phantom_002.nii.gz" in str(caught.value)
    assert len(caught.value.written) == 2


def killing(done: int, begun: Callable[[], list[int]]) -> Any:
    """A listener that kills a worker of this process."""

    def listen(progress: Any) -> None:
        if (progress.stage, progress.done) == ("training", done):
            os.kill(begun()[0], signal.SIGKILL)

    return listen


@needs_kill
@pytest.mark.parametrize("method", ["random", "adversarial"])
def test_a_worker_that_dies_is_told_and_the_run_goes_on(
    method: str, data: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    """The second method has a second stream of patches, with workers of its own."""
    given = {"method": method, "epochs": 12, "workers": 2}
    wanted = train(small(data, tmp_path / "whole", **given))
    run = Run(tmp_path / "run")
    with pytest.raises(WorkerError, match=r"a process that makes patches has died .* To do: use fewer workers"):
        train(small(data, run.folder, **given), listener=killing(5, begun))
    assert not begun()
    complete(run.folder)
    assert run.load_checkpoint()["trainer"]["iteration"] >= 4
    resume(run.folder)
    as_whole(run, wanted)


def wait_for(file: Path, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_kill
@pytest.mark.parametrize("everybody", [True, False], ids=["terminal", "process"])
def test_an_interrupted_run_leaves_no_process(
    everybody: bool, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """Ctrl-C on a terminal reaches the workers, too; a scheduler sends its signal to the process alone."""
    folder, output = tmp_path / "run", tmp_path / "said.txt"
    words = ["train", data, "--output", folder, *SMALL, "--epochs", 500, "--workers", 2, "--method", "adversarial"]
    process = run_command(processes, output, *words)
    wait_for(Run(folder).checkpoint, process)
    assert process.pid is not None
    (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT)
    process.join(timeout=PATIENCE)
    assert process.exitcode == 130
    assert f"stopped; go on with: monai-autoaug train --resume --output {folder}" in said(output)
    assert "Traceback" not in said(output)
    assert gone(process.pid, seconds=1)
    complete(folder)
    assert not (folder / ".lock").exists()


@needs_kill
def test_a_worker_that_dies_is_told_on_the_command_line(
    data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    folder, output = tmp_path / "run", tmp_path / "said.txt"
    words = ["train", data, "--output", folder, *SMALL, "--epochs", 500, "--workers", 2]
    process = run_command(processes, output, *words)
    wait_for(Run(folder).checkpoint, process)
    assert process.pid is not None
    os.kill(children(process.pid)[0], signal.SIGKILL)
    process.join(timeout=PATIENCE)
    assert process.exitcode == 2
    assert "error: a process that makes patches has died" in said(output)
    assert f"then go on with: monai-autoaug train --resume --output {folder}" in said(output)
    assert "Traceback" not in said(output)
    assert gone(process.pid, seconds=1)
    complete(folder)


@needs_kill
def test_a_killed_run_leaves_no_process(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    folder, output = tmp_path / "run", tmp_path / "said.txt"
    words = ["train", data, "--output", folder, *SMALL, "--epochs", 500, "--workers", 2]
    process = run_command(processes, output, *words)
    wait_for(Run(folder).checkpoint, process)
    process.kill()
    process.join()
    assert process.pid is not None
    assert gone(process.pid)


def spoiling(monkeypatch: pytest.MonkeyPatch, first: int, gradient: float | None, weight: float | None = None) -> None:
    """From some update of the network on, counted from 1 after the rehearsal's, a gradient or a weight is spoilt."""
    original, calls = Precision.step, []

    def step(self: Precision, name: str, optimizer: torch.optim.Optimizer, **given: Any) -> bool:
        parameter = optimizer.param_groups[0]["params"][0]
        if name == "network":
            calls.append(name)
            if len(calls) > first and gradient is not None:
                parameter.grad.fill_(gradient)
        done = original(self, name, optimizer, **given)
        if name == "network" and len(calls) > first and weight is not None:
            parameter.data.view(-1)[0] = weight
        return done

    monkeypatch.setattr(Precision, "step", step)


def test_training_stops_where_nothing_is_finite_any_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoiling(patch, 5, torch.nan)
        with pytest.raises(AutoAugError, match=r"of network was not finite in 51 updates in a row; the last"):
            train(small(data, run.folder, epochs=40))
    checkpoint = run.load_checkpoint()  # which refuses what is not finite
    skipped = checkpoint["autoaug"]["method"]["precision"]["skipped"]
    assert skipped["network"] in (49, 50)  # until the epoch before
    resume(run.folder)
    assert json.loads(run.summary.read_text())["skipped_updates"] == skipped


def test_an_infinite_weight_does_not_replace_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoiling(patch, 4, None, torch.inf)
        with pytest.raises(CheckpointError, match="the weights of network are not finite .* the last good state stays"):
            train(small(data, run.folder))
    assert run.load_checkpoint()["trainer"]["iteration"] == 2
    resume(run.folder)
    as_whole(run, whole)
