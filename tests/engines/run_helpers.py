# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of whole runs share: small options, and what a run has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.progress import Progress

SMALL: dict[str, Any] = {
    "epochs": 3, "iterations": 3, "validation_interval": 2, "validation_cases": 2, "device": "cpu",
    "network_options": {"channels": [4, 8, 8]},
}  # fmt: skip


def options(data: Path, output: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(data, output, **(SMALL | changes))


def rows(run: Run) -> list[dict[str, Any]]:
    clocks = {"seconds", "cpu_seconds"}
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(run.load_model().state_dict())


def stop_at(done: int, stage: str = "training") -> Any:
    """A listener that stops a run at a point of a stage."""

    def listen(progress: Progress) -> None:
        if progress.stage == stage and progress.done == done:
            raise KeyboardInterrupt

    return listen
