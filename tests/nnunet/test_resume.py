# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoints: complete, atomic, nnU-Net's own keys untouched, and resuming goes on bit for bit."""

from __future__ import annotations

import io
import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import same
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

from monai_autoaug.errors import CheckpointError
from monai_autoaug.networks.auxiliary_norm import auxiliary_state
from monai_autoaug.nnunet import checkpoint
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import with_autoaug

PLAIN_KEYS = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "inference_allowed_mirroring_axes",
}  # fmt: skip


def final(dataset: Any, trainer: Any) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    return content


RESUMED = [(method, base) for method in ("none", "random", "adversarial") for base in (nnUNetTrainer, nnUNetTrainerBN)]


@pytest.mark.parametrize(("method", "base"), [*RESUMED, ("adversarial", nnUNetTrainer_warmup)])
def test_a_resumed_run_is_the_uninterrupted_one(tiny: Any, method: str, base: type) -> None:
    cls = with_autoaug(base, "adversarial", method_options={"warm_up": 0})  # all players from the first step on
    options = {"method": method, "epochs": 2, "save_every": 1, "iterations_per_epoch": 3, "batch_size": 3}
    if method == "adversarial" and base is not nnUNetTrainer_warmup:
        options |= {"optimizer": "adamw"}
    whole = tiny.trainer(cls, fold=0, **options)
    whole.run_training()
    wanted = final(tiny, whole)
    lines = (Path(whole.output_folder) / "autoaug.jsonl").read_text()

    first = tiny.trainer(cls, fold=1, **options)
    first.fold = 0  # the same cases, another folder
    stop_after(first, 1)
    second = tiny.trainer(cls, fold=1, resume=True, **options)
    second.fold = 0
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert second.current_epoch == 1
    second.run_training()
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state", "_best_ema", "current_epoch"):
        same(got[key], wanted[key], key)
    for key in ("train_losses", "val_losses", "mean_fg_dice"):
        same(got["logging"][key], wanted["logging"][key], key)
    for key in ("method", "ranks", "streams"):
        same(got["autoaug"][key], wanted["autoaug"][key], key)
    again = (Path(second.output_folder) / "autoaug.jsonl").read_text()
    losses = [[json.loads(line)["train_loss"] for line in text.splitlines()] for text in (lines, again)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


class Killed(Exception):
    pass


def stop_after(trainer: Any, epochs: int) -> None:
    """Train until the loop asks for epoch ``epochs``, then stop as a killed process would."""
    start = trainer.on_epoch_start

    def on_epoch_start() -> None:
        if trainer.current_epoch == epochs:
            raise Killed
        start()

    trainer.on_epoch_start = on_epoch_start
    with pytest.raises(Killed):
        trainer.run_training()
    assert trainer._streams == {}  # and leaves no worker behind


def test_nnunets_keys_stay_and_ours_holds_plain_data_only(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial)
    trainer.run_training()
    content = final(tiny, trainer)
    assert set(content) == PLAIN_KEYS | {"autoaug"}
    assert content["trainer_name"] == "nnUNetTrainerAutoAugAdversarial"
    buffer = io.BytesIO()
    torch.save(content["autoaug"], buffer)
    buffer.seek(0)
    same(torch.load(buffer, weights_only=True), content["autoaug"])
    plain = nnUNetTrainer(
        deepcopy(tiny.plans) | {"continue_training": False}, "3d_fullres", 0, tiny.json, torch.device("cpu")
    )
    plain.initialize()
    assert list(content["network_weights"]) == list(plain.network.state_dict())
    plain.network.load_state_dict(content["network_weights"])
    # and computes what the trained one computes, whose auxiliary norms rest in evaluation
    image = torch.randn(1, 1, 24, 28, 24)
    with torch.no_grad():
        for a, b in zip(plain.network.eval()(image), trainer.network.eval()(image), strict=True):
            assert torch.equal(a, b)
    assert (Path(trainer.output_folder) / "augmenters.pt").is_file()


def test_a_failed_write_leaves_the_last_good_checkpoint(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(Adversarial)
    trainer.on_train_start()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    save = torch.save
    calls = []

    def break_off(content: Any, file: Any) -> None:
        calls.append(content)
        if len(calls) == 2:
            file.write(b"half a file")
            raise OSError("no space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", break_off)
    files = sorted(path.parent.iterdir())
    with pytest.raises(OSError, match="no space left"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files
    trainer._close_streams()


def test_checkpoints_tell_nothing_of_the_machine(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(Adversarial)
    trainer.initialize()
    written = []
    for host in ("first-machine", "second-machine"):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        path = Path(trainer.output_folder) / f"checkpoint_of_{len(written)}.pth"
        trainer.save_checkpoint(str(path))
        written.append(path.read_bytes())
        assert host.encode() not in written[-1]
        path.unlink()
    assert written[0] == written[1]


def test_a_trainer_that_writes_no_checkpoints_still_trains(tiny: Any) -> None:
    class nnUNetTrainerBenchmark(nnUNetTrainer):
        def save_checkpoint(self, filename: str) -> None:
            pass

    trainer = tiny.trainer(with_autoaug(nnUNetTrainerBenchmark))
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_what_a_killed_process_left_in_the_log_is_cut(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, fold=4, epochs=3, save_every=1)
    trainer.fold = 0
    stop_after(trainer, 2)
    log = Path(trainer.output_folder) / "autoaug.jsonl"
    whole = log.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in whole] == [0, 1]
    # the third epoch was logged but not saved, and of a fourth line a part reached the disk
    for rest in (
        '{"epoch": 2, "train_loss": 1.0}\n{"epoch": 3, "tr',
        '{"epoch": 2, "nested": {}',
        "\xff\n17\n[]\n{}\n",
    ):
        log.write_bytes("\n".join([*whole, rest]).encode("latin-1"))
        again = tiny.trainer(Adversarial, fold=4, epochs=3, save_every=1, resume=True)
        again.fold = 0
        again.load_checkpoint(str(log.with_name("checkpoint_latest.pth")))
        again.on_train_start()
        again._close_streams()
        assert log.read_text().splitlines() == whole
    again.run_training()
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 1, 2]


def test_disabled_checkpointing_writes_nothing(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, fold=2)
    trainer.fold = 0
    trainer.disable_checkpointing = True
    shutil.rmtree(trainer.output_folder, ignore_errors=True)  # other tests may have trained this fold
    trainer.run_training()
    written = {p.suffix for p in Path(trainer.output_folder).iterdir()}
    assert ".pth" not in written
    assert ".pt" not in written


def test_a_plain_checkpoint_is_refused_for_resuming_but_its_weights_can_be_used(tiny: Any) -> None:
    plans = deepcopy(tiny.plans) | {"continue_training": False}
    plain = nnUNetTrainer(plans, "3d_fullres", 3, deepcopy(tiny.json), torch.device("cpu"))
    plain.initialize()
    for parameter in plain.network.parameters():
        parameter.data.uniform_(0.5, 1.5)
    path = str(Path(plain.output_folder) / "checkpoint_final.pth")
    plain.save_checkpoint(path)
    with pytest.raises(CheckpointError, match="-pretrained_weights"):
        tiny.trainer(Adversarial, resume=True).load_checkpoint(path)
    trainer = tiny.trainer(Adversarial)
    trainer.initialize()
    load_pretrained_weights(trainer.network, path)
    trainer.on_train_start()
    loaded = trainer.network.state_dict()
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(loaded[name], tensor) == (".seg_layers." not in name), name
    # the auxiliary norms begin as copies of the loaded ones, not of the initial ones
    for name, tensor in auxiliary_state(trainer.task.network).items():
        main = loaded[name.replace("auxiliary_weight", "weight").replace("auxiliary_bias", "bias")]
        assert torch.equal(tensor, main.expand_as(tensor)), name
    trainer._close_streams()
    # and with the method off a plain checkpoint is a checkpoint
    off = tiny.trainer(Adversarial, resume=True, method="none")
    off.load_checkpoint(path)
    assert off.current_epoch == 1


def test_every_optimiser_parameter_has_a_name(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial)
    trainer.initialize()
    names = checkpoint.parameter_names(trainer.task.network, trainer.optimizer)
    assert len(names) == len(set(names)) == len(list(trainer.task.network.parameters()))
    assert any("auxiliary_" in name for name in names)
    shutil.rmtree(trainer.output_folder)
