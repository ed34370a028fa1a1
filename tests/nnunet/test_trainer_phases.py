# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Phases in an nnU-Net trainer: fresh networks by nnU-Net's own builder, schedules, checkpoints, the best one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from test_resume import final, same, stop_after

from monai_autoaug import methods
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods import Batches, Method, Phase
from monai_autoaug.nnunet import ranks
from monai_autoaug.nnunet.trainers import with_autoaug


class Staged(Method):
    """The plain step in two phases, the second one with a fresh network."""

    name: ClassVar[str] = "staged"
    phases = (Phase("one"), Phase("two", fresh=True))

    def step(self, batches: Batches) -> dict[str, float]:
        batch = batches.next("train").cropped()
        loss = self.task.losses(self.task.forward(batch.image, batch.extra), batch.label, batch.valid).mean()
        self.descend(loss)
        return {"loss": float(loss.detach())}


@pytest.fixture(autouse=True)
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "staged", f"{__name__}:Staged")


OPTIONS = {"method": "staged", "epochs": 4, "iterations_per_epoch": 2, "save_every": 1, "margin": 0}


def test_the_second_phase_begins_with_a_fresh_network_and_schedule(tiny: Any) -> None:
    trainer = tiny.trainer(with_autoaug(nnUNetTrainer, "adversarial"), fold=0, **OPTIONS)
    found: dict[str, Any] = {}
    step = type(trainer).train_step

    def noted(batch: Any) -> Any:
        if trainer.current_epoch == 2 and "weights" not in found:
            network = ranks.unwrapped(trainer.network)
            found["weights"] = {k: v.clone() for k, v in network.state_dict().items()}
            found["momentum"] = len(trainer.optimizer.state)
            assert trainer.task.optimizer is trainer.optimizer
        return step(trainer, batch)

    trainer.train_step = noted
    trainer.run_training()
    log = trainer.logger
    rates = log.get_value("lrs", step=None)
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9] * 2)
    assert found["momentum"] == 0
    torch.manual_seed(trainer.run_seed * 1009 + 1)
    assert all(torch.equal(found["weights"][k], v) for k, v in trainer._build_again().state_dict().items())
    dice, average = (log.get_value(n, step=None) for n in ("mean_fg_dice", "ema_fg_dice"))
    assert average[2] == dice[2]
    assert average[3] == pytest.approx(0.9 * dice[2] + 0.1 * dice[3])
    assert trainer._best_ema == max(average[2:])


def test_a_run_resumed_in_each_phase_is_the_uninterrupted_one(tiny: Any) -> None:
    cls = with_autoaug(nnUNetTrainer, "adversarial")
    whole = tiny.trainer(cls, fold=0, **OPTIONS)
    whole.run_training()
    wanted = final(tiny, whole)
    for epoch in (1, 2, 3):  # within the first phase, between both, within the second
        first = tiny.trainer(cls, fold=1, **OPTIONS)
        first.fold = 0
        stop_after(first, epoch)
        second = tiny.trainer(cls, fold=1, resume=True, **OPTIONS)
        second.fold = 0
        second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
        second.run_training()
        got = final(tiny, second)
        for key in ("network_weights", "optimizer_state", "_best_ema", "current_epoch"):
            same(got[key], wanted[key], key)
        for key in ("train_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
            same(got["logging"][key], wanted["logging"][key], key)
        same(got["autoaug"]["method"], wanted["autoaug"]["method"])


def test_what_cannot_be_is_refused(tiny: Any) -> None:
    cls = with_autoaug(nnUNetTrainer, "adversarial")
    with pytest.raises(ConfigError, match=r"2 phases \(one, two\).*got 1 epoch"):
        tiny.trainer(cls, **{**OPTIONS, "epochs": 1})
    with pytest.raises(ConfigError, match="changes its optimiser in the course of training"):
        tiny.trainer(with_autoaug(nnUNetTrainer_warmup, "adversarial"), **OPTIONS).initialize()


def test_pretrained_weights_that_a_fresh_network_would_replace_are_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nnU-Net's own function, before anything is trained; where no phase begins anew they are taken."""
    cls = with_autoaug(nnUNetTrainer, "adversarial")
    other = tiny.trainer(cls, method="none", seed=3)
    other.initialize()
    file = str(tmp_path / "pretrained.pth")
    other.save_checkpoint(file)
    trainer = tiny.trainer(cls, **OPTIONS)
    maybe_load_checkpoint(trainer, False, False, file)
    with pytest.raises(ConfigError, match=r"fresh network in its phase 'two'.*-pretrained_weights\) don't reach"):
        trainer.run_training()
    assert trainer.method.steps == 0
    monkeypatch.setattr(Staged, "phases", (Phase("one"), Phase("two")))
    trainer = tiny.trainer(cls, **OPTIONS | {"epochs": 2})
    maybe_load_checkpoint(trainer, False, False, file)
    trainer.run_training()
    assert trainer.method.phase.name == "two"


def test_another_number_of_epochs_would_move_the_phases(tiny: Any) -> None:
    cls = with_autoaug(nnUNetTrainer, "adversarial")
    first = tiny.trainer(cls, fold=2, **OPTIONS)
    first.fold = 0
    stop_after(first, 1)
    second = tiny.trainer(cls, fold=2, resume=True, **{**OPTIONS, "epochs": 8})
    with pytest.raises(CheckpointError, match="epochs: 4 in the checkpoint, 8 in this run"):
        second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
