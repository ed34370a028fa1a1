# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's trainer with general transformations: trains, resumes bit for bit, deploys; its phases; the paper's STN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from monai_autoaug import augmenters
from monai_autoaug.errors import CheckpointError
from monai_autoaug.methods.general_comparisons import general_comparison
from monai_autoaug.nnunet.export import plain_checkpoint
from monai_autoaug.nnunet.trainers import TRAINERS
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugGeneral as General

SMALL = {"width": 2, "noise_size": 4, "width_discriminator": 2}


def final(trainer: Any) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    return content


def test_its_name_is_where_nnunet_looks() -> None:
    assert General.__name__ == "nnUNetTrainerAutoAugGeneral"
    assert TRAINERS["nnUNetTrainerAutoAugGeneral"] is General
    assert General.autoaug_defaults["method"] == "general_adversarial"
    assert issubclass(General, nnUNetTrainer)


def test_a_resumed_run_is_the_uninterrupted_one(tiny: Any) -> None:
    options = {"epochs": 2, "save_every": 1, "method_options": SMALL}
    whole = tiny.trainer(General, fold=0, **options)
    whole.run_training()
    wanted = final(whole)
    assert set(whole.method.players) == {"generator", "class_discriminator", "dissimilarity_discriminator"}
    assert list(augmenters.load(Path(whole.output_folder) / "augmenters.pt")) == ["general"]
    assert "spatial_transformer" not in str(list(wanted["network_weights"]))

    first = tiny.trainer(General, fold=1, **options)
    first.fold = 0  # the same cases, another folder
    start = first.on_epoch_start

    def on_epoch_start() -> None:
        if first.current_epoch == 1:
            raise KeyboardInterrupt
        start()

    first.on_epoch_start = on_epoch_start
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    second = tiny.trainer(General, fold=1, resume=True, **options)
    second.fold = 0
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    got = final(second)
    for name, tensor in wanted["network_weights"].items():
        assert torch.equal(got["network_weights"][name], tensor), name
    for name, player in wanted["autoaug"]["method"]["players"].items():
        for key, tensor in player["module"].items():
            assert torch.equal(got["autoaug"]["method"]["players"][name]["module"][key], tensor), (name, key)


def test_separate_training_begins_anew_after_the_generator(tiny: Any) -> None:
    options = general_comparison("separate_1000", **SMALL)
    trainer = tiny.trainer(General, fold="all", epochs=2, method_options=options)
    trainer.run_training()
    assert trainer.method.phase.name == "network"
    assert trainer.method.phase_steps == 2
    assert trainer.method.steps == 4


def test_a_standard_spatial_transformer_is_in_the_network_that_nnunet_predicts_with(tiny: Any) -> None:
    """The predictor builds the network by the class alone and loads the checkpoint's weights."""
    trainer = tiny.trainer(General, fold="all", method_options=general_comparison("b", **SMALL))
    trainer.run_training()
    content = final(trainer)
    assert any(name.startswith("spatial_transformer.") for name in content["network_weights"])
    built = General.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads, False,
    )  # fmt: skip
    built.load_state_dict(content["network_weights"])
    image = torch.randn(1, 1, 24, 28, 24)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(built.eval()(image), trainer.network.eval()(image))
    with pytest.raises(CheckpointError, match="plain nnU-Net does not know"):
        plain_checkpoint(content)
