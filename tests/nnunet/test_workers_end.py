# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Workers that wait for a policy end with the training, however it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_joint_trainer import started
from test_loading import alive
from test_ranks import PACKAGE
from test_worker_policy import in_workers

from monai_autoaug.nnunet import worker_policy
from monai_autoaug.nnunet.workers import end_with_parent

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_workers_that_wait_end_with_the_training(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]
) -> None:
    """Without lag no batch can be made before it is asked for, so both workers always wait for the policy."""
    monkeypatch.setattr(worker_policy, "LAG", 0)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = started(in_workers(tiny))
    closing.append(trainer)
    for _ in range(3):
        next(trainer._streams["train"])
    workers = trainer._streams["train"]._augmenter._processes
    time.sleep(0.2)
    start = time.monotonic()
    trainer._close_streams()
    assert time.monotonic() - start < 8  # batchgenerators kills what hasn't ended by itself after ten
    assert [p.exitcode for p in workers] == [0, 0]


ORPHANS = """
import json, os, signal, sys, time, torch
from pathlib import Path
from monai_autoaug.nnunet import worker_policy
from monai_autoaug.nnunet.workers import end_with_parent
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug
worker_policy.LAG = 0
plans, dataset_json = json.loads(Path(sys.argv[1]).read_text())
trainer = nnUNetTrainerAutoAug(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.on_train_start()
next(trainer.dataloader_train)
workers = [p.pid for p in trainer.dataloader_train._augmenter._processes]
Path(sys.argv[2]).write_text(json.dumps(workers))
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_workers_that_wait_end_with_a_killed_training(tiny: Any, tmp_path: Path) -> None:
    given, out = tmp_path / "given.json", tmp_path / "workers.json"
    plans = json.loads(json.dumps(tiny.plans))
    plans["configurations"]["3d_fullres"]["autoaug"] |= {"policy_place": "workers"}
    given.write_text(json.dumps([plans | {"continue_training": False}, tiny.json]))
    environment = os.environ | {"nnUNet_n_proc_DA": "2", "PYTHONPATH": PACKAGE}
    process = subprocess.Popen([sys.executable, "-c", ORPHANS, str(given), str(out)], env=environment)
    assert process.wait(timeout=300) == -signal.SIGKILL
    workers = json.loads(out.read_text())
    assert len(workers) == 2
    deadline = time.time() + 30
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def _waits_for_ever(queue: Any) -> None:
    end_with_parent()
    queue.put(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    time.sleep(3600)


def test_a_worker_ends_when_told_to_whatever_its_parent_does_then() -> None:
    """A handler in Python runs in the main thread alone, but a signal reaches any."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=_waits_for_ever, args=(queue,))
        process.start()
        assert queue.get()
        process.terminate()
        process.join(60)
        assert process.exitcode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        process.kill()
