# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures of what was learned and of what it did."""

from __future__ import annotations

from monai_autoaug.report.augmentations import Panel, augmentation_figure
from monai_autoaug.report.content import collect
from monai_autoaug.report.curves import training_curves
from monai_autoaug.report.html import render, write_report
from monai_autoaug.report.names import readable, readable_cascade
from monai_autoaug.report.panels import augmentation_panels
from monai_autoaug.report.pictures import (
    augmentation_picture,
    picture_files,
    policy_picture,
    prediction_picture,
    run_pictures,
)
from monai_autoaug.report.policy import policy_figure
from monai_autoaug.report.policy_rows import PolicyRow, policy_rows
from monai_autoaug.report.predictions import PredictionRow, prediction_figure
from monai_autoaug.report.reading import read_source

__all__ = [
    "Panel",
    "PolicyRow",
    "PredictionRow",
    "augmentation_figure",
    "augmentation_panels",
    "augmentation_picture",
    "collect",
    "picture_files",
    "policy_figure",
    "policy_picture",
    "policy_rows",
    "prediction_figure",
    "prediction_picture",
    "read_source",
    "readable",
    "readable_cascade",
    "render",
    "run_pictures",
    "training_curves",
    "write_report",
]
