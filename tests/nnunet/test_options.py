# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Options: three layers, refused by name when wrong, and none of them without effect."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.layers import apply_to_plans, read_options
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import with_autoaug

PLANS: dict[str, Any] = {"configurations": {"3d_fullres": {}, "child": {"inherits_from": "3d_fullres"}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "no option 'epoch'"),
        ({"epochs": 0}, "epochs must be a positive whole number; got 0"),
        ({"epochs": True}, "epochs must be"),
        ({"epochs": "3"}, "epochs must be"),
        ({"method": "magic"}, "method must be one of adversarial"),
        ({"method": None}, "method must be one of"),
        ({"method_options": {"mod": "affine"}}, "has no option 'mod'"),
        (
            {"method": "task_driven", "method_options": {"weight_adversarial": "high"}},
            "weight_adversarial must be a number",
        ),
        ({"method": "task_driven", "method_options": {"augmentation": ["both"]}}, "augmentation must be one of both, "),
        ({"method": "bilevel", "method_options": {"hold_out": "no"}}, "hold_out must be true or false, got 'no'"),
        ({"method_options": {"seed": 3}}, "take it out of method_options"),
        ({"method_options": {"image_channels": 3}}, "take image_channels out"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw"),
        ({"lr": -1.0}, "lr must be"),
        ({"momentum": 0.9}, "momentum belongs to optimizer sgd"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum belongs to optimizer sgd"),
        ({"optimizer": "sgd", "momentum": 1.0}, "less than 1"),
        ({"features": []}, "features must be"),
        ({"features": [8, 0]}, "features must be"),
        ({"features": [8], "width": 0.5}, "give one of them"),
        ({"width": 0}, "width must be"),
        ({"seed": -1}, "seed must be"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"base_augmentation": "some"}, "base_augmentation must be one of"),
        ({"margin": [1, -1, 0]}, "margin must be"),
        ({"margin": "4"}, "margin must be"),
        ({"loader": None}, "loader must be one of"),
        ({"save_every": 0}, "save_every must be"),
    ],
)
def test_wrong_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.from_mapping(given)


def test_the_layers_and_which_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = deepcopy(PLANS)
    defaults = {"method": "adversarial", "method_options": {"mode": "affine"}, "epochs": 7, "width": 0.5}
    assert read_options(defaults, plans, "3d_fullres") == Options(**defaults)
    plans["configurations"]["3d_fullres"]["autoaug"] = {"epochs": 5, "features": [8, 16], "seed": 3}
    options = read_options(defaults, plans, "child")
    assert (options.epochs, options.features, options.width, options.seed) == (5, (8, 16), None, 3)
    assert options.method_options == {"mode": "affine"}
    file = tmp_path / "options.yaml"
    file.write_text("method: random\nepochs: 2\n")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(file))
    options = read_options(defaults, plans, "3d_fullres")
    assert (options.method, options.epochs, options.seed) == ("random", 2, 3)
    assert options.method_options == {}  # they were the other method's


@pytest.mark.parametrize(
    ("text", "message"),
    [("epochs: [", "is no YAML"), ("- 3", "must hold a mapping"), ("bath_size: 2", "no option 'bath_size'")],
)
def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(file))
    with pytest.raises(ConfigError, match=message) as error:
        read_options({}, PLANS, "3d_fullres")
    assert "broken.yaml" in str(error.value)
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match="missing.yaml, which is no file"):
        read_options({}, PLANS, "3d_fullres")


def test_a_layer_that_is_no_mapping_is_refused() -> None:
    plans = {"configurations": {"2d": {"autoaug": "fast"}}}
    with pytest.raises(ConfigError, match="configuration 2d: the key autoaug must hold a mapping"):
        read_options({}, plans, "2d")


def test_width_and_batch_size_are_written_into_the_plans(tiny: Any) -> None:
    options, plans = apply_to_plans(Options(width=0.5, batch_size=3, margin=1), tiny.plans, "3d_fullres")
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert configuration.network_arch_init_kwargs["features_per_stage"] == [2, 4, 8]
    assert configuration.batch_size == 3
    assert options.features == (2, 4, 8)
    assert options.width is None
    # written down and read again they give the same
    assert read_options({}, plans, "3d_fullres") == options
    assert apply_to_plans(options, plans, "3d_fullres") == (options, plans)
    assert tiny.plans["configurations"]["3d_fullres"]["batch_size"] == 2  # the given plans are left alone
    json.dumps(plans["configurations"]["3d_fullres"]["autoaug"])


def test_channels_that_do_not_fit_are_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="2 numbers, the network 3 stages"):
        apply_to_plans(Options(features=(4, 8)), tiny.plans, "3d_fullres")
    plans = deepcopy(tiny.plans)
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    with pytest.raises(ConfigError, match="has no features_per_stage"):
        apply_to_plans(Options(width=0.5), plans, "3d_fullres")


