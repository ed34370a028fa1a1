# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's trainer of paper 001: unlabelled images, three phases, resume in each bit for bit, what it deploys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_resume import final, same, stop_after

from monai_autoaug import augmenters
from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.trainers import TRAINERS
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugTaskDriven as TaskDriven
from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled

SMALL = {"width": 2, "noise_size": 4, "warm_up": 0}
OPTIONS: dict[str, Any] = {"epochs": 3, "iterations_per_epoch": 3, "save_every": 1, "method_options": SMALL}


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set with an ignore label, and three unlabelled images that are preprocessed with it."""
    made = make_dataset(labels={"background": 0, "shell": 1, "core": 2, "ignore": 3}, ignore=3)
    folder = tmp_path_factory.mktemp("further")
    write_raw(folder, labels={}, cases=3, shape=(20, 24, 20), spacing=(1.2, 1.2, 1.2))
    preprocess_unlabelled(made.name, "3d_fullres", folder / "imagesTr")
    return made


def test_its_name_is_where_nnunet_looks() -> None:
    assert TaskDriven.__name__ == "nnUNetTrainerAutoAugTaskDriven"
    assert TRAINERS["nnUNetTrainerAutoAugTaskDriven"] is TaskDriven
    assert TaskDriven.autoaug_defaults["method"] == "task_driven"
    assert issubclass(TaskDriven, nnUNetTrainer)


def test_a_run_resumed_in_each_phase_is_the_uninterrupted_one(dataset: Any) -> None:
    whole = dataset.trainer(TaskDriven, fold=0, **OPTIONS)
    whole.run_training()
    wanted = final(dataset, whole)
    assert whole.method.phase.name == "network"
    assert whole.method.affine == ()  # nnU-Net's own augmentation is there
    assert list(augmenters.load(Path(whole.output_folder) / "augmenters.pt")) == ["deformation", "appearance"]
    log = (Path(whole.output_folder) / "autoaug.jsonl").read_text()
    assert "discriminator_accuracy" in log
    assert "loss_deformation_appearance" in log
    text = next(Path(whole.output_folder).glob("training_log_*.txt")).read_text()
    assert "Training has 3 phases: deformation (33 % of the epochs, about 3 updates)" in text
    for epoch in (1, 2):  # between the phases
        first = dataset.trainer(TaskDriven, fold=1, **OPTIONS)
        first.fold = 0
        stop_after(first, epoch)
        second = dataset.trainer(TaskDriven, fold=1, resume=True, **OPTIONS)
        second.fold = 0
        second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
        second.run_training()
        got = final(dataset, second)
        for key in ("network_weights", "optimizer_state", "_best_ema"):
            same(got[key], wanted[key], key)
        same(got["autoaug"]["method"], wanted["autoaug"]["method"])


@pytest.mark.long
def test_a_run_resumed_within_each_phase_is_the_uninterrupted_one(dataset: Any) -> None:
    options = OPTIONS | {"epochs": 6}
    whole = dataset.trainer(TaskDriven, fold=2, **options)
    whole.fold = 0
    whole.run_training()
    wanted = final(dataset, whole)
    for epoch in (1, 3, 5):
        first = dataset.trainer(TaskDriven, fold=1, **options)
        first.fold = 0
        stop_after(first, epoch)
        second = dataset.trainer(TaskDriven, fold=1, resume=True, **options)
        second.fold = 0
        second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
        second.run_training()
        same(final(dataset, second)["network_weights"], wanted["network_weights"], "network_weights")


def test_without_unlabelled_images_it_says_how_to_get_them_or_does_without(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="preprocess-unlabelled"):
        tiny.trainer(TaskDriven, fold=0, **OPTIONS).run_training()
    given = SMALL | {"unlabelled": False, "weighted_loss": True, "mixup": True}
    trainer = tiny.trainer(TaskDriven, fold=0, **OPTIONS | {"method_options": given})
    trainer.run_training()
    assert trainer.method.needs == ("train",)
    content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert content["trainer_name"] == "nnUNetTrainerAutoAugTaskDriven"


def test_the_papers_affine_augmentation_is_there_where_nnunets_is_not(tiny: Any) -> None:
    given = {"unlabelled": False, **SMALL}
    for own, options, affine in (
        ("none", given, ("rotation", "scaling", "turn", "flip")),
        ("stock", given | {"affine": ["flip"]}, ("flip",)),
    ):
        trainer = tiny.trainer(TaskDriven, base_augmentation=own, **OPTIONS | {"method_options": options})
        trainer.initialize()
        assert trainer.method.affine == affine
