# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned test-time views of a trained model: what nnU-Net's commands make of them, and how checkpoints carry them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference import predict_from_raw_data as predicting
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_joint_trainer import joint
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import launcher, test_time
from monai_autoaug.nnunet.export import export_plain
from monai_autoaug.nnunet.volume_views import VolumePredictor
from monai_autoaug.policies import TestTimePolicy


@pytest.fixture(scope="module")
def trained(make_dataset: Callable[..., Any]) -> tuple[Any, Path]:
    """Two folds whose views differ; the model folder."""
    dataset = make_dataset(labels={"background": 0, "shell": 1, "core": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        for fold in (0, 1):
            trainer = joint(dataset, fold=fold, seed=fold, iterations_per_epoch=4)
            trainer.run_training()
    return dataset, Path(trainer.output_folder_base)


def logits(folder: Path, image: Tensor, folds: tuple[int, ...] = (0,)) -> Tensor:
    # its Gaussian is too small in a patch's corners for the half precision in which nnU-Net adds up
    predictor = nnUNetPredictor(use_gaussian=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    return predictor.predict_logits_from_preprocessed_data(image).float()


def content(folder: Path, fold: int) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
    return loaded


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "recursive_find_trainer_class_by_name", launcher.find_trainer)


def hand_made(dataset: Any, folder: Path, image: Tensor, fold: int, z: int) -> Tensor:
    """Views of the patch through plain nnU-Net's network, averaged here; image and patch have the same size."""
    kept = content(folder, fold)
    plans = deepcopy(dataset.plans) | {"continue_training": False}
    plain = nnUNetTrainer(plans, "3d_fullres", 0, deepcopy(dataset.json), torch.device("cpu"))
    plain.initialize()
    plain.set_deep_supervision_enabled(False)
    plain.network.load_state_dict(test_time.without_views(kept["network_weights"]))
    plain.network.eval()
    policy = TestTimePolicy.preset("nnunet", level="patch", patch_size=tuple(image.shape[1:]))
    policy.load_state_dict(kept["autoaug"]["method"]["learners"]["test_time"]["module"])
    operations, weights = policy.top(z)
    total, seen = torch.zeros(1, 1, *image.shape[1:]), torch.zeros(1, 1, *image.shape[1:])
    with torch.no_grad():
        for operation, weight in zip(operations, weights, strict=True):
            output = plain.network(policy.view(operation, image[None]))
            back, covered = policy.revert(operation, output, tuple(image.shape[1:]))
            total, seen = total + weight * back, seen + weight * covered
        alone = plain.network(image[None])
    return torch.where(seen < 1e-3, alone, total / seen)[0]  # where no view has seen anything


def test_nnunets_predictor_averages_the_learned_views(
    trained: tuple[Any, Path], found: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset, folder = trained
    patch = dataset.plans["configurations"]["3d_fullres"]["patch_size"]
    image = torch.randn(1, *patch, generator=torch.Generator().manual_seed(0))
    kept = content(folder, 0)
    assert kept["inference_allowed_mirroring_axes"] is None
    assert "autoaug.test_time" in kept["network_weights"]
    close = {"atol": 3e-3, "rtol": 2e-3}  # nnU-Net adds up in half precision
    together = logits(folder, image)
    torch.testing.assert_close(together, hand_made(dataset, folder, image, 0, 8), **close)
    monkeypatch.setenv("MONAI_AUTOAUG_TEA", "2")
    two = logits(folder, image)
    torch.testing.assert_close(two, hand_made(dataset, folder, image, 0, 2), **close)
    assert (two - together).abs().max() > 1e-2
    # folds with views of their own
    monkeypatch.delenv("MONAI_AUTOAUG_TEA")
    texts = [bytes(content(folder, fold)["network_weights"]["autoaug.test_time"].tolist()) for fold in (0, 1)]
    assert texts[0] != texts[1]
    expected = (hand_made(dataset, folder, image, 0, 8) + hand_made(dataset, folder, image, 1, 8)) / 2
    torch.testing.assert_close(logits(folder, image, (0, 1)), expected, **close)
    # without views it is the plain network, as it is exported
    monkeypatch.setenv("MONAI_AUTOAUG_TEA", "0")
    off = logits(folder, image)
    exported = export_plain(folder, tmp_path)
    assert "autoaug.test_time" not in content(exported, 0)["network_weights"]
    monkeypatch.delenv("MONAI_AUTOAUG_TEA")
    assert torch.equal(off, logits(exported, image))
    assert (off - together).abs().max() > 1e-2


def test_plain_commands_predict_with_views(
    trained: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = trained
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    source = dataset.raw / dataset.name / "imagesTr"
    arguments = ["-i", str(source), "-d", str(dataset.number), "-c", "3d_fullres", "-f", "0", "-device", "cpu"]
    arguments += ["-npp", "0", "-nps", "0", "--disable_progress_bar", "--save_probabilities"]
    arguments += ["-tr", "nnUNetTrainerAutoAug"]
    made = {}
    for name, value in (("on", None), ("off", "0")):
        if value is not None:
            monkeypatch.setenv("MONAI_AUTOAUG_TEA", value)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["nnUNetv2_predict", *arguments, "-o", str(tmp_path / name)])
            predicting.predict_entry_point()
        made[name] = np.load(sorted((tmp_path / name).glob("*.npz"))[0])["probabilities"]
    assert np.abs(made["on"] - made["off"]).max() > 1e-3


@pytest.fixture(scope="module")
def flat(make_dataset: Callable[..., Any]) -> tuple[Any, Path]:
    """A 2D configuration; the model folder."""
    dataset = make_dataset("2d", labels={"background": 0, "shell": 1, "core": 2}, shape=(5, 24, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        trainer = joint(dataset, "2d", iterations_per_epoch=3)
        trainer.run_training()
    return dataset, Path(trainer.output_folder_base)


@pytest.mark.parametrize("dims", [2, 3])
def test_views_of_whole_volumes(
    dims: int, trained: tuple[Any, Path], found: None, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    """Each view of the volume goes through nnU-Net's sliding window; slices of a 2D configuration turn in-plane."""
    folder = (request.getfixturevalue("flat") if dims == 2 else trained)[1]
    image = torch.randn(1, 6, 30, 33, generator=torch.Generator().manual_seed(0))
    predictor = VolumePredictor(use_gaussian=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    kept = test_time.views_of(predictor.network)
    plane = "hw" if dims == 3 else "dh"  # of the last two axes, by the names of the first ones
    favourites = (f"flip_{plane[1]}", f"rotate_{plane}_+90", "identity", f"rotate_{plane}_+15")
    policy = TestTimePolicy.preset("uniform", level="patch", spatial_dims=dims, z=4)
    names = [o.name for o in policy.operations]
    with torch.no_grad():
        for name in favourites:
            policy.logits[names.index(name)] = 2.0
    test_time.learn(predictor.network, policy)
    monkeypatch.setenv("MONAI_AUTOAUG_TEA", "0")
    window = predictor.predict_sliding_window_return_logits
    off = window(image).float()
    parts = [off, window(image.flip(3)).flip(3), window(image.rot90(1, (2, 3))).rot90(-1, (2, 3))]
    monkeypatch.setenv("MONAI_AUTOAUG_TEA", "3")
    expected = sum(p.float() for p in parts) / 3
    # equally probable views come in the order of the catalogue, small rotations first
    with torch.no_grad():
        policy.logits[names.index(favourites[-1])] = 1.9
    test_time.learn(predictor.network, policy)
    averaged = window(image)
    torch.testing.assert_close(averaged.float(), expected, atol=3e-3, rtol=2e-3)
    assert averaged.shape == off.shape == (3, 6, 30, 33)
    monkeypatch.delenv("MONAI_AUTOAUG_TEA")
    assert (window(image) - averaged).abs().max() > 1e-3
    assert kept.active  # as before
    test_time.learn(predictor.network, None)
    with pytest.raises(ConfigError, match="holds no learned views"):
        window(image)


def test_the_launcher_views_volumes(trained: tuple[Any, Path], tmp_path: Path) -> None:
    dataset, _ = trained
    source = dataset.raw / dataset.name / "imagesTr"
    arguments = ["-i", str(source), "-d", str(dataset.number), "-c", "3d_fullres", "-f", "0", "1", "-device", "cpu"]
    arguments += ["-npp", "0", "-nps", "0", "--disable_progress_bar", "--save_probabilities"]
    arguments += ["-tr", "nnUNetTrainerAutoAug"]
    made = {}
    for level in ("patch", "volume"):
        launcher.predict([*arguments, "-o", str(tmp_path / level), "--tea", level])
        made[level] = np.load(sorted((tmp_path / level).glob("*.npz"))[0])["probabilities"]
    assert made["patch"].shape == made["volume"].shape
    assert np.isfinite(made["volume"]).all()
    assert predicting.nnUNetPredictor is nnUNetPredictor


def test_pretrained_weights_both_ways(trained: tuple[Any, Path], tiny: Any, tmp_path: Path) -> None:
    dataset, folder = trained
    ours = str(folder / "fold_0" / "checkpoint_final.pth")
    plans = deepcopy(tiny.plans) | {"continue_training": False}
    plain = nnUNetTrainer(plans, "3d_fullres", 0, deepcopy(tiny.json), torch.device("cpu"))
    plain.initialize()
    load_pretrained_weights(plain.network, ours)
    plain.save_checkpoint(str(tmp_path / "plain.pth"))
    again = joint(tiny, fold=4)
    again.initialize()
    load_pretrained_weights(again.network, str(tmp_path / "plain.pth"))
    load_pretrained_weights(again.network, ours)
    assert test_time.views_of(again.network).policy is None
    launcher.load_pretrained_weights(again.network, ours)
    assert "autoaug.test_time" not in again.network.state_dict()
    shutil.rmtree(again.output_folder)


def test_views_take_no_part_in_training(trained: tuple[Any, Path]) -> None:
    """A resumed trainer has the views in its network, but trains and validates patches without them."""
    dataset, folder = trained
    trainer = joint(dataset, resume=True, seed=0, iterations_per_epoch=4)
    trainer.load_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    assert test_time.views_of(trainer.network).policy is not None
    assert "forward" not in trainer.network.__dict__
    seen = []

    def validation(self: Any, save_probabilities: bool = False) -> None:
        seen.append("forward" in trainer.network.__dict__)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnUNetTrainer, "perform_actual_validation", validation)
        trainer.perform_actual_validation()
    assert seen == [True]
    assert "forward" not in trainer.network.__dict__


def test_nothing_learned_is_nothing_kept(tiny: Any) -> None:
    trainer = joint(tiny, fold=2, method_options={"warm_up": 1}, iterations_per_epoch=2)
    trainer.fold = 0
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    assert "autoaug.test_time" not in torch.load(path, weights_only=False)["network_weights"]
    shutil.rmtree(trainer.output_folder)
