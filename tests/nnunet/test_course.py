# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Training goes on with the options of the checkpoint only; validation needs its network only."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainerCosAnneal import nnUNetTrainerCosAnneal
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from monai_autoaug.errors import CheckpointError
from monai_autoaug.nnunet import checkpoint
from monai_autoaug.nnunet.course import FREE, differences
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import with_autoaug


@pytest.fixture(scope="module")
def latest(tiny: Any) -> str:
    """A checkpoint from which training goes on."""
    trainer = tiny.trainer(Adversarial, fold="all", lr=0.02, epochs=3)
    trainer.initialize()
    path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(path)
    return path


CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"method": "random"}, ["method: 'adversarial' in the checkpoint, 'random' in this run"]),
    ({"method_options": {"weight_prior": 2.0}}, ["method_options: weight_prior: 1.0 in the checkpoint, 2.0"]),
    ({"method_options": {"bounds": {"affine": {"shear": 0.3}}}}, ["method_options: bounds: affine: None in the"]),
    ({"features": [4, 4, 4]}, ["features: [4, 8, 16] in the checkpoint, [4, 4, 4] in this run"]),
    ({"width": 0.5}, ["features: [4, 8, 16] in the checkpoint, [2, 4, 8]"]),
    ({"optimizer": "adamw", "lr": 0.02}, ["optimizer: 'sgd' in the checkpoint, 'adamw'", "momentum: 0.99"]),
    ({"lr": 0.01, "weight_decay": 0.1}, ["lr: 0.02 in the checkpoint, 0.01", "weight_decay: 3e-05"]),
    ({"optimizer": "sgd", "momentum": 0.9}, ["momentum: 0.99 in the checkpoint, 0.9 in this run"]),
    ({"batch_size": 3}, ["batch_size: 2 in the checkpoint, 3 in this run"]),
    ({"iterations_per_epoch": 5}, ["iterations_per_epoch: 2 in the checkpoint, 5 in this run"]),
    ({"seed": 1}, ["seed: 0 in the checkpoint, 1 in this run"]),
    ({"loader": "stock"}, ["loader: 'seeded' in the checkpoint, 'stock' in this run"]),
    ({"precision": "bfloat16"}, ["precision: 'float32' in the checkpoint, 'bfloat16'"]),
    ({"base_augmentation": "mirror"}, ["base_augmentation: 'stock' in the checkpoint"]),
    ({"margin": 1}, ["margin: [0, 0, 0] in the checkpoint, [1, 1, 1] in this run"]),
]


@pytest.mark.parametrize(("changed", "phrases"), CHANGES, ids=lambda value: "-".join(value))
def test_training_goes_on_with_the_checkpoints_options_only(
    tiny: Any, latest: str, changed: dict[str, Any], phrases: list[str]
) -> None:
    """Every option that changes the course of the training is compared; all that differ are named."""
    options = {"lr": 0.02, "epochs": 3} | changed
    with pytest.raises(CheckpointError, match="MONAI_AUTOAUG_CONFIG") as error:
        tiny.trainer(Adversarial, resume=True, **options).load_checkpoint(latest)
    message = str(error.value)
    assert latest in message
    for phrase in phrases:
        assert phrase in message
    assert message.count(" in this run") == len(phrases)


def test_every_option_is_compared_or_free() -> None:
    compared = {name for changed, _ in CHANGES for name in changed}
    compared |= {"meta_cases", "meta_split"}  # of methods with meta-validation: see test_joint_trainer.py
    compared |= {"policy_place"}  # of methods with a training policy: see test_worker_policy.py
    assert compared | set(FREE) == {f.name for f in fields(Options)}
    assert not compared & set(FREE)


