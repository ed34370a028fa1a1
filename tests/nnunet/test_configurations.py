# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every kind of data and configuration that nnU-Net knows, trained with learned augmentation on tiny data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
    nnUNetTrainerDA5ord0,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDAOrd0 import (
    nnUNetTrainer_DASegOrd0_NoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import (
    nnUNetTrainerDiceTopK10Loss,
    nnUNetTrainerTopk10Loss,
)
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerVanillaAdam3en4
from nnunetv2.training.nnUNetTrainer.variants.sampling.nnUNetTrainer_probabilisticOversampling import (
    nnUNetTrainer_probabilisticOversampling,
)

from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.experiment import small_configuration
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import with_autoaug

LABELS = {"background": 0, "shell": 1, "core": 2}


def steps(trainer: Any, number: int = 4) -> list[Any]:
    """Some training steps; returns the batches that reached the segmentation network."""
    seen: list[Any] = []

    def listen(event: str, values: Any) -> None:
        if event == "forward":
            seen.append((values["batch"], values["output"]))

    trainer.on_train_start()
    trainer.task.notify = listen
    trainer.network.train()
    before = [p.detach().clone() for p in trainer.network.parameters()]
    for _ in range(number):
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        assert np.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    with torch.no_grad():
        trainer.network.eval()
        scores = trainer.validation_step(next(trainer.dataloader_val))
    assert np.isfinite(scores["loss"])
    trainer._close_streams()
    return seen


def test_deep_supervision_trains_every_head_but_the_last(tiny: Any) -> None:
    trainer = tiny.trainer(Adversarial)
    seen = steps(trainer, 1)
    assert [o.shape[2] for o in seen[0][1]] == [24, 12]
    heads = trainer.network.decoder.seg_layers
    got = [head.weight.grad is not None and bool(head.weight.grad.abs().max() > 0) for head in heads]
    assert got == [False, True]  # the lowest resolution first; nnU-Net gives it weight 0


def test_a_network_of_two_stages(make_dataset: Callable[..., Any]) -> None:
    """It has one output, which nnU-Net weighs by 0 / 0; every loss was NaN and no update was ever made."""

    def edit(plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        configurations["3d_fullres"] |= small_configuration(
            configurations["3d_fullres"], features=[4, 8], patch_size=[16, 16, 16], batch_size=2
        )
        del configurations["3d_fullres"]["inherits_from"]

    dataset = make_dataset(labels={"background": 0, "shell": 1, "core": 2}, edit=edit)
    for cls in (Adversarial, with_autoaug(nnUNetTrainer, "none")):
        trainer = dataset.trainer(cls)
        assert [o.shape[2] for o in steps(trainer, 2)[0][1]] == [16]
        assert not trainer.task.precision.skipped


def test_without_deep_supervision(tiny: Any) -> None:
    trainer = tiny.trainer(with_autoaug(nnUNetTrainerNoDeepSupervision), margin=2)
    seen = steps(trainer)
    assert isinstance(seen[0][1], torch.Tensor)


def validate(trainer: Any, forked_pools: Callable[..., Any]) -> None:
    """nnU-Net's final validation: predictions of whole cases, and what they are worth."""
    with forked_pools():
        trainer.perform_actual_validation()
    folder = Path(trainer.output_folder) / "validation"
    summary = json.loads((folder / "summary.json").read_text())
    assert len(list(folder.glob("*.nii.gz"))) == len(summary["metric_per_case"]) > 0
    assert len(summary["mean"]) == 2


@pytest.mark.parametrize("batch_dice", [False, True])
def test_regions_with_ignore_label(
    make_dataset: Callable[..., Any], forked_pools: Callable[..., Any], batch_dice: bool
) -> None:
    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["batch_dice"] = batch_dice

    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    dataset = make_dataset(labels=labels, ignore=3, regions_class_order=[1, 2], edit=edit)
    # cut out of enlarged patches, targets of all resolutions are made anew
    trainer = dataset.trainer(Adversarial, margin=2 if batch_dice else 0)
    for batch, output in steps(trainer):
        assert output[0].shape[1] == batch.label.shape[1] == 2
        assert batch.label.shape[2:] == output[0].shape[2:]
        assert trainer.task.regions
        inside = batch.label[:, 1] <= batch.label[:, 0] + 1e-5  # the core lies within the whole, warped or not
        assert inside.all()
        assert 0 < batch.valid.mean() < 1
    if batch_dice:
        validate(trainer, forked_pools)


def test_regions(make_dataset: Callable[..., Any]) -> None:
    dataset = make_dataset(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    for batch, _ in steps(dataset.trainer(Adversarial)):
        assert batch.valid is None
        assert batch.label.shape[1] == 2


def test_ignore_label(make_dataset: Callable[..., Any]) -> None:
    """Unknown voxels are background in the label, 0 in the validity, and without influence on the loss."""
    dataset = make_dataset(labels=LABELS | {"ignore": 3}, ignore=3)
    trainer = dataset.trainer(Adversarial)
    for batch, output in steps(trainer):
        assert batch.label.shape[1] == 3
        assert batch.classes.max() < 3
        assert 0 < batch.valid.mean() < 1
        unknown = (batch.valid == 0).expand_as(batch.label)
        changed = torch.where(unknown, torch.rand_like(batch.label), batch.label)
        with torch.no_grad():
            torch.testing.assert_close(
                trainer.task.losses(output[:1], changed, batch.valid),
                trainer.task.losses(output[:1], batch.label, batch.valid),
            )


@pytest.fixture(scope="module")
def masked(make_dataset: Callable[..., Any]) -> Any:
    """Two channels; the first is normalised, and must stay 0, by its non-zero mask."""

    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True, False]

    return make_dataset(labels=LABELS, channels=2, zeros=True, edit=edit)


def test_nonzero_mask(masked: Any) -> None:
    """Where a channel must stay 0 it is 0 after the learned intensity changes, the other channel is not."""
    trainer = masked.trainer(Adversarial, base_augmentation="none", method_options={"mode": "appearance", "warm_up": 0})
    for batch, _ in steps(trainer):
        outside = batch.mask[:, 0] == 0
        assert 0.01 < outside.float().mean() < 0.9
        assert (batch.image[:, 0][outside] == 0).all()
        assert (batch.image[:, 1][outside] != 0).float().mean() > 0.5
        assert (batch.mask[:, 1] == 1).all()


@pytest.mark.parametrize("base", [nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerNoDA])
@pytest.mark.parametrize("margin", [0, 2])
def test_the_nonzero_mask_moves_with_the_image(masked: Any, base: type, margin: int) -> None:
    """Over each of nnU-Net's own augmentations, which know the mask before they drop it."""
    trainer = masked.trainer(with_autoaug(base), margin=margin, method_options={"mode": "affine", "warm_up": 0})
    masks = []
    for batch, _ in steps(trainer):
        assert (batch.image[:, 0][batch.mask[:, 0] < 0.5] == 0).all()
        masks.append(batch.mask[:, 0])
    assert (torch.cat(masks) < 0.5).any()
    assert all(((0 < m) & (m < 1)).any() for m in masks)  # it was interpolated: it moved


def test_anisotropic_dummy_2d(make_dataset: Callable[..., Any]) -> None:
    dataset = make_dataset(labels=LABELS, shape=(8, 32, 32), spacing=(5.0, 1.0, 1.0))
    trainer = dataset.trainer(Adversarial, margin=[1, 2, 2])
    seen = steps(trainer)
    transforms = trainer._streams or None
    assert transforms is None  # closed by steps
    trainer.get_dataloaders()
    kinds = [type(t) for t in trainer._streams["train"].source.loader.loader.transforms.transforms.transforms]
    assert Convert3DTo2DTransform in kinds
    patch = tuple(dataset.plans["configurations"]["3d_fullres"]["patch_size"])
    assert max(patch) / patch[0] > 3
    for batch, _ in seen:
        assert batch.image.shape[2:] == patch
        assert batch.spacing[0].tolist() == dataset.plans["configurations"]["3d_fullres"]["spacing"]


def test_2d(make_dataset: Callable[..., Any], forked_pools: Callable[..., Any]) -> None:
    dataset = make_dataset("2d", labels=LABELS, channels=2, spacing=(3.0, 1.0, 1.5))
    trainer = dataset.trainer(Adversarial, "2d", margin=2, batch_size=4)
    for batch, output in steps(trainer):
        assert batch.image.ndim == output[0].ndim == 4
        assert batch.image.shape[1] == 2
        assert batch.spacing.shape == (4, 2)
    assert trainer.task.spatial_dims == 2
    validate(trainer, forked_pools)


def test_residual_encoder_plans(make_dataset: Callable[..., Any], forked_pools: Callable[..., Any]) -> None:
    """Through the command, with -p."""
    dataset = make_dataset(labels=LABELS, planner="nnUNetPlannerResEncL")
    trainer = dataset.trainer(Adversarial, width=0.5)
    steps(trainer)
    assert type(trainer.task.network).__name__ == "ResidualEncoderUNet"
    with forked_pools():
        launcher.train([str(dataset.number), "3d_fullres", "0", "-p", "nnUNetResEncUNetLPlans", "-device", "cpu"])
    folder = dataset.results / dataset.name / "nnUNetTrainerAutoAugAdversarial__nnUNetResEncUNetLPlans__3d_fullres"
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()


@pytest.mark.parametrize(
    "base",
    [
        nnUNetTrainerDA5, nnUNetTrainerNoDA, nnUNetTrainerBN, nnUNetTrainerCELoss, nnUNetTrainerDiceLoss,
        nnUNetTrainerTopk10Loss, nnUNetTrainerDiceTopK10Loss, nnUNetTrainerDA5ord0, nnUNetTrainer_DASegOrd0_NoMirroring,
        nnUNetTrainerVanillaAdam3en4, nnUNetTrainer_probabilisticOversampling,
    ],
)  # fmt: skip
def test_nnunets_other_trainers(tiny: Any, base: type) -> None:
    trainer = tiny.trainer(with_autoaug(base))
    seen = steps(trainer)
    if base is nnUNetTrainerNoDA:
        assert trainer.inference_allowed_mirroring_axes is None
    if base is nnUNetTrainerBN:
        assert any(isinstance(m, torch.nn.BatchNorm3d) for m in trainer.network.modules())
    assert len(seen) == 4


@pytest.fixture(scope="module")
def cascade(make_dataset: Callable[..., Any]) -> Any:
    def edit(plans: dict[str, Any]) -> None:
        configurations = plans["configurations"]
        full = configurations["3d_fullres"]
        low = deepcopy(full) | {"data_identifier": "nnUNetPlans_3d_lowres", "spacing": [1.5, 1.5, 1.5]}
        configurations["3d_lowres"] = low | {"next_stage": "3d_cascade_fullres"}
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    return make_dataset("3d_fullres", "3d_lowres", labels=LABELS, cases=5, edit=edit)


@pytest.fixture(scope="module")
def trained_low(cascade: Any, forked_pools: Callable[..., Any]) -> Any:
    """Trained on all cases and validated on all, so that each has a previous segmentation."""
    with pytest.MonkeyPatch.context() as patch, forked_pools():
        patch.setenv("nnUNet_n_proc_DA", "0")
        trainer = cascade.trainer(Adversarial, "3d_lowres", fold="all", epochs=1, iterations_per_epoch=6)
        trainer.run_training()
        trainer.perform_actual_validation()
    return trainer


def test_low_resolution(cascade: Any, trained_low: Any) -> None:
    folder = Path(trained_low.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(folder.glob("*.b2nd"))) == 5
    assert (Path(trained_low.output_folder) / "validation" / "summary.json").is_file()
    assert tuple(trained_low.layout.spacing) == (1.5, 1.5, 1.5)


def test_cascade(cascade: Any, trained_low: Any, forked_pools: Callable[..., Any]) -> None:
    """The previous segmentation moves with the image, stays out of intensity changes, and reaches the network."""
    trainer = cascade.trainer(Adversarial, "3d_cascade_fullres", margin=[0, 1, 2])
    assert trainer.is_cascaded
    for batch, _ in steps(trainer):
        assert batch.image.shape[1] == 1
        assert batch.extra.shape[1] == 2
        assert batch.extra.min() >= 0
        assert batch.extra.max() <= 1 + 1e-5
    validate(trainer, forked_pools)
    untouched = {"base_augmentation": "none", "method_options": {"mode": "appearance", "warm_up": 0}}
    for batch, _ in steps(cascade.trainer(Adversarial, "3d_cascade_fullres", **untouched)):
        assert ((batch.extra == 0) | (batch.extra == 1)).all()
    plain = nnUNetTrainer(
        deepcopy(cascade.plans) | {"continue_training": False},
        "3d_cascade_fullres",
        0,
        cascade.json,
        torch.device("cpu"),
    )
    plain.initialize()
    assert list(plain.network.state_dict()) == list(trainer.network.state_dict())
