# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnUNetTrainerAutoAug: meta-validation apart from training and validation, exact resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_configurations import LABELS
from test_resume import final, same, stop_after

from monai_autoaug import policies
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.nnunet.layers import apply_to_plans, read_options
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug as Joint
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

# everything learns in every step, from few patches
QUICK: dict[str, Any] = {"warm_up": 0, "update_every": 1, "pool": 2, "views": 2, "meta_batch": 2}


def joint(dataset: Any, configuration: str = "3d_fullres", cls: type = Joint, **options: Any) -> Any:
    method = QUICK | options.pop("method_options", {})
    return dataset.trainer(cls, configuration, method_options=method, **options)


def started(trainer: Any) -> Any:
    trainer.initialize()
    trainer.get_dataloaders()
    return trainer


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"meta_cases": 0}, "meta_cases must be"),
        ({"meta_cases": 1.0}, "meta_cases must be"),
        ({"meta_cases": []}, "meta_cases must be"),
        ({"meta_cases": ["a", "a"]}, "meta_cases must be"),
        ({"meta_split": "often"}, "meta_split must be one of fixed, resampled"),
        ({"meta_split": "resampled", "meta_cases": ["a"]}, "draws the cases that meta_cases names"),
        ({"meta_split": "resampled", "loader": "stock"}, "needs loader: seeded"),
        ({"method": "adversarial", "meta_cases": 2}, "learns nothing from meta-validation; leave meta_cases out"),
        ({"method": "none", "meta_split": "fixed"}, "leave meta_split out"),
    ],
)
def test_wrong_meta_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.from_mapping({"method": "joint_policy"} | given)


def test_defaults_follow_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(method="joint_policy")
    assert (options.base_augmentation, options.meta_cases, options.meta_split) == ("none", 0.25, "fixed")
    assert options.margins((64, 64, 40), (200, 68, 40)) == (16, 2, 0)
    options = Options(method="adversarial")
    assert (options.base_augmentation, options.meta_cases, options.meta_split) == ("stock", None, None)
    assert Options(method="joint_policy", base_augmentation="stock").base_augmentation == "stock"
    # another method drops what was meant for this one
    (tmp_path / "options.yaml").write_text("method: none")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    plans = {"configurations": {"3d_fullres": {"autoaug": {"meta_cases": 3, "meta_split": "resampled"}}}}
    assert read_options({"method": "joint_policy"}, plans, "3d_fullres").meta_cases is None


NOTHING = {"learn_training": False, "test_time": False}