def test_what_may_change_is_logged_in_one_line(tiny: Any, latest: str, capsys: pytest.CaptureFixture[str]) -> None:
    # spelling out what is in effect anyway is no change
    same_as_before = {
        "lr": 0.02, "batch_size": 2, "weight_decay": 3e-5, "features": [4, 8, 16], "margin": 0,
        "optimizer": "sgd", "precision": "float32",
        "method_options": {
            "mode": "combined", "warm_up": 25, "weight_prior": 1, "saturating": False, "balance": True,
            "base": "random", "bounds": {"affine": {"rotation": 15}, "deformation": {}},
        },
    }  # fmt: skip
    trainer = tiny.trainer(
        Adversarial, resume=True, epochs=5, val_iterations_per_epoch=2, save_every=7, **same_as_before
    )
    trainer.load_checkpoint(latest)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Options changed" in line]
    assert len(lines) == 1
    for phrase in ("epochs: 3 in the checkpoint, 5", "val_iterations_per_epoch: 1", "save_every: 50"):
        assert phrase in lines[0]
    unchanged = tiny.trainer(Adversarial, resume=True, epochs=3, lr=0.02)
    unchanged.load_checkpoint(latest)
    assert "Options changed" not in capsys.readouterr().out


def test_an_empty_mapping_of_bounds_is_none(tiny: Any, latest: str) -> None:
    trainer = tiny.trainer(Adversarial, resume=True, epochs=3, lr=0.02, method_options={"bounds": {}})
    trainer.load_checkpoint(latest)


EDITS: list[tuple[str, Any, str]] = [
    ("batch_size", 4, "batch_size: 2 in the checkpoint, 4 in this run"),
    ("patch_size", [32, 32, 32], "plans: patch_size: "),
    ("batch_dice", True, "plans: batch_dice: False in the checkpoint, True in this run"),
    ("spacing", [2.0, 1.0, 1.0], "plans: spacing: [1.0, 1.0, 1.0] in the checkpoint, [2.0, 1.0, 1.0] in this run"),
    ("use_mask_for_norm", [True], "plans: use_mask_for_norm: [False] in the checkpoint, [True] in this run"),
    ("nonlin", "torch.nn.ReLU", "plans: architecture: arch_kwargs: nonlin: 'torch.nn.LeakyReLU' in the checkpoint"),
]


@pytest.mark.parametrize(("key", "value", "phrase"), EDITS, ids=[key for key, _, _ in EDITS])
def test_edited_plans_are_other_options(tiny: Any, latest: str, key: str, value: Any, phrase: str) -> None:
    dataset = deepcopy(tiny)
    configuration = dataset.plans["configurations"]["3d_fullres"]
    place = configuration["architecture"]["arch_kwargs"] if key == "nonlin" else configuration
    assert place[key] != value
    place[key] = value
    options = {"lr": 0.02, "epochs": 3, "margin": 0}
    with pytest.raises(CheckpointError) as error:
        dataset.trainer(Adversarial, resume=True, **options).load_checkpoint(latest)
    assert phrase in str(error.value)
    assert str(error.value).count(" in this run") == 1


def test_plans_that_say_the_same_otherwise_are_the_same(tiny: Any, latest: str) -> None:
    """A configuration that inherits everything is the one it inherits from; a later stage changes nothing in it."""
    dataset = deepcopy(tiny)
    configurations = dataset.plans["configurations"]
    configurations["parent"] = configurations["3d_fullres"]
    configurations["3d_fullres"] = {"inherits_from": "parent", "next_stage": "3d_cascade"}
    configurations["3d_fullres"]["autoaug"] = configurations["parent"]["autoaug"]
    dataset.trainer(Adversarial, resume=True, lr=0.02, epochs=3).load_checkpoint(latest)


def test_the_precision_follows_the_device_where_it_is_left_out() -> None:
    """A run without the option may move to another device, one with it may as far as the precision stays."""
    cpu, gpu = ({"in_effect": dtype, "follows_device": True} for dtype in ("float32", "float16"))
    given = {"in_effect": "float32", "follows_device": False}
    for before, now in ((cpu, gpu), (cpu, given), (given, cpu), (given, given)):
        assert not differences({"precision": before}, {"precision": now})
    assert differences({"precision": given}, {"precision": gpu}) == {"precision": ("float32", "float16")}


