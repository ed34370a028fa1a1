# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What goes wrong around an nnU-Net prediction: one message, whole label maps only, and no process is left."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import PATIENCE, begin, children, command, gone, needs_kill, said, server, temporary
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from monai_autoaug.data.nifti import read_nifti
from monai_autoaug.nnunet.predicting import tended_processes
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.writing import write_together

pytestmark = needs_kill
ENVIRONMENT = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_def_n_proc")
ALONE, WORKERS = ("-npp", "0", "-nps", "0"), ("-npp", "1", "-nps", "1")
CASES = 5


@pytest.fixture(scope="module")
def processes(nnunet_folders: Path) -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    """A data set with a trained fold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        trainer = tiny.trainer(Adversarial, fold=60, method_options={"warm_up": 0, "width": 2})
        trainer.fold = 0
        trainer.run_training()
    return tiny


def full_from(case: int) -> None:
    """From the label map of some case on, none can grow beyond a hundred bytes: C libraries meet the limit, too."""
    write, seen = SimpleITKIO.write_seg, []

    def write_seg(self: SimpleITKIO, *given: Any) -> None:
        seen.append(given)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(seen) >= case:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            write(self, *given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)  # what the command says goes into a file, too

    SimpleITKIO.write_seg = write_seg


def nothing() -> None:
    """An undisturbed machine."""


def predicts(words: list[str], output: Path, disturb: Callable[..., None], *given: Any) -> None:
    """The command in this process; its own are forked, because imports take a spawned one many seconds."""
    original = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: original("fork")  # type: ignore[assignment]
    disturb(*given)
    command(words, output)


class Prediction:
    """``monai-autoaug nnunet predict`` in a process of its own."""

    def __init__(
        self, processes: ForkServerContext, model: Any, folder: Path, images: Path, how: tuple[str, ...],
        *disturb: Any, more: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.folder, self.output = folder / "predicted", folder / "said.txt"
        self.words = ["nnunet", "predict", "-i", str(images), "-o", str(self.folder), "-d", str(model.number), "-c",
                      "3d_fullres", "-f", "60", "-device", "cpu", "--disable_progress_bar", *how, *more]  # fmt: skip
        environment = {n: os.environ[n] for n in ENVIRONMENT} | {"COLUMNS": "400"}
        self.process: BaseProcess = begin(
            processes, predicts, self.words, self.output, *(disturb or (nothing,)), **environment
        )

    def begun(self) -> int:
        """Wait for the first label map; the number of the process."""
        deadline = time.monotonic() + PATIENCE
        while not maps(self.folder):
            assert self.process.exitcode is None, said(self.output)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert self.process.pid is not None
        return self.process.pid

    def ends(self, code: int, killed: bool = False) -> str:
        """What is said at the end; no process is left, and what is there is whole.

        Args:
            code: of the exit.
            killed: one was, which can't tidy up; the next command does.
        """
        self.process.join(timeout=PATIENCE)
        assert self.process.exitcode == code, said(self.output)
        assert self.process.pid is not None
        assert gone(self.process.pid, seconds=5)
        assert killed or not temporary(self.folder)
        for file in self.folder.glob("*.nii.gz"):
            read_nifti(file)  # to the end, and its checksum
        return said(self.output)


@pytest.fixture
def many(model: Any, tmp_path: Path) -> Path:
    """So many images that a prediction is under way when something happens to it."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        (images / f"many_{number:03d}_0000.nii.gz").symlink_to(
            model.raw / model.name / "imagesTr" / f"case_{number % CASES}_0000.nii.gz"
        )
    return images


