# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Predictions against reference labels: figures a case and class, with intervals."""

from __future__ import annotations

from monai_autoaug.evaluation.components import Components
from monai_autoaug.evaluation.evaluator import evaluate
from monai_autoaug.evaluation.metrics import METRICS, Metric, dice, hausdorff95
from monai_autoaug.evaluation.result import LEAST_CASES, Evaluation, Interval

__all__ = [
    "LEAST_CASES",
    "METRICS",
    "Components",
    "Evaluation",
    "Interval",
    "Metric",
    "dice",
    "evaluate",
    "hausdorff95",
]
