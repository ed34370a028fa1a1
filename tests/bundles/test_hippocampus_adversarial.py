# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle of the adversarial method: every one of its workflows runs for real, and its weights segment."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_helpers import ROOT, infer_without_this_package, plain_unet, predictions, read, run, run_in_two_processes

from monai_autoaug import augmenters

BUNDLE = ROOT / "bundles" / "hippocampus_adversarial"


def test_inference_needs_monai_alone() -> None:
    assert "autoaug" not in (BUNDLE / "configs" / "inference.json").read_text()


def test_weights_of_all_players_are_shipped_and_described() -> None:
    assert {p.name for p in (BUNDLE / "models").iterdir()} == {"model.pt", "augmenters.pt"}
    assert {f"{n}_data_format" for n in ("network", "augmenter", "discriminator")} <= set(read(BUNDLE, "metadata"))


def test_augmenters_are_the_three_kinds() -> None:
    assert sorted(augmenters.load(BUNDLE / "models" / "augmenters.pt")) == ["affine", "appearance", "deformation"]


def test_train_resume_evaluate_and_segment(bundle: Path, data: Path) -> None:
    for file in (bundle / "models").iterdir():
        file.unlink()
    log = run(bundle, data, "train", epochs=1, val_interval=1)
    assert "loss_affine" in log
    assert "loss_appearance" in log
    assert "val_mean_dice" in log
    first = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert (bundle / "models" / "augmenters.pt").is_file()
    resumed = run(bundle, data, "train", epochs=2, val_interval=1, resume="true")
    assert "Epoch: 2/2" in resumed
    assert "Epoch: 1/2" not in resumed
    second = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert first.keys() == second.keys()
    evaluated = run(bundle, data, "train", "evaluate")
    with (bundle / "eval" / "metrics.csv").open() as table:
        rows = dict(csv.reader(table))
    assert 0 <= float(rows["val_mean_dice"]) <= 1
    assert "val_mean_dice" in evaluated
    run(bundle, data, "inference")
    predictions(bundle, data)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_shipped_weights_segment_without_this_package(bundle: Path, data: Path, hippocampus: Path) -> None:
    """The last cases are the validation ones."""
    last = sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[-2:]
    for file in (data / "imagesTs").iterdir():
        file.unlink()
    for file in last:
        (data / "imagesTs" / file.name).symlink_to(file)
    infer_without_this_package(bundle, data)
    found = predictions(bundle, data)
    for file in last:
        truth = np.asanyarray(nib.load(hippocampus / "labelsTr" / file.name).dataobj)
        assert dice(found[file.name] > 0, truth > 0) > 0.8


def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, data: Path) -> None:
    shutil.rmtree(bundle / "models")
    log = run_in_two_processes(bundle, data, epochs=1, val_interval=1)
    assert log.count("Epoch: 1/1, Iter: 1/2") == 1  # rank 0 alone talks
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain_unet().load_state_dict(weights)
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2


@pytest.mark.parametrize("method", ["none", pytest.param("random", marks=pytest.mark.long)])
def test_other_methods_by_one_option(method: str, bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, val_interval=1, method=method)
    assert "val_mean_dice" in log
    assert ("loss_affine" in log) == (method == "random")
