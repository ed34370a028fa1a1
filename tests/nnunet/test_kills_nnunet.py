# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's trainings and predictions killed at any moment: what is there is whole, and nothing is lost."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from fault_helpers import begin, chances, complete, ended, killed, needs_kill, same, server, temporary, used

from monai_autoaug.nnunet.checkpoint import write_atomically

pytestmark = needs_kill
LONG = pytest.mark.long
QUICK: dict[str, Any] = {
    "nnUNetTrainerAutoAug": {
        "method_options": {"warm_up": 0, "update_every": 1, "pool": 2, "views": 2, "meta_batch": 2}, "meta_cases": 1
    },
    "nnUNetTrainerAutoAugAdversarial": {"method_options": {"warm_up": 0, "width": 2}},
}  # fmt: skip
ENVIRONMENT = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_def_n_proc", "nnUNet_n_proc_DA")


@pytest.fixture(scope="module")
def processes(nnunet_folders: Path) -> ForkServerContext:
    return server()


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its own: other tests leave folds in the shared one."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results"


def go_on(given: Path, name: str, fold: int) -> None:
    """As nnUNetv2_train --c does, which begins where there is nothing to continue."""
    from nnunetv2.run.run_training import maybe_load_checkpoint
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from monai_autoaug.nnunet.trainers import TRAINERS

    MetaLogger.plot_progress_png = lambda self, folder: None
    plans, description = json.loads(given.read_text())
    trainer = TRAINERS[name](plans | {"continue_training": True}, "3d_fullres", fold, description, torch.device("cpu"))
    maybe_load_checkpoint(trainer, True, False)
    trainer.fold = 0  # the same cases, another folder
    trainer.run_training()


def start(processes: ForkServerContext, given: Path, name: str, fold: int) -> Any:
    return begin(processes, go_on, given, name, fold, **{n: os.environ[n] for n in ENVIRONMENT})


def equal(one: Path, other: Path) -> None:
    """Two trainings have learned the same, to the last bit."""
    contents = [torch.load(folder / "checkpoint_final.pth", weights_only=False) for folder in (one, other)]
    for content in contents:
        del content["init_args"]
        for name in ("epoch_start_timestamps", "epoch_end_timestamps"):
            del content["logging"][name]
    assert {"network_weights", "optimizer_state", "autoaug"} <= contents[0].keys()
    assert {"torch", "numpy", "python"} <= contents[0]["autoaug"]["ranks"][0]["random"].keys()
    same(*contents)
    lines = [[json.loads(line) for line in (f / "autoaug.jsonl").read_text().splitlines()] for f in (one, other)]
    same(*lines)
    for name in ("policy.json", "augmenters.pt"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize(("name", "kills"), [
    ("nnUNetTrainerAutoAug", 5), pytest.param("nnUNetTrainerAutoAug", 60, marks=LONG),
    pytest.param("nnUNetTrainerAutoAugAdversarial", 60, marks=LONG),
])  # fmt: skip
def test_a_training_killed_at_any_moment_is_the_one_that_never_stopped(
    name: str, kills: int, tiny: Any, tmp_path: Path, results: Path, processes: ForkServerContext
) -> None:
    plans, given = deepcopy(tiny.plans), tmp_path / "given.json"
    plans["configurations"]["3d_fullres"]["autoaug"] |= QUICK[name] | {
        "epochs": 5, "save_every": 1, "iterations_per_epoch": 2, "batch_size": 2, "base_augmentation": "none"
    }  # fmt: skip
    given.write_text(json.dumps([plans, tiny.json]))
    base = results / tiny.name / f"{name}__nnUNetPlans__3d_fullres"
    seconds = ended(start(processes, given, name, 5))
    moments, done, fold = chances(kills), 0, 5
    while done < kills:
        fold += 1
        finished = False
        while not finished:
            process = start(processes, given, name, fold)
            if done < kills:
                finished = not killed(process, moments.uniform(0, 0.6 * seconds), moments)
                done += not finished
            else:
                ended(process)
                finished = True
            complete(results)
            complete(tiny.preprocessed / tiny.name)
        assert not temporary(base / f"fold_{fold}")
        assert not (base / f"fold_{fold}" / "checkpoint_latest.pth").exists()
        equal(base / f"fold_{fold}", base / "fold_5")


def writes(file: Path) -> None:
    """Replace a checkpoint again and again, as a trainer does: nnU-Net's own, and one key more."""
    number = 0
    while True:
        number += 1
        weights = [torch.full((50_000,), float(number)) for _ in range(4)]

        def own(path: str, number: int = number, weights: Any = weights) -> None:
            torch.save({"network_weights": weights, "number": number}, path)

        write_atomically(own, {"noise": weights}, str(file))


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=LONG)])
def test_a_write_killed_at_any_moment_leaves_a_whole_checkpoint(
    kills: int, tmp_path: Path, processes: ForkServerContext
) -> None:
    file, moments, seen = tmp_path / "checkpoint_latest.pth", chances(kills), set()
    for _ in range(kills):
        process = begin(processes, writes, file)
        while not file.exists():
            assert process.exitcode is None
        assert process.pid is not None
        assert killed(process, used(process.pid) + moments.uniform(0, 0.05), moments)
        content = torch.load(file, weights_only=False)
        both = [*content["network_weights"], *content["autoaug"]["noise"]]
        assert all(bool((w == content["number"]).all()) for w in both)
        seen.add(content["number"])
        file.unlink()
    assert len(seen) > 1


def predicts(dataset: int, images: str, output: Path) -> None:
    from monai_autoaug.nnunet import launcher

    launcher.predict([
        "-i", images, "-o", str(output), "-d", str(dataset), "-c", "3d_fullres", "-f", "5", "-device", "cpu", "-npp",
        "0", "-nps", "0", "--disable_progress_bar", "--continue_prediction", "--save_probabilities", "-tr",
        "nnUNetTrainerAutoAugAdversarial",
    ])  # fmt: skip


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=LONG)])
def test_a_prediction_killed_at_any_moment_is_made_by_the_next_command(
    kills: int, tiny: Any, tmp_path: Path, results: Path, processes: ForkServerContext
) -> None:
    """Half a label map would count as a whole one for --continue_prediction."""
    plans, given = deepcopy(tiny.plans), tmp_path / "given.json"
    given.write_text(json.dumps([plans, tiny.json]))
    ended(start(processes, given, "nnUNetTrainerAutoAugAdversarial", 5))
    images = str(tiny.raw / tiny.name / "imagesTr")
    environment = {n: os.environ[n] for n in ENVIRONMENT}
    seconds = ended(begin(processes, predicts, tiny.number, images, tmp_path / "whole", **environment))
    wanted = maps(tmp_path / "whole")
    assert len(wanted) == 5
    moments, done, number = chances(kills), 0, 0
    while done < kills:
        number += 1
        folder, finished = tmp_path / f"killed_{number}", False
        while not finished:
            process = begin(processes, predicts, tiny.number, images, folder, **environment)
            if done < kills:
                finished = not killed(process, moments.uniform(0, seconds), moments)
                done += not finished
            else:
                ended(process)
                finished = True
            if folder.exists():
                complete(folder)
                for name, voxels in maps(folder).items():
                    np.testing.assert_array_equal(voxels, wanted[name])
                    assert (folder / name.replace(".nii.gz", ".npz")).exists()
        assert maps(folder).keys() == wanted.keys()


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(nib.load(p).dataobj) for p in folder.glob("*.nii.gz")}
