# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned augmenters: networks that predict transformations."""

from __future__ import annotations

from monai_autoaug.augmenters.affine import AffineAugmenter
from monai_autoaug.augmenters.appearance import AppearanceAugmenter
from monai_autoaug.augmenters.base import Augmenter, TrunkAugmenter
from monai_autoaug.augmenters.deformation import DeformationAugmenter
from monai_autoaug.augmenters.dictionary import LearnedAugmentd
from monai_autoaug.augmenters.files import load, save
from monai_autoaug.augmenters.general import GeneralAugmenter
from monai_autoaug.augmenters.kinds import find, kinds
from monai_autoaug.augmenters.parametric import ParametricAugmenter
from monai_autoaug.augmenters.tone import Tone
from monai_autoaug.augmenters.transformation import Transformation

__all__ = [
    "AffineAugmenter",
    "AppearanceAugmenter",
    "Augmenter",
    "DeformationAugmenter",
    "GeneralAugmenter",
    "LearnedAugmentd",
    "ParametricAugmenter",
    "Tone",
    "Transformation",
    "TrunkAugmenter",
    "find",
    "kinds",
    "load",
    "save",
]
