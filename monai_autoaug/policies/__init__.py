# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies: which operations to apply, as probabilities that are learned."""

from monai_autoaug.policies.gumbel import conditional_gumbel, gumbel, straight_through

__all__ = ["conditional_gumbel", "gumbel", "straight_through"]
