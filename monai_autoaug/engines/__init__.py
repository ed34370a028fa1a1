# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The MONAI host: a trainer that takes any method, and whole runs from NIfTI to NIfTI (`train`, `resume`)."""

from __future__ import annotations

from monai_autoaug.engines.board import SampleSaver
from monai_autoaug.engines.checkpoints import AtomicCheckpointSaver, AutoAugState, TrainingCheckpoint
from monai_autoaug.engines.handlers import AugmenterSaver, PolicyLogger, PolicySaver, figures
from monai_autoaug.engines.losses import per_sample
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.phases import LastPhaseOnly, PhaseEvents, PhaseSchedule
from monai_autoaug.engines.prediction import predict
from monai_autoaug.engines.run import resume, train
from monai_autoaug.engines.task import EngineTask
from monai_autoaug.engines.test_time import TestTimePolicyInferer
from monai_autoaug.engines.trainer import AutoAugTrainer

__all__ = [
    "AtomicCheckpointSaver",
    "AugmenterSaver",
    "AutoAugState",
    "AutoAugTrainer",
    "EngineTask",
    "LastPhaseOnly",
    "PhaseEvents",
    "PhaseSchedule",
    "PolicyLogger",
    "PolicySaver",
    "SampleSaver",
    "TestTimePolicyInferer",
    "TrainOptions",
    "TrainingCheckpoint",
    "figures",
    "per_sample",
    "predict",
    "resume",
    "train",
]
