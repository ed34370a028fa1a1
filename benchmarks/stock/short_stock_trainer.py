# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's own trainer as it is, but for its length and the seed of its initial weights.

It knows nothing of monai_autoaug. ``nnUNet_extTrainer`` names this folder, which therefore holds this file alone.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerShort(nnUNetTrainer):  # noqa: N801  # nnU-Net's way to name trainers
    """nnUNetTrainer whose length the environment variable ``BENCHMARK_COURSE`` says."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._course: dict[str, int] = json.loads(os.environ["BENCHMARK_COURSE"])
        self.num_epochs = self._course["epochs"]
        self.num_iterations_per_epoch = self._course["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = self._course["val_iterations_per_epoch"]

    def initialize(self) -> None:
        """The network that other arms with this seed start from; batches are drawn as nnU-Net draws them."""
        torch.manual_seed(self._course["seed"])
        super().initialize()
