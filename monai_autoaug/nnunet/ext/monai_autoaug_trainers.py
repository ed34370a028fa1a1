# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The one file in this folder: what plain nnU-Net finds when ``nnUNet_extTrainer`` names it.

nnU-Net imports every module of such a folder under a top-level name, so the folder holds this file alone, its name
is used nowhere else, and the classes live in the package.
"""

from __future__ import annotations

from monai_autoaug.nnunet.trainers import (
    nnUNetTrainerAutoAug,
    nnUNetTrainerAutoAugAdversarial,
    nnUNetTrainerAutoAugBilevel,
    nnUNetTrainerAutoAugGeneral,
    nnUNetTrainerAutoAugNone,
    nnUNetTrainerAutoAugRandom,
    nnUNetTrainerAutoAugTaskDriven,
)

__all__ = [
    "nnUNetTrainerAutoAug",
    "nnUNetTrainerAutoAugAdversarial",
    "nnUNetTrainerAutoAugBilevel",
    "nnUNetTrainerAutoAugGeneral",
    "nnUNetTrainerAutoAugNone",
    "nnUNetTrainerAutoAugRandom",
    "nnUNetTrainerAutoAugTaskDriven",
]
