# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies: which operations to apply, as probabilities that are learned."""

from monai_autoaug.policies.gumbel import conditional_gumbel, gumbel, straight_through
from monai_autoaug.policies.normalisation import Pool, Sampled, centre_by_class, per_operation

__all__ = [
    "Pool",
    "Sampled",
    "centre_by_class",
    "conditional_gumbel",
    "gumbel",
    "per_operation",
    "straight_through",
]
