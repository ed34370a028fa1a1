# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle of the general adversarial method: its workflows run for real, and it shares what bundles share."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from bundle_helpers import ROOT, infer_without_this_package, plain_unet, predictions, read, run, run_in_two_processes

from monai_autoaug import augmenters

BUNDLE = ROOT / "bundles" / "hippocampus_general_adversarial"
OTHER = ROOT / "bundles" / "hippocampus_adversarial"


@pytest.mark.parametrize("name", ["evaluate", "inference", "multi_gpu_train"])
def test_it_differs_from_the_bundle_it_stands_beside_by_its_method_alone(name: str) -> None:
    assert read(BUNDLE, name) == read(OTHER, name)
    train, other = read(BUNDLE, "train"), read(OTHER, "train")
    assert train.pop("method") == "general_adversarial"
    assert other.pop("method") == "adversarial"
    assert train == other


def test_inference_needs_monai_alone() -> None:
    assert "autoaug" not in (BUNDLE / "configs" / "inference.json").read_text()


def test_all_players_are_described() -> None:
    players = ("network", "augmenter", "class_discriminator", "dissimilarity_discriminator")
    assert {f"{n}_data_format" for n in players} <= set(read(BUNDLE, "metadata"))


def test_train_resume_evaluate_and_segment(bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, val_interval=1)
    assert "loss_general" in log
    assert "dissimilarity_discriminator_accuracy" in log
    assert "val_mean_dice" in log
    plain_unet().load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    assert list(augmenters.load(bundle / "models" / "augmenters.pt")) == ["general"]
    resumed = run(bundle, data, "train", epochs=2, val_interval=1, resume="true")
    assert "Epoch: 2/2" in resumed
    assert "Epoch: 1/2" not in resumed
    run(bundle, data, "train", "evaluate")
    with (bundle / "eval" / "metrics.csv").open() as table:
        assert 0 <= float(dict(csv.reader(table))["val_mean_dice"]) <= 1
    infer_without_this_package(bundle, data)
    predictions(bundle, data)


@pytest.mark.long
def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, data: Path) -> None:
    log = run_in_two_processes(bundle, data, epochs=1, val_interval=1)
    assert log.count("Epoch: 1/1, Iter: 1/2") == 1  # rank 0 alone talks
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2


@pytest.mark.long
def test_rows_of_the_paper_by_one_option(bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, val_interval=1, method_options='{"augmentation": "strong"}')
    assert "loss_affine" in log
    assert "loss_general" not in log
