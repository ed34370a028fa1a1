# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What goes wrong around an nnU-Net training: one message, the last good checkpoint stays, no process is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import (
    PATIENCE,
    begin,
    children,
    complete,
    ended,
    gone,
    needs_kill,
    run_command,
    said,
    same,
    server,
    steady,
    taken,
    temporary,
)
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from test_resume import Killed

from monai_autoaug.errors import AutoAugError, CheckpointError, DataError
from monai_autoaug.nnunet.trainers import TRAINERS, with_autoaug
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

ENVIRONMENT = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_def_n_proc")
MANY = "epochs: 500\nsave_every: 1\niterations_per_epoch: 2\nval_iterations_per_epoch: 1\nbatch_size: 2\n"


@pytest.fixture(scope="module")
def processes(nnunet_folders: Path) -> ForkServerContext:
    return server()


class Training:
    """``monai-autoaug nnunet train`` in a process of its own, that goes on and on."""

    def __init__(self, processes: ForkServerContext, dataset: Any, folder: Path, **options: Any) -> None:
        self.folder, self.output = folder / "results", folder / "said.txt"
        (folder / "options.yaml").write_text(MANY)
        self.words = ["train", str(dataset.number), "3d_fullres", "0", "-device", "cpu"]
        environment = {n: os.environ[n] for n in ENVIRONMENT} | {
            "nnUNet_results": str(self.folder), "nnUNet_n_proc_DA": "2",
            "MONAI_AUTOAUG_CONFIG": str(folder / "options.yaml"),
        }  # fmt: skip
        self.process = run_command(processes, self.output, "nnunet", *self.words, **environment, **options)

    def begun(self) -> Path:
        """Wait for the first checkpoint."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = list(self.folder.rglob("checkpoint_latest.pth"))
            if found:
                return found[0]
            assert self.process.exitcode is None, said(self.output)
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends(self, code: int, *, removable: bool = True) -> str:
        """What is said at the end; no process is left, and all files are whole; what was being written is gone, too."""
        self.process.join(timeout=PATIENCE)
        assert self.process.exitcode == code, said(self.output)
        assert self.process.pid is not None
        assert gone(self.process.pid, seconds=1)
        complete(self.folder)
        assert not (removable and temporary(self.folder))
        return said(self.output)


@pytest.fixture
def training(processes: ForkServerContext, tiny: Any, tmp_path: Path) -> Iterator[Training]:
    made = Training(processes, tiny, tmp_path)
    yield made
    made.process.kill()


@needs_kill
def test_an_interrupted_training_leaves_no_process(training: Training) -> None:
    """Ctrl-C on a terminal reaches the workers, too."""
    training.begun()
    assert training.process.pid is not None
    os.killpg(training.process.pid, signal.SIGINT)
    told = training.ends(130)
    assert f"stopped; go on with: monai-autoaug nnunet {' '.join(training.words)} --c" in told


@needs_kill
def test_a_worker_that_dies_is_told(training: Training) -> None:
    training.begun()
    os.kill(children(training.process.pid)[0], signal.SIGKILL)
    told = training.ends(2)
    assert "error: a process that makes patches (" in told
    assert "has died by signal 9 (SIGKILL)" in told
    assert f"then go on with: monai-autoaug nnunet {' '.join(training.words)} --c" in told


@needs_kill
def test_a_folder_that_becomes_read_only(processes: ForkServerContext, tiny: Any, tmp_path: Path) -> None:
    training = Training(processes, tiny, tmp_path, restricted=True)
    latest = training.begun()
    latest.parent.chmod(0o500)
    try:
        told = training.ends(2, removable=False)  # nothing can be removed from such a folder
    finally:
        latest.parent.chmod(0o700)
    assert "Permission denied. To do: choose a file or folder that you may use, or change its permissions" in told
    assert f"then go on with: monai-autoaug nnunet {' '.join(training.words)} --c" in told
    torch.load(latest, weights_only=False)


@needs_kill
def test_results_that_may_not_be_written(processes: ForkServerContext, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o500)
    training = Training(processes, tiny, tmp_path, restricted=True)
    told = training.ends(2)
    assert "Permission denied" in told
    assert "Traceback" not in told


def test_a_disk_that_is_full_from_some_write_on(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, the log and the policy; what is there is a state to go on from."""
    options: dict[str, Any] = {"epochs": 3, "save_every": 1, "method_options": {"warm_up": 0, "width": 2}}
    whole = tiny.trainer(Adversarial, fold=30, **options)
    whole.fold = 0
    whole.run_training()
    wanted = torch.load(Path(whole.output_folder) / "checkpoint_final.pth", weights_only=False)
    for fold, number in ((31, 6), (32, 9), (33, 11)):
        calls: list[int] = []

        def full(file: int, calls: list[int] = calls, number: int = number) -> None:
            calls.append(file)
            if len(calls) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")

        first = tiny.trainer(Adversarial, fold=fold, **options)
        first.fold = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left on device"):
                first.run_training()
        assert not first._streams
        folder = Path(first.output_folder)
        complete(folder)
        assert not temporary(folder)
        second = tiny.trainer(Adversarial, fold=fold, resume=True, **options)
        second.fold = 0
        latest = folder / "checkpoint_latest.pth"
        if latest.exists():
            second.load_checkpoint(str(latest))
        second.run_training()
        got = torch.load(folder / "checkpoint_final.pth", weights_only=False)
        for key in ("network_weights", "optimizer_state", "autoaug"):
            same(got[key], wanted[key], key)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_case_deleted_under_way(
    workers: str, make_dataset: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]
) -> None:
    dataset = make_dataset(labels={"background": 0, "shell": 1, "core": 2})
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    trainer = dataset.trainer(Adversarial, epochs=50, save_every=1)
    closing.append(trainer)
    end = trainer.on_epoch_end

    def on_epoch_end() -> None:
        end()
        for file in (dataset.preprocessed / dataset.name).rglob("case_*.b2nd"):
            file.unlink()

    trainer.on_epoch_end = on_epoch_end
    with pytest.raises(DataError, match=r"batch \d+ of the \w+ patches can't be made \(.*case_\d"):
        trainer.run_training()
    assert not trainer._streams
    content = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert content["current_epoch"] >= 1


