# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Derivatives through a training step."""

from monai_autoaug.optim.hypergradient import per_sample_hypergradient
from monai_autoaug.optim.lazy_adam import LazyAdam
from monai_autoaug.optim.look_ahead import look_ahead, next_parameters

__all__ = ["LazyAdam", "look_ahead", "next_parameters", "per_sample_hypergradient"]
