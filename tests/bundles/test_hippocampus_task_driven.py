# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle of the task-driven method: its workflows run for real, and it shares what bundles share."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_helpers import ROOT, infer_without_this_package, plain_unet, predictions, read, run, run_in_two_processes

from monai_autoaug import augmenters

BUNDLE = ROOT / "bundles" / "hippocampus_task_driven"
OTHER = ROOT / "bundles" / "hippocampus_adversarial"
FAST = {"val_interval": 1, "repeats": 1, "method_options": '{"warm_up": 0}'}


@pytest.mark.parametrize("name", ["evaluate", "inference", "multi_gpu_train"])
def test_it_shares_what_does_not_depend_on_the_method(name: str) -> None:
    assert read(BUNDLE, name) == read(OTHER, name)


def test_its_training_differs_by_few_labels_unlabelled_images_and_phases_alone() -> None:
    train, other = read(BUNDLE, "train"), read(OTHER, "train")
    for key in ("labelled_cases", "unlabelled_cases", "repeats", "unlabelled", "network_builder"):
        assert train.pop(key) is not None
        assert key not in other
    differing = {key for key in train if train[key] != other[key]}
    assert differing == {"epochs", "method", "lr_scheduler", "train"}
    own: dict[str, Any]
    own, theirs = train["train"], other["train"]
    assert set(own) - set(theirs) == {f"unlabelled_{n}" for n in ("preprocessing", "dataset", "dataloader")}
    assert {key for key in theirs if own[key] != theirs[key]} == {"dataset", "handlers", "trainer"}
    assert own["handlers"][2:] == theirs["handlers"][1:]
    assert set(own["trainer"]) - set(theirs["trainer"]) == {"unlabelled_data_loader", "network_builder"}


def test_unlabelled_images_are_prepared_as_labelled_ones() -> None:
    train = read(BUNDLE, "train")["train"]
    labelled = train["deterministic_transforms"] + train["random_transforms"]
    alone = train["unlabelled_preprocessing"]["transforms"]
    for ours, theirs in zip(alone, labelled, strict=True):
        first = {k: v[0] if isinstance(v, list) and k in ("keys", "mode") else v for k, v in theirs.items()}
        assert ours == first


def test_inference_needs_monai_alone() -> None:
    assert "autoaug" not in (BUNDLE / "configs" / "inference.json").read_text()


def test_train_resume_evaluate_and_segment(bundle: Path, data: Path) -> None:
    """Three epochs are one a phase; a run that stops before the last one goes on there."""
    log = run(bundle, data, "train", epochs=3, **FAST)
    for figure in ("loss_deformation", "loss_appearance", "discriminator_accuracy", "val_mean_dice"):
        assert figure in log
    assert "Training has 3 phases" in log
    assert "Phase 'network' begins, with a fresh segmentation network" in log
    plain_unet().load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    assert list(augmenters.load(bundle / "models" / "augmenters.pt")) == ["deformation", "appearance"]
    run(bundle, data, "train", "evaluate")
    with (bundle / "eval" / "metrics.csv").open() as table:
        assert 0 <= float(dict(csv.reader(table))["val_mean_dice"]) <= 1
    infer_without_this_package(bundle, data)
    predictions(bundle, data)


@pytest.mark.long
def test_one_labelled_volume_and_the_papers_form(bundle: Path, data: Path) -> None:
    options = "{'fidelity': 'paper', 'width': 4, 'mixup': True, 'weighted_loss': True}"
    log = run(bundle, data, "train", epochs=3, val_interval=1, repeats=4, labelled_cases=1, method_options=options)
    assert "loss_mixup" in log


@pytest.mark.long
def test_the_same_cases_without_augmentation(bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, val_interval=1, repeats=1, method="none")
    assert "loss_deformation" not in log


@pytest.mark.long
def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, data: Path) -> None:
    run_in_two_processes(bundle, data, epochs=3, **FAST | {"repeats": 3})
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2