def maps(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.nii.gz")}


@pytest.mark.parametrize("how", [ALONE, WORKERS], ids=["alone", "workers"])
def test_a_full_disk(how: tuple[str, ...], model: Any, tmp_path: Path, processes: ForkServerContext) -> None:
    """SimpleITK cuts a NIfTI file off without a word; --continue_prediction would take it for a whole one."""
    images = model.raw / model.name / "imagesTr"
    stopped = Prediction(processes, model, tmp_path, images, how, full_from, 3)
    told = stopped.ends(2)
    assert f"{stopped.folder / 'case_2.nii.gz'}: could not be written whole; expected" in told
    words = " ".join(stopped.words)
    assert f"To do: free some space on its disk, then go on with: monai-autoaug {words} --continue_prediction" in told
    assert "Traceback" not in told
    before = maps(stopped.folder)
    assert set(before) == {"case_0.nii.gz", "case_1.nii.gz"}
    again = Prediction(processes, model, tmp_path, images, ALONE, more=("--continue_prediction",))
    again.ends(0)
    assert len(maps(again.folder)) == CASES
    assert before.items() <= maps(again.folder).items()


def test_a_disk_that_is_full_from_the_start(model: Any, tmp_path: Path, processes: ForkServerContext) -> None:
    """nnU-Net's own JSON files, which come first."""
    stopped = Prediction(processes, model, tmp_path, model.raw / model.name / "imagesTr", ALONE, no_json)
    told = stopped.ends(2)
    assert "predict_from_raw_data_args.json: No space left on device. To do: free some space, then go on with" in told
    assert list(stopped.folder.iterdir()) == []


def no_json() -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = full


@pytest.mark.parametrize(("how", "everybody"), [(ALONE, True), (WORKERS, True), (WORKERS, False)],
                         ids=["alone", "terminal", "process"])  # fmt: skip
def test_ctrl_c(
    how: tuple[str, ...], everybody: bool, model: Any, many: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """On a terminal it reaches all processes; a scheduler sends its signal to the command alone."""
    stopped = Prediction(processes, model, tmp_path, many, how)
    (os.killpg if everybody else os.kill)(stopped.begun(), signal.SIGINT)
    told = stopped.ends(130)
    assert told.endswith(f"stopped; go on with: monai-autoaug {' '.join(stopped.words)} --continue_prediction")
    assert "Traceback" not in told


def test_a_killed_prediction_leaves_no_process(
    model: Any, many: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    stopped = Prediction(processes, model, tmp_path, many, WORKERS)
    pid = stopped.begun()
    assert len(children(pid)) == 3  # one reads, one writes, one keeps their queues
    os.kill(pid, signal.SIGKILL)
    stopped.process.join()
    assert gone(pid, seconds=20)
    for file in stopped.folder.glob("*.nii.gz"):
        read_nifti(file)


def test_a_worker_that_dies(model: Any, many: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    stopped = Prediction(processes, model, tmp_path, many, WORKERS)
    os.kill(max(children(stopped.begun())), signal.SIGKILL)
    told = stopped.ends(2, killed=True)
    assert "error: a process that reads images or writes predictions has died" in told
    assert f"then go on with: monai-autoaug {' '.join(stopped.words)} --continue_prediction" in told


def test_a_case_deleted_under_way(model: Any, many: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    stopped = Prediction(processes, model, tmp_path, many, ALONE)
    stopped.begun()
    (many / "many_059_0000.nii.gz").unlink()
    told = stopped.ends(2)
    assert "error: an image can't be read; expected a whole file, came" in told
    assert "many_059_0000.nii.gz" in told
    assert "put it back as it was, or take its case away, then go on with: monai-autoaug nnunet predict" in told
    assert len(maps(stopped.folder)) == 59


def _writes_for_ever(folder: Path) -> None:
    def write(own: Path) -> None:
        (own / "half.nii.gz").write_bytes(b"half")
        time.sleep(PATIENCE)

    write_together(folder, write)


def _stopped_while_writing(folder: Path, started: list[BaseProcess]) -> None:
    with tended_processes(folder):
        process = multiprocessing.get_context("spawn").Process(target=_writes_for_ever, args=(folder,))
        process.start()
        started.append(process)
        while not list(folder.glob(".files*/half.nii.gz")):
            assert process.is_alive()
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_what_its_processes_were_writing_is_removed_when_it_stops(tmp_path: Path) -> None:
    started: list[BaseProcess] = []
    with pytest.raises(KeyboardInterrupt):
        _stopped_while_writing(tmp_path, started)
    assert not started[0].is_alive()
    assert not list(tmp_path.iterdir())
