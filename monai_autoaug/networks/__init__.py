# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Small networks and layers that MONAI lacks."""

from __future__ import annotations

from monai_autoaug.networks.auxiliary_norm import (
    AuxiliaryNorm,
    add_auxiliary_norms,
    auxiliary_state,
    load_auxiliary_state,
    norm_groups,
)
from monai_autoaug.networks.deepmedic import DeepMedic
from monai_autoaug.networks.functional import frozen, held, with_parameters
from monai_autoaug.networks.gradient_reversal import reverse_gradient
from monai_autoaug.networks.renewal import built, check_alike, renew
from monai_autoaug.networks.spatial_transformer import add_spatial_transformer, expect_spatial_transformer
from monai_autoaug.networks.statistics import KeptStatistics

__all__ = [
    "AuxiliaryNorm",
    "DeepMedic",
    "KeptStatistics",
    "add_auxiliary_norms",
    "add_spatial_transformer",
    "auxiliary_state",
    "built",
    "check_alike",
    "expect_spatial_transformer",
    "frozen",
    "held",
    "load_auxiliary_state",
    "norm_groups",
    "renew",
    "reverse_gradient",
    "with_parameters",
]
