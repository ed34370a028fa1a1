# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's augmentation in other forms: each is what its name says, and a trainer of this package."""

from __future__ import annotations

from typing import Any

import pytest
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from monai_autoaug.nnunet.baselines import BASELINES, nnUNetTrainerNoGamma
from monai_autoaug.nnunet.launcher import find_trainer
from monai_autoaug.nnunet.mixin import AutoAugMixin

SIZE = (24, 24, 24)


def kinds(cls: Any, axes: tuple[int, ...] | None = (0, 1, 2)) -> list[type]:
    made = cls.get_training_transforms(SIZE, (-0.5, 0.5), None, axes, False, foreground_labels=[1])
    return [type(getattr(t, "transform", t)) for t in made.transforms]


@pytest.mark.parametrize("name", BASELINES)
def test_they_are_found_and_learn_nothing(name: str) -> None:
    cls = find_trainer(name)
    assert cls is BASELINES[name]
    assert issubclass(cls, AutoAugMixin)
    assert cls.autoaug_defaults["method"] == "none"


def test_without_gamma_there_is_all_else() -> None:
    stock = kinds(nnUNetTrainer)
    assert stock.count(GammaTransform) == 2
    assert kinds(nnUNetTrainerNoGamma) == [kind for kind in stock if kind is not GammaTransform]


def test_da5_is_nnunets() -> None:
    assert BASELINES["nnUNetTrainerDA5AutoAugNone"].autoaug_base is nnUNetTrainerDA5  # type: ignore[attr-defined]
    assert kinds(BASELINES["nnUNetTrainerDA5AutoAugNone"]) == kinds(nnUNetTrainerDA5) != kinds(nnUNetTrainer)


def test_without_mirroring(tiny: Any, closing: list[Any]) -> None:
    trainer = tiny.trainer(BASELINES["nnUNetTrainerNoMirroringAutoAugNone"])
    closing.append(trainer)
    *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes is None
    assert trainer.inference_allowed_mirroring_axes is None
    assert MirrorTransform not in kinds(type(trainer), axes)