@pytest.mark.parametrize(
    ("base", "optimizer", "momentum"),
    [
        (nnUNetTrainer, "sgd", 0.99),
        (nnUNetTrainerAdam, "AdamW with PolyLRScheduler", None),  # with amsgrad, which the option hasn't
        (nnUNetTrainerCosAnneal, "SGD with CosineAnnealingLR", 0.99),
    ],
)
def test_the_optimiser_is_the_one_that_is_built(tiny: Any, base: type, optimizer: str, momentum: float | None) -> None:
    trainer = tiny.trainer(with_autoaug(base, "none"))
    trainer.initialize()
    assert trainer._course["optimizer"] == optimizer
    assert trainer._course["momentum"] == momentum


def test_every_group_of_an_optimiser_counts(tiny: Any) -> None:
    """Two trainers whose optimisers differ in the second group only are no course to go on with."""

    def courses(weight_decay: float, momentum: float) -> str:
        class Grouped(nnUNetTrainer):
            def configure_optimizers(self) -> tuple[Any, Any]:
                first, *others = self.network.parameters()
                groups = [{"params": [first]}, {"params": others, "weight_decay": weight_decay, "momentum": momentum}]
                optimizer = torch.optim.SGD(groups, self.initial_lr, momentum=0.9)
                return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

        trainer = tiny.trainer(with_autoaug(Grouped, "none"))
        trainer.initialize()
        return str(trainer._course["optimizer"])

    assert courses(0.1, 0.9) == courses(0.1, 0.9)
    assert len({courses(0.1, 0.9), courses(0.0, 0.9), courses(0.1, 0.5)}) == 3


@pytest.mark.parametrize(
    "changed", [{"method": "none"}, {"lr": 0.5, "optimizer": "adamw"}, {"base_augmentation": "none"}]
)
def test_validation_needs_the_network_only(tiny: Any, latest: str, changed: dict[str, Any]) -> None:
    """--val and --val_best load what --c would refuse; training from it is refused nevertheless."""
    weights = torch.load(latest, weights_only=False)["network_weights"]
    trainer = tiny.trainer(Adversarial, **changed)
    trainer.load_checkpoint(latest)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.network.state_dict().items())
    with pytest.raises(CheckpointError, match=f"{next(iter(changed))}: .* in this run"):
        trainer.run_training()
    with pytest.raises(CheckpointError, match=r"another network; features: \[4, 8, 16\] in the checkpoint"):
        tiny.trainer(Adversarial, features=[4, 4, 4]).load_checkpoint(latest)


def test_another_network_is_explained_by_the_plans_that_make_it(tiny: Any, latest: str) -> None:
    dataset = deepcopy(tiny)
    dataset.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"][0] = 2
    with pytest.raises(CheckpointError, match="another network; plans: architecture: arch_kwargs: n_conv_per_stage: "):
        dataset.trainer(Adversarial).load_checkpoint(latest)


def test_checkpoints_of_another_version_or_broken_ones_are_named(tiny: Any, latest: str, tmp_path: Path) -> None:
    content = torch.load(latest, weights_only=False)
    for version, age in ((checkpoint.VERSION + 1, "a newer"), (checkpoint.VERSION - 1, "an older")):
        content["autoaug"]["version"] = version
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=f"other.pth: was written by {age} monai_autoaug"):
            tiny.trainer(Adversarial, resume=True).load_checkpoint(str(tmp_path / "other.pth"))
        tiny.trainer(Adversarial).load_checkpoint(str(tmp_path / "other.pth"))
    broken = tmp_path / "checkpoint_broken.pth"
    broken.write_bytes(Path(latest).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="checkpoint_broken.pth: can't be read"):
        tiny.trainer(Adversarial).load_checkpoint(str(broken))
