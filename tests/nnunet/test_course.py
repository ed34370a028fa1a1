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

from monai_autoaug.errors import CheckpointError
from monai_autoaug.nnunet import checkpoint
from monai_autoaug.nnunet.course import FREE
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial


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
    ({"method_options": {"weight_prior": 2.0}}, ["method_options: weight_prior: None in the checkpoint, 2.0"]),
    ({"features": [4, 4, 4]}, ["features: [4, 8, 16] in the checkpoint, [4, 4, 4] in this run"]),
    ({"width": 0.5}, ["features: [4, 8, 16] in the checkpoint, [2, 4, 8]"]),
    ({"optimizer": "adamw", "lr": 0.02}, ["optimizer: None in the checkpoint, 'adamw' in this run"]),
    ({"lr": 0.01, "weight_decay": 0.1}, ["lr: 0.02 in the checkpoint, 0.01", "weight_decay: 3e-05"]),
    ({"optimizer": "sgd", "momentum": 0.9}, ["optimizer: None", "momentum: None in the checkpoint, 0.9 in this run"]),
    ({"batch_size": 3}, ["batch_size: 2 in the checkpoint, 3 in this run"]),
    ({"iterations_per_epoch": 5}, ["iterations_per_epoch: 2 in the checkpoint, 5 in this run"]),
    ({"seed": 1}, ["seed: 0 in the checkpoint, 1 in this run"]),
    ({"loader": "stock"}, ["loader: 'seeded' in the checkpoint, 'stock' in this run"]),
    ({"precision": "bfloat16"}, ["precision: None in the checkpoint, 'bfloat16'"]),
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
    assert compared | set(FREE) == {f.name for f in fields(Options)}
    assert not compared & set(FREE)


def test_what_may_change_is_logged_in_one_line(tiny: Any, latest: str, capsys: pytest.CaptureFixture[str]) -> None:
    # spelling out what is in effect anyway is no change
    same_as_before = {
        "lr": 0.02, "batch_size": 2, "weight_decay": 3e-5, "features": [4, 8, 16], "margin": 0,
        "method_options": {"mode": "combined"},
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


def test_edited_plans_are_other_options(tiny: Any, latest: str) -> None:
    dataset = deepcopy(tiny)
    dataset.plans["configurations"]["3d_fullres"]["batch_size"] = 4
    with pytest.raises(CheckpointError, match="batch_size: 2 in the checkpoint, 4 in this run"):
        dataset.trainer(Adversarial, resume=True, lr=0.02, epochs=3).load_checkpoint(latest)


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
