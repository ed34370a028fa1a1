# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies: which operations to apply, as probabilities that are learned."""

from monai_autoaug.policies.augmentation import augment
from monai_autoaug.policies.classes import class_at_centre, patch_classes, policy_index
from monai_autoaug.policies.dictionary import LearnedPolicyd
from monai_autoaug.policies.evidence import Evidence, Seen
from monai_autoaug.policies.gumbel import conditional_gumbel, gumbel, straight_through
from monai_autoaug.policies.laterality import Laterality, lateral_pairs, left_right_axis
from monai_autoaug.policies.no_ops import no_ops, sensitivity
from monai_autoaug.policies.normalisation import Pool, Sampled, centre_by_class, per_operation
from monai_autoaug.policies.policy_file import Policies, load, save
from monai_autoaug.policies.presets import PRESETS
from monai_autoaug.policies.rand_augment import rand_augment
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy

__all__ = [
    "PRESETS",
    "Evidence",
    "Laterality",
    "LearnedPolicyd",
    "Policies",
    "Pool",
    "Sampled",
    "Seen",
    "TestTimePolicy",
    "TrainingPolicy",
    "augment",
    "centre_by_class",
    "class_at_centre",
    "conditional_gumbel",
    "gumbel",
    "lateral_pairs",
    "left_right_axis",
    "load",
    "no_ops",
    "patch_classes",
    "per_operation",
    "policy_index",
    "rand_augment",
    "save",
    "sensitivity",
    "straight_through",
]
