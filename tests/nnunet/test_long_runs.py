# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Slow forms: real data through plain nnU-Net's commands, and trainings that are killed and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_autoaug.nnunet import launcher

PACKAGE = str(Path(launcher.__file__).parents[2])
TRAINER = "nnUNetTrainerAutoAugAdversarial"
COMMANDS = {
    "plan": "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry",
    "train": "nnunetv2.run.run_training:run_training_entry",
    "predict": "nnunetv2.inference.predict_from_raw_data:predict_entry_point",
}


def command(name: str, *arguments: str, environment: dict[str, str]) -> None:
    module, _, function = COMMANDS[name].partition(":")
    start = f"from {module} import {function} as entry; entry()"
    subprocess.run([sys.executable, "-c", start, *arguments], check=True, env=environment)


def dice(predicted: Path, reference: Path) -> list[float]:
    """Mean Dice of each structure over the cases in ``predicted``."""
    scores = []
    for file in sorted(predicted.glob("*.nii.gz")):
        p, r = (np.asarray(nib.load(folder / file.name).dataobj) for folder in (predicted, reference))
        scores.append([2 * np.sum((p == k) & (r == k)) / np.sum((p == k).astype(int) + (r == k)) for k in (1, 2)])
    return [float(s) for s in np.mean(scores, axis=0)]


@pytest.mark.long
def test_hippocampus_through_the_plain_commands(hippocampus: Path, tmp_path: Path) -> None:
    """Plan, train, predict, resume and predict again, each in a process of its own; it learns."""
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    raw = folders["nnUNet_raw"] / "Dataset004_Hippocampus"
    for folder in (*folders.values(), raw / "imagesTr", raw / "labelsTr", tmp_path / "test"):
        folder.mkdir(parents=True)
    names = sorted(p.name for p in (hippocampus / "labelsTr").glob("hippocampus_*.nii.gz"))[:30]
    for name in names:
        case = name.replace(".nii.gz", "_0000.nii.gz")
        place = raw / "imagesTr" if name in names[:24] else tmp_path / "test"
        os.symlink(hippocampus / "imagesTr" / name, place / case)
        if name in names[:24]:
            os.symlink(hippocampus / "labelsTr" / name, raw / "labelsTr" / name)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": 24, "file_ending": ".nii.gz"}))
    options = tmp_path / "options.yaml"
    settings = "width: 0.5\nbatch_size: 4\noptimizer: adamw\nlr: 0.002\niterations_per_epoch: 25\n"
    settings += "val_iterations_per_epoch: 5\nsave_every: 1\n"
    options.write_text(settings + "epochs: 2\n")
    environment = os.environ | {name: str(folder) for name, folder in folders.items()}
    environment |= {
        "PYTHONPATH": PACKAGE, "nnUNet_extTrainer": str(launcher.ext_path()), "MONAI_AUTOAUG_CONFIG": str(options),
        "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1",
    }  # fmt: skip
    command("plan", "-d", "4", "-c", "3d_fullres", "-npfp", "1", "-np", "1", environment=environment)
    training = ["4", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu"]
    predicting = ["-d", "4", "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-device", "cpu", "-npp", "1", "-nps", "1"]
    results = []
    for epochs, flags in ((2, []), (4, ["--c"])):
        options.write_text(settings + f"epochs: {epochs}\n")
        command("train", *training, *flags, environment=environment)
        out = tmp_path / f"predicted_{epochs}"
        # prediction needs no options: the narrow network is in the model's plans
        plain = {k: v for k, v in environment.items() if k != "MONAI_AUTOAUG_CONFIG"}
        command("predict", *predicting, "-i", str(tmp_path / "test"), "-o", str(out), environment=plain)
        results.append(dice(out, hippocampus / "labelsTr"))
    model = folders["nnUNet_results"] / "Dataset004_Hippocampus" / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"
    lines = [json.loads(line) for line in (model / "autoaug.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    print("Dice after 50 and 100 iterations:", results)
    assert np.mean(results[1]) > 0.5


RUN = """
import json, sys, torch
from pathlib import Path
from nnunetv2.run.run_training import maybe_load_checkpoint
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial
plans, dataset_json = json.loads(Path(sys.argv[1]).read_text())
plans["continue_training"] = True
trainer = nnUNetTrainerAutoAugAdversarial(plans, "3d_fullres", int(sys.argv[2]), dataset_json, torch.device("cpu"))
maybe_load_checkpoint(trainer, True, False)
trainer.fold = 0
trainer.run_training()
"""


@pytest.mark.long
def test_killed_at_random_and_resumed_is_the_uninterrupted_run(tiny: Any, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    plans = json.loads(json.dumps(tiny.plans))
    options = {"epochs": 30, "save_every": 1, "iterations_per_epoch": 3, "batch_size": 2}
    plans["configurations"]["3d_fullres"]["autoaug"] |= options
    given.write_text(json.dumps([plans, tiny.json]))
    results = tmp_path / "results"  # of its own: other tests leave folds in the shared one
    environment = os.environ | {"PYTHONPATH": PACKAGE, "nnUNet_n_proc_DA": "1", "nnUNet_results": str(results)}
    generator = random.Random(0)  # noqa: S311

    def start(fold: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RUN, str(given), str(fold)], env=environment)

    assert start(3).wait() == 0
    kills = 0
    while True:
        process = start(4)
        try:
            # the first seconds go into imports; after ten kills it may end
            process.wait(timeout=None if kills == 10 else generator.uniform(12, 30))
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            time.sleep(0.1)
    assert kills > 0
    folder = results / tiny.name / f"{TRAINER}__nnUNetPlans__3d_fullres"
    whole, resumed = (
        torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False) for fold in (3, 4)
    )
    for name, tensor in whole["network_weights"].items():
        assert torch.equal(tensor, resumed["network_weights"][name]), name
    assert whole["logging"]["train_losses"] == resumed["logging"]["train_losses"]
    assert len((folder / "fold_4" / "autoaug.jsonl").read_text().splitlines()) == 30
