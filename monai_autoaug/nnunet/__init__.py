# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net as a host: trainers with learned augmentation that plain nnU-Net finds.

nnU-Net itself is imported when one of the names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "Diagnosis",
    "Options",
    "doctor",
    "export_plain",
    "ext_path",
    "nnUNetTrainerAutoAug",
    "nnUNetTrainerAutoAugAdversarial",
    "nnUNetTrainerAutoAugBilevel",
    "nnUNetTrainerAutoAugGeneral",
    "nnUNetTrainerAutoAugNone",
    "nnUNetTrainerAutoAugRandom",
    "nnUNetTrainerAutoAugTaskDriven",
    "predict",
    "soft_losses",
    "train",
    "with_autoaug",
]

_HOMES = {
    "Diagnosis": "diagnosis",
    "Options": "options",
    "doctor": "diagnosis",
    "export_plain": "export",
    "ext_path": "launcher",
    "nnUNetTrainerAutoAug": "trainers",
    "nnUNetTrainerAutoAugAdversarial": "trainers",
    "nnUNetTrainerAutoAugBilevel": "trainers",
    "nnUNetTrainerAutoAugGeneral": "trainers",
    "nnUNetTrainerAutoAugNone": "trainers",
    "nnUNetTrainerAutoAugRandom": "trainers",
    "nnUNetTrainerAutoAugTaskDriven": "trainers",
    "predict": "launcher",
    "soft_losses": "losses",
    "train": "launcher",
    "with_autoaug": "trainers",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for, because nnU-Net is slow to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