def spoilt(trainer: Any, first: int, last: int) -> None:
    """Patches of some iterations hold something that is no number, as a kernel that fails would give."""
    step, calls = trainer.train_step, []

    def train_step(batch: dict[str, Any]) -> Any:
        calls.append(1)
        if first <= len(calls) <= last:
            batch["data"][:, :, 3] = torch.nan
        return step(batch)

    trainer.train_step = train_step


@pytest.mark.parametrize("name", ["nnUNetTrainerAutoAugNone", "nnUNetTrainerAutoAugAdversarial", "batch_norm"])
def test_what_is_not_finite_is_skipped_counted_and_kept_out(
    name: str, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = with_autoaug(nnUNetTrainerBN, "none") if name == "batch_norm" else TRAINERS[name]
    trainer = tiny.trainer(cls, fold=40, epochs=2, save_every=1, iterations_per_epoch=3)
    trainer.fold = 0
    spoilt(trainer, 2, 4)
    trainer.run_training()
    assert trainer.task.precision.skipped["network"] == 3
    content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert all(bool(torch.isfinite(w).all()) for w in content["network_weights"].values() if w.is_floating_point())
    lines = [json.loads(line) for line in (Path(trainer.output_folder) / "autoaug.jsonl").read_text().splitlines()]
    assert [line["skipped_network"] for line in lines] == [2.0, 3.0]
    assert lines[0]["train_loss"] is None  # a mean with something that is no number; JSON has none
    told = "3 of 6 updates of network were skipped, because its loss or gradient was not finite"
    assert f"WARNING: {told}" in capsys.readouterr().out
    facts = json.loads((Path(trainer.output_folder) / "autoaug.json").read_text())
    assert told in facts["warnings"]  # which a report tells


def test_training_stops_with_an_explanation_and_the_last_good_checkpoint(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, fold=41, epochs=50, save_every=1, iterations_per_epoch=3)
    trainer.fold = 0
    spoilt(trainer, 4, 1000)
    with pytest.raises(AutoAugError, match=r"was not finite in 51 updates in a row; the last good state is in the"):
        trainer.run_training()
    content = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert all(bool(torch.isfinite(w).all()) for w in content["network_weights"].values())
    assert content["autoaug"]["method"]["precision"]["in_a_row"]["network"] > 0


def test_weights_that_are_infinite_do_not_replace_a_checkpoint(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, fold=42, epochs=3, save_every=1)
    trainer.fold = 0
    end, seen = trainer.on_train_epoch_end, []

    def on_train_epoch_end(outputs: Any) -> None:
        end(outputs)
        if trainer.current_epoch == 1:
            seen.append((Path(trainer.output_folder) / "checkpoint_latest.pth").read_bytes())
            with torch.no_grad():
                next(trainer.network.parameters()).view(-1)[0] = torch.inf

    trainer.on_train_epoch_end = on_train_epoch_end
    with pytest.raises(CheckpointError, match="the weights of network are not finite .* the last good state stays"):
        trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").read_bytes() == seen[0]


def observed(given: Path, output: Path, epochs: int) -> None:
    """Train with workers, which begin anew each epoch for meta-validation, and note what is held."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    MetaLogger.plot_progress_png = lambda self, folder: None
    plans, description = json.loads(given.read_text())
    trainer = TRAINERS["nnUNetTrainerAutoAug"](plans, "3d_fullres", 0, description, torch.device("cpu"))
    end, noted = trainer.on_epoch_end, []

    def on_epoch_end() -> None:
        end()
        noted.append(taken())
        if len(noted) == epochs:
            raise Killed

    trainer.on_epoch_end = on_epoch_end
    try:
        trainer.run_training()
    except Killed:
        pass
    output.write_text(json.dumps(noted + [taken()]))


@needs_kill
@pytest.mark.parametrize(("epochs", "iterations", "memory"), [
    (9, 5, 24.0), pytest.param(50, 40, 24.0, marks=pytest.mark.long)  # 4 MiB for each of six processes
])  # fmt: skip
def test_nothing_grows_over_many_steps(
    epochs: int, iterations: int, memory: float, tiny: Any, tmp_path: Path, processes: ForkServerContext
) -> None:
    plans = json.loads(json.dumps(tiny.plans))
    plans["configurations"]["3d_fullres"]["autoaug"] |= {
        "epochs": epochs + 1, "save_every": 3, "iterations_per_epoch": iterations, "batch_size": 2, "meta_cases": 1,
        "meta_split": "resampled",
        "method_options": {"warm_up": 0, "update_every": 5, "pool": 2, "views": 2, "meta_batch": 2},
    }  # fmt: skip
    (tmp_path / "given.json").write_text(json.dumps([plans | {"continue_training": False}, tiny.json]))
    environment = {n: os.environ[n] for n in ENVIRONMENT} | {
        "nnUNet_n_proc_DA": "2", "nnUNet_results": str(tmp_path / "results")
    }  # fmt: skip
    ended(begin(processes, observed, tmp_path / "given.json", tmp_path / "noted.json", epochs, **environment))
    *noted, last = json.loads((tmp_path / "noted.json").read_text())
    assert noted[0]["processes"] >= 5
    assert last["processes"] == 1
    steady(noted, memory)
