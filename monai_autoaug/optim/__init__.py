# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Derivatives through a training step."""

from monai_autoaug.optim.hypergradient import per_sample_hypergradient
from monai_autoaug.optim.lazy_adam import LazyAdam
from monai_autoaug.optim.look_ahead import look_ahead, next_parameters
from monai_autoaug.optim.mixed import mixed_gradient
from monai_autoaug.optim.unrolled import Update, unrolled_hypergradient

__all__ = [
    "LazyAdam",
    "Update",
    "look_ahead",
    "mixed_gradient",
    "next_parameters",
    "per_sample_hypergradient",
    "unrolled_hypergradient",
]
