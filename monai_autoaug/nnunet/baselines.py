# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's own augmentation in other forms, to compare with: nothing is learned in these trainers."""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from monai_autoaug.nnunet.trainers import with_autoaug

__all__ = [
    "BASELINES",
    "nnUNetTrainerDA5AutoAugNone",
    "nnUNetTrainerNoGamma",
    "nnUNetTrainerNoGammaAutoAugNone",
    "nnUNetTrainerNoMirroringAutoAugNone",
]


class nnUNetTrainerNoGamma(nnUNetTrainer):
    """nnU-Net without gamma transformations, the "nnUNet Reduce" of paper 000."""

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's own but the two random gammas."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        transforms.transforms = [t for t in transforms.transforms if not _is_gamma(t)]
        return transforms


def _is_gamma(transform: Any) -> bool:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, GammaTransform)


nnUNetTrainerDA5AutoAugNone = with_autoaug(nnUNetTrainerDA5, "none")  # noqa: N816  # a class
nnUNetTrainerNoMirroringAutoAugNone = with_autoaug(nnUNetTrainerNoMirroring, "none")  # noqa: N816
nnUNetTrainerNoGammaAutoAugNone = with_autoaug(nnUNetTrainerNoGamma, "none")  # noqa: N816

BASELINES: dict[str, type[nnUNetTrainer]] = {
    c.__name__: c
    for c in (nnUNetTrainerDA5AutoAugNone, nnUNetTrainerNoMirroringAutoAugNone, nnUNetTrainerNoGammaAutoAugNone)
}
