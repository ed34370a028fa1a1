# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Batched, differentiable transforms on the device."""

from monai_autoaug.transforms.adapters import from_batchgenerators, from_monai
from monai_autoaug.transforms.catalogue import extra_cascades, operations_at_test_time, training_cascades
from monai_autoaug.transforms.execution import apply
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.registry import Cascade, Context, Operation
from monai_autoaug.transforms.views import ViewGrids, apply_view, canvas, coverage, revert_view

__all__ = [
    "Cascade",
    "Context",
    "Operation",
    "Reference",
    "ViewGrids",
    "apply",
    "apply_view",
    "canvas",
    "coverage",
    "extra_cascades",
    "from_batchgenerators",
    "from_monai",
    "operations_at_test_time",
    "revert_view",
    "training_cascades",
]