def test_a_trainer_that_builds_another_network_refuses_features(tiny: Any) -> None:
    class nnUNetTrainerOwnNetwork(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(plans_manager: Any, configuration_manager: Any, *rest: Any) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.InstanceNorm3d(3))

    trainer = tiny.trainer(with_autoaug(nnUNetTrainerOwnNetwork), features=[4, 8, 8])
    with pytest.raises(ConfigError, match="without the plans' features_per_stage"):
        trainer.initialize()


def test_every_option_reaches_the_trainer(tiny: Any) -> None:
    trainer = tiny.trainer(
        Adversarial,
        epochs=3,
        iterations_per_epoch=4,
        val_iterations_per_epoch=5,
        batch_size=3,
        optimizer="sgd",
        lr=0.02,
        weight_decay=0.01,
        momentum=0.8,
        width=0.5,
        precision="bfloat16",
        save_every=2,
        margin=[1, 2, 3],
        method_options={"mode": "affine"},
    )
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (3, 4, 5)
    assert (trainer.batch_size, trainer.save_every) == (3, 2)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]) == (0.02, 0.01, 0.8, True)
    assert trainer.network.encoder.output_channels == [2, 4, 8]
    assert trainer.task.precision.dtype is torch.bfloat16
    assert trainer.layout.margin == (1, 2, 3)
    assert trainer.method.mode == "affine"
    other = tiny.trainer(Adversarial, optimizer="adamw")
    other.initialize()
    assert isinstance(other.optimizer, torch.optim.AdamW)
    assert other.optimizer.param_groups[0]["lr"] == 1e-3
    other.lr_scheduler.step(other.num_epochs - 1)
    assert 0 < other.optimizer.param_groups[0]["lr"] <= 1e-3


def test_training_in_bfloat16(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial, precision="bfloat16", epochs=1)
    trainer.run_training()
    assert torch.isfinite(torch.cat([p.flatten() for p in trainer.network.parameters()])).all()
    with pytest.raises(ConfigError, match="float16 training needs a GPU"):
        tiny.trainer(Adversarial, precision="float16").initialize()


def test_seeds_decide_everything(tiny: Any) -> None:
    weights = []
    for seed in (4, 4, 5):
        trainer = tiny.trainer(Adversarial, seed=seed)
        trainer.run_training()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_was_trained_narrow_is_predicted_narrow(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option came from a file; prediction knows nothing of it and still builds the same network."""
    file = tmp_path / "options.yaml"
    file.write_text("width: 0.5\nmethod: none\n")
    with monkeypatch.context() as patch:
        patch.setenv("MONAI_AUTOAUG_CONFIG", str(file))
        trainer = tiny.trainer(Adversarial)
        trainer.run_training()
    from monai_autoaug.nnunet.launcher import find_trainer

    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.recursive_find_trainer_class_by_name", find_trainer)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert predictor.network.encoder.output_channels == [2, 4, 8]


def test_with_autoaug_keeps_what_the_base_class_does(tiny: Any) -> None:
    class nnUNetTrainerShort(nnUNetTrainer):
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any = None) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.initial_lr, self.num_iterations_per_epoch = 17, 0.5, 19

    cls = with_autoaug(nnUNetTrainerShort, "random", width=0.5)
    assert cls.__name__ == "nnUNetTrainerShortAutoAugRandom"
    assert cls.__module__ == __name__
    dataset = deepcopy(tiny)
    del dataset.plans["configurations"]["3d_fullres"]["autoaug"]
    trainer = dataset.trainer(cls)
    assert (trainer.num_epochs, trainer.initial_lr, trainer.num_iterations_per_epoch) == (17, 0.5, 19)
    assert (trainer.autoaug.method, trainer.autoaug.features) == ("random", (2, 4, 8))
    assert dataset.trainer(cls, epochs=3).num_epochs == 3
    for base, message in ((dict, "takes a subclass"), (cls, "has learned augmentation already")):
        with pytest.raises(ConfigError, match=message):
            with_autoaug(base)
    with pytest.raises(ConfigError, match=r"with_autoaug\(nnUNetTrainer\): there is no option 'epoch'"):
        with_autoaug(nnUNetTrainer, epoch=3)


def test_a_trainer_that_changes_its_optimiser(tiny: Any) -> None:
    cls = with_autoaug(nnUNetTrainer_warmup)
    with pytest.raises(ConfigError, match="nnUNetTrainer_warmup changes its optimiser"):
        tiny.trainer(cls, optimizer="adamw")
    trainer = tiny.trainer(cls, lr=0.02)
    trainer.warmup_duration_whole_net = 1
    trainer.num_epochs = 2
    trainer.run_training()
    assert trainer.training_stage == "train"
    assert trainer.task.optimizer is trainer.optimizer


def test_a_configuration_that_the_plans_do_not_have_is_named() -> None:
    plans = {"configurations": {"2d": {}, "3d_fullres": {}}}
    with pytest.raises(ConfigError, match="no configuration '3d_fulres'; they have 2d, 3d_fullres"):
        apply_to_plans(Options(), plans, "3d_fulres")
