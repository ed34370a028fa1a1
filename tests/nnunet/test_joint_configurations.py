# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnUNetTrainerAutoAug in every configuration: 2D, regions, cascade, compiled, over another trainer, by commands."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from nnunetv2.run import run_training as training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from test_configurations import LABELS, steps, validate
from test_joint_trainer import QUICK, joint
from test_resume import final, same
from torch._dynamo import OptimizedModule

from monai_autoaug.nnunet import launcher, test_time
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug as Joint
from monai_autoaug.nnunet.trainers import with_autoaug


def test_over_another_trainer_and_over_nnunets_augmentation(tiny: Any) -> None:
    """Without deep supervision; nnU-Net's own augmentation stays where it is asked for."""
    cls = with_autoaug(nnUNetTrainerNoDeepSupervision, "joint_policy")
    trainer = joint(tiny, cls=cls, base_augmentation="stock")
    for _, output in steps(trainer, 2):
        assert isinstance(output, torch.Tensor)
    assert trainer.method.updates == 2


def test_compiled_training_is_the_same(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, forked_pools: Callable[..., Any]
) -> None:
    """As on a GPU: training steps compiled, probes and views not."""

    def weights(seen: type) -> dict[str, Any]:
        trainer = joint(tiny, fold=2, iterations_per_epoch=3)
        trainer.fold = 0
        trainer.run_training()
        assert type(trainer.network) is seen or seen is torch.nn.Module
        with forked_pools():
            trainer.perform_actual_validation()
        return final(tiny, trainer)

    plain = weights(torch.nn.Module)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    torch.compiler.reset()
    compiled = weights(OptimizedModule)
    same(compiled["network_weights"], plain["network_weights"])
    same(compiled["autoaug"]["method"]["learners"], plain["autoaug"]["method"]["learners"])


def test_2d(make_dataset: Callable[..., Any], forked_pools: Callable[..., Any]) -> None:
    dataset = make_dataset("2d", labels=LABELS, channels=2, spacing=(3.0, 1.0, 1.5))
    trainer = joint(dataset, "2d", margin=2, batch_size=4, iterations_per_epoch=2)
    trainer.run_training()
    assert trainer.method.test_time.spatial_dims == 2
    assert trainer.method.updates == 2
    validate(trainer, forked_pools)


def test_regions_with_ignore_label_and_mask(make_dataset: Callable[..., Any]) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]

    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    dataset = make_dataset(labels=labels, ignore=3, regions_class_order=[1, 2], edit=edit, zeros=True)
    trainer = joint(dataset, margin=2, method_options={"classes": "labels"})
    for batch, output in steps(trainer, 3):
        assert output[0].shape[1] == batch.label.shape[1] == 2
        assert 0 < batch.valid.mean() < 1
        assert set(batch.classes.tolist()) <= {0, 1, 2}  # regions, not label values
        assert (batch.image[batch.mask < 0.5] == 0).all()
    assert trainer.method.training.classes == ("background", "whole", "core")


def test_a_cascades_second_stage(make_dataset: Callable[..., Any], forked_pools: Callable[..., Any]) -> None:
    def edit(plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        low = deepcopy(configurations["3d_fullres"]) | {"data_identifier": "nnUNetPlans_3d_lowres"}
        configurations["3d_lowres"] = low | {"spacing": [1.5, 1.5, 1.5], "next_stage": "3d_cascade_fullres"}
        second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        configurations["3d_cascade_fullres"] = second | {"autoaug": configurations["3d_fullres"]["autoaug"]}

    dataset = make_dataset("3d_fullres", "3d_lowres", labels=LABELS, edit=edit)
    first = joint(dataset, "3d_lowres", fold="all", iterations_per_epoch=2)
    first.run_training()
    with forked_pools():
        first.perform_actual_validation()
    trainer = joint(dataset, "3d_cascade_fullres", margin=[0, 1, 2], iterations_per_epoch=2)
    trainer.run_training()
    assert trainer.network.autoaug_views.still == 2
    validate(trainer, forked_pools)


def test_the_commands_train_validate_and_continue(
    make_dataset: Callable[..., Any], forked_pools: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher, then nnUNetv2_train itself with --val and --c, which finds the trainer in the one-file folder."""

    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["autoaug"] |= {"method_options": QUICK}

    dataset = make_dataset(labels=LABELS, edit=edit)
    arguments = [str(dataset.number), "3d_fullres", "0", "-tr", "nnUNetTrainerAutoAug", "-device", "cpu"]
    assert launcher.find_trainer("nnUNetTrainerAutoAug") is Joint
    with forked_pools():
        launcher.train(arguments)
    fold = dataset.results / dataset.name / "nnUNetTrainerAutoAug__nnUNetPlans__3d_fullres" / "fold_0"
    assert {p.name for p in fold.iterdir()} >= {"checkpoint_final.pth", "policy.json", "autoaug.jsonl"}
    summary = fold / "validation" / "summary.json"
    first = json.loads(summary.read_text())["foreground_mean"]
    kept = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert test_time.STATE in kept
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    for flag, views in (("--val", None), ("--c", None), ("--val", "0")):
        summary.unlink()
        if views is not None:
            monkeypatch.setenv("MONAI_AUTOAUG_TEA", views)
        with monkeypatch.context() as patch, forked_pools():
            patch.setattr(sys, "argv", ["nnUNetv2_train", *arguments, flag])
            training.run_training_entry()
        again = json.loads(summary.read_text())["foreground_mean"]
        assert (again == first) == (views is None)  # validation averages the views, as prediction does