def test_where_nothing_learns_no_case_is_set_apart(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, learns in (("learn_training", True), ("test_time", True), ("joint", False)):
        options = Options(method="joint_policy", method_options=NOTHING | {name: True})
        assert options.meta_cases == (0.25 if learns else None)
    with pytest.raises(ConfigError, match="with these method_options; leave meta_cases out"):
        Options(method="joint_policy", method_options=NOTHING, meta_cases=2)
    # plans that a learning run has written, and a file that switches learning off
    (tmp_path / "options.yaml").write_text("method_options: {learn_training: false, test_time: false}")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    _, plans = apply_to_plans(Options(method="joint_policy"), tiny.plans, "3d_fullres")
    assert read_options({"method": "joint_policy"}, plans, "3d_fullres").meta_cases is None
    monkeypatch.delenv("MONAI_AUTOAUG_CONFIG")
    trainer = started(joint(tiny, method_options=NOTHING))
    training, _ = trainer.do_split()
    assert sorted(trainer._streams["train"].source.loader.loader.indices) == sorted(training)
    assert "meta" not in trainer._streams
    assert not {"meta_cases", "meta_split"} & set(trainer._course)
    trainer.on_train_epoch_start()
    trainer._close_streams()


@pytest.mark.parametrize(("split", "loader"), [("fixed", "seeded"), ("resampled", "seeded"), ("fixed", "stock")])
def test_meta_validation_takes_no_part_in_training(tiny: Any, split: str, loader: str) -> None:
    trainer = started(joint(tiny, meta_split=split, meta_cases=2, iterations_per_epoch=4, loader=loader))
    _, held = trainer.do_split()
    metas = []
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        train = {str(k) for _ in range(4) for k in next(trainer._streams["train"])["keys"]}
        meta = {str(k) for _ in range(4) for k in next(trainer._streams["meta"])["keys"]}
        assert not train & meta
        assert not (train | meta) & set(held)
        metas.append(trainer._split.meta(epoch))
        assert meta <= set(metas[-1])
    assert (len(set(metas)) > 1) == (split == "resampled")
    assert trainer._streams["meta"].position == 12
    trainer._close_streams()


def test_meta_patches_are_unaugmented_and_half_of_them_foreground(make_dataset: Callable[..., Any]) -> None:
    """In the network's form, with a margin; each of the second half has foreground at its centre."""

    def small_patch(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]

    dataset = make_dataset(labels=LABELS, shape=(32, 32, 32), edit=small_patch)
    trainer = started(joint(dataset, method_options={"meta_batch": 6}, margin=3))
    images = {case: trainer._meta_loader.loader._data.load_case(case)[0][:] for case in trainer._split.meta(0)}
    classes = []
    for _ in range(4):
        batch = trainer.layout.batch(next(trainer._streams["meta"]), torch.device("cpu"))
        assert batch.image.shape == (6, 1, 14, 14, 14)
        assert batch.margin == (3, 3, 3)
        assert batch.cropped().label.shape == (6, 3, 8, 8, 8)
        for image, case in zip(batch.image, batch.case, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(images[case][0], (8, 8, 8))
            assert (np.abs(windows[..., 0, 0, 0] - float(image[0, 3, 3, 3])) < 1e-6).any()  # its values are the case's
        classes.append(batch.classes)
    assert (torch.stack(classes)[:, 3:] > 0).all()
    assert (torch.stack(classes)[:, :3] == 0).any()
    again = started(joint(dataset, method_options={"meta_batch": 6}, margin=3))
    raw = next(again._streams["meta"])
    assert torch.equal(trainer.layout.batch(raw, torch.device("cpu")).classes, classes[0])


def test_meta_patches_come_from_workers_alike(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    single = started(joint(tiny, meta_split="resampled"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    several = started(joint(tiny, meta_split="resampled"))
    try:
        for epoch in range(2):
            for trainer in (single, several):
                trainer.current_epoch = epoch
                trainer.on_train_epoch_start()
            for _ in range(2):
                for name in ("train", "meta"):
                    a, b = (next(trainer._streams[name]) for trainer in (single, several))
                    assert a["keys"].tolist() == b["keys"].tolist()
                    assert torch.equal(a["data"], b["data"])
        workers = [p for s in several._streams.values() for p in s._augmenter._processes]
    finally:
        several._close_streams()
    assert several._streams == {}
    assert not any(p.is_alive() for p in workers)


def test_a_list_of_cases_of_another_site(tiny: Any) -> None:
    """Cases that this fold neither trains nor validates on may judge; its validation cases may not."""
    trainer = joint(tiny, fold=0)
    training, validation = trainer.do_split()
    with pytest.raises(ConfigError, match=f"names validation cases of this fold: {validation[0]}"):
        started(joint(tiny, fold=0, meta_cases=[str(validation[0])]))
    trainer = started(joint(tiny, fold=0, meta_cases=[str(training[0])]))
    assert {str(k) for k in next(trainer._streams["meta"])["keys"]} == {str(training[0])}


@pytest.mark.parametrize("split", ["fixed", "resampled"])
def test_a_resumed_run_is_the_uninterrupted_one(tiny: Any, split: str) -> None:
    options = {"epochs": 2, "save_every": 1, "iterations_per_epoch": 3, "meta_split": split}
    whole = joint(tiny, fold=0, **options)
    whole.run_training()
    wanted = final(tiny, whole)
    assert wanted["autoaug"]["streams"]["meta"] == 6
    lines = (Path(whole.output_folder) / "autoaug.jsonl").read_text()
    policy = (Path(whole.output_folder) / "policy.json").read_text()
    first = joint(tiny, fold=1, **options)
    first.fold = 0  # the same cases, another folder
    stop_after(first, 1)
    second = joint(tiny, fold=1, resume=True, **options)
    second.fold = 0
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state", "_best_ema", "current_epoch"):
        same(got[key], wanted[key], key)
    for key in ("method", "ranks", "streams"):
        same(got["autoaug"][key], wanted["autoaug"][key], key)
    assert (Path(second.output_folder) / "autoaug.jsonl").read_text() == lines
    assert (Path(second.output_folder) / "policy.json").read_text() == policy


def test_the_course_compares_meta_validation(tiny: Any) -> None:
    trainer = joint(tiny, fold=3)
    trainer.fold = 0
    trainer.initialize()
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(path)
    for changed, phrase in (
        ({"meta_cases": 2}, "meta_cases: 0.25 in the checkpoint, 2 in this run"),
        ({"meta_split": "resampled"}, "meta_split: 'fixed' in the checkpoint, 'resampled' in this run"),
        ({"method_options": {"views": 5}}, "method_options: views: 2 in the checkpoint, 5 in this run"),
    ):
        with pytest.raises(CheckpointError) as error:
            joint(tiny, resume=True, **changed).load_checkpoint(path)
        assert phrase in str(error.value)
        assert str(error.value).count(" in this run") == 1
    joint(tiny, resume=True, base_augmentation="none", meta_cases=0.25).load_checkpoint(path)
    adversarial = tiny.trainer(Adversarial)
    adversarial.initialize()
    assert not {"meta_cases", "meta_split"} & set(adversarial._course)


def test_what_is_left_beside_the_checkpoints(tiny: Any) -> None:
    trainer = joint(tiny, iterations_per_epoch=3)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    kept = policies.load(folder / "policy.json")
    assert kept.training is not None
    assert kept.test_time is not None
    assert torch.equal(kept.training.logits, trainer.method.training.logits)
    assert torch.equal(kept.test_time.logits, trainer.method.test_time.logits)
    assert kept.test_time.level == "patch"
    assert kept.provenance["trainer"] == "nnUNetTrainerAutoAug"
    assert kept.provenance["epochs"] == 1
    assert len(str(kept.provenance["data_fingerprint"])) == 16
    text = (folder / "policy.json").read_text()
    assert str(tiny.results) not in text
    assert "case_" not in text
    line = json.loads((folder / "autoaug.jsonl").read_text())
    assert {"entropy_background", "entropy_foreground_gamma", "entropy_views", "meta_loss"} <= set(line)
    assert line["policy_updates"] == 3
    assert not (folder / "augmenters.pt").exists()


def test_the_method_is_told_what_the_plans_say(tiny: Any) -> None:
    trainer = joint(tiny, epochs=2, iterations_per_epoch=30, method_options={"classes": "labels"})
    trainer.initialize()
    assert isinstance(trainer.method, JointPolicy)
    assert trainer.task.steps == 60
    assert trainer.task.patch_size == tuple(tiny.plans["configurations"]["3d_fullres"]["patch_size"])
    assert trainer.method.training.classes == ("background", "shell", "core")
