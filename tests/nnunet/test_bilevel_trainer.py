# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnUNetTrainerAutoAugBilevel: its defaults, exact resume, all kinds of labels, a plain network at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_configurations import LABELS, steps, validate
from test_resume import final, same, stop_after

from monai_autoaug import augmenters
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import TRAINERS
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugBilevel as Trainer

QUICK: dict[str, Any] = {"update_every": 1}


def bilevel(dataset: Any, configuration: str = "3d_fullres", **options: Any) -> Any:
    method = QUICK | options.pop("method_options", {})
    return dataset.trainer(Trainer, configuration, method_options=method, **options)


def test_it_is_found_by_name() -> None:
    assert TRAINERS["nnUNetTrainerAutoAugBilevel"] is Trainer
    assert launcher.find_trainer("nnUNetTrainerAutoAugBilevel") is Trainer


def test_defaults_are_the_methods() -> None:
    """A fifth, drawn anew each epoch, unless cases are named or nothing tells epochs apart; over nnU-Net's own."""
    options = Options(method="bilevel")
    assert (options.base_augmentation, options.meta_cases, options.meta_split) == ("stock", 0.2, "resampled")
    assert Options(method="bilevel", meta_split="fixed").meta_split == "fixed"
    assert Options(method="bilevel", meta_cases=("a", "b")).meta_split == "fixed"
    assert Options(method="bilevel", loader="stock").meta_split == "fixed"
    fixed = Options(method="bilevel", method_options={"augmentation": "predefined"})
    assert (fixed.meta_cases, fixed.meta_split) == (None, None)
    held = Options(method="bilevel", method_options={"augmentation": "none", "hold_out": True})
    assert held.meta_cases == 0.2


def test_validation_patches_are_never_those_of_another_epoch(tiny: Any) -> None:
    trainer = bilevel(tiny, meta_cases=2, iterations_per_epoch=3)
    trainer.initialize()
    trainer.get_dataloaders()
    metas = []
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        train = {str(k) for _ in range(3) for k in next(trainer._streams["train"])["keys"]}
        meta = {str(k) for _ in range(3) for k in next(trainer._streams["meta"])["keys"]}
        metas.append(trainer._split.meta(epoch))
        assert meta <= set(metas[-1])
        assert not train & meta
    assert len(set(metas)) > 1
    trainer._close_streams()


@pytest.mark.parametrize("unroll", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tiny: Any, unroll: int) -> None:
    options = {"epochs": 2, "save_every": 1, "iterations_per_epoch": 3, "method_options": {"unroll": unroll}}
    whole = bilevel(tiny, fold=0, **options)
    whole.run_training()
    wanted = final(tiny, whole)
    first = bilevel(tiny, fold=1, **options)
    first.fold = 0  # the same cases, another folder
    stop_after(first, 1)
    second = bilevel(tiny, fold=1, resume=True, **options)
    second.fold = 0
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state", "_best_ema", "current_epoch"):
        same(got[key], wanted[key], key)
    for key in ("method", "ranks", "streams"):
        same(got["autoaug"][key], wanted["autoaug"][key], key)
    assert isinstance(second.method, Bilevel)
    assert second.method.updates == 6
    file = Path(second.output_folder) / "augmenters.pt"
    assert list(augmenters.load(file)) == ["parametric"]


def test_2d(make_dataset: Callable[..., Any], forked_pools: Callable[..., Any]) -> None:
    dataset = make_dataset("2d", labels=LABELS, channels=2, spacing=(3.0, 1.0, 1.5))
    trainer = bilevel(dataset, "2d", margin=2, batch_size=4, iterations_per_epoch=2)
    trainer.run_training()
    assert trainer.method.augmenter.noise_size == 10
    assert trainer.method.updates == 2
    validate(trainer, forked_pools)


@pytest.mark.parametrize("derivative", ["double_backward", "jvp"])
def test_regions_with_ignore_label_and_mask(make_dataset: Callable[..., Any], derivative: str) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]

    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    dataset = make_dataset(labels=labels, ignore=3, regions_class_order=[1, 2], edit=edit, zeros=True)
    trainer = bilevel(dataset, margin=2, method_options={"derivative": derivative})
    for batch, output in steps(trainer, 3):
        assert output[0].shape[1] == batch.label.shape[1] == 2
        assert (batch.image[batch.mask < 0.5] == 0).all()
    assert trainer.method.updates == 3
    assert all(bool(torch.isfinite(p).all()) for p in trainer.method.augmenter.parameters())
