# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The plain export: a plain trainer goes on from it; it is whole or not there."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet.export import export_plain
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial


@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_a_plain_trainer_resumes_from_the_export(tiny: Any, tmp_path: Path, optimizer: str | None) -> None:
    trainer = tiny.trainer(Adversarial, optimizer=optimizer)
    trainer.run_training()
    exported = export_plain(trainer.output_folder_base, tmp_path)
    plans = deepcopy(tiny.plans) | {"continue_training": True}
    plain = nnUNetTrainer(plans, "3d_fullres", 0, deepcopy(tiny.json), torch.device("cpu"))
    plain.load_checkpoint(str(exported / "fold_0" / "checkpoint_final.pth"))
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, trainer.network.state_dict()[name])
    momentum = {
        name: trainer.optimizer.state[p].get("momentum_buffer") for name, p in trainer.network.named_parameters()
    }
    for name, p in plain.network.named_parameters():
        state = plain.optimizer.state[p]
        if optimizer is None and momentum[name] is not None:
            assert torch.equal(state["momentum_buffer"], momentum[name]), name
        else:
            assert not state
    plain.num_epochs, plain.num_iterations_per_epoch, plain.num_val_iterations_per_epoch = 2, 1, 1
    plain.run_training()
    assert plain.current_epoch == 2


def test_what_can_not_be_exported_is_named_and_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(folder: Path, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            export_plain(folder, out)
        assert not out.exists()

    refused(tmp_path, ConfigError, "is no model folder")
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    refused(folder, ConfigError, "expected a file plans.json")
    (folder / "plans.json").write_text('{"configurations": ')
    refused(folder, ConfigError, "plans.json: can't be read")
    (folder / "plans.json").write_text('{"configurations": {}}')
    refused(folder, ConfigError, "expected a file dataset.json")
    (folder / "dataset.json").write_text("{}")
    refused(folder, CheckpointError, "train first")
    good = {"network_weights": {}, "autoaug": {"plain_trainer": "nnUNetTrainer"}}
    torch.save(good, fold / "checkpoint_best.pth")
    torch.save({"network_weights": {}}, fold / "checkpoint_final.pth")
    refused(folder, CheckpointError, "checkpoint_final.pth: was not written by a trainer of monai_autoaug")
    torch.save(good | {"autoaug": {"plain_trainer": "nnUNetTrainerBN"}}, fold / "checkpoint_final.pth")
    refused(folder, CheckpointError, "several trainers: nnUNetTrainer .*nnUNetTrainerBN")
    (fold / "checkpoint_final.pth").write_bytes((fold / "checkpoint_best.pth").read_bytes()[:300])
    refused(folder, CheckpointError, "checkpoint_final.pth: can't be read")


def test_an_export_is_whole_or_not_there(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(Adversarial, fold=3)
    trainer.fold = 0
    trainer.run_training()
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    killed = tmp_path / f".{name}.part"  # what an export that was killed has left
    (killed / "fold_9").mkdir(parents=True)
    seen = []

    def full(content: Any, file: str, **options: Any) -> None:
        seen.append({p.name for p in tmp_path.iterdir()})
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("monai_autoaug.nnunet.export.save_json", full)
        with pytest.raises(OSError, match="no space left"):
            export_plain(trainer.output_folder_base, tmp_path)
    assert seen == [{killed.name}]  # beside its place until it is whole
    assert list(tmp_path.iterdir()) == []
    exported = export_plain(trainer.output_folder_base, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    found = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json", "fold_3/checkpoint_final.pth"} <= found


def test_exported_checkpoints_hold_no_name_of_a_file(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(Adversarial, fold=2)
    trainer.initialize()
    for name in ("checkpoint_best.pth", "checkpoint_final.pth"):
        trainer.save_checkpoint(str(Path(trainer.output_folder) / name))
    for name, content in (("plans.json", tiny.plans), ("dataset.json", tiny.json)):
        (Path(trainer.output_folder_base) / name).write_text(json.dumps(content))
    fold = export_plain(trainer.output_folder_base, tmp_path) / "fold_2"
    assert (fold / "checkpoint_best.pth").read_bytes() == (fold / "checkpoint_final.pth").read_bytes()
