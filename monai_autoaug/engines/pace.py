# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How fast a training goes here: a few steps of each of its phases, and a window of its predictions, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Events
from torch import nn

from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.segmentation import infer
from monai_autoaug.engines.trainer import AutoAugTrainer
from monai_autoaug.precision import Precision

__all__ = ["STEPS", "Pace", "measure_pace", "measure_window", "windows"]

STEPS = 4  # of each phase; the first two are not counted: much is made ready in them


@dataclass(frozen=True)
class Pace:
    """Seconds of a training's parts.

    Args:
        steps: of each phase an ordinary step and one in which all is updated that is, without the cutting of patches.
        fetching: cutting the patches of a step, in one process.
        ending: the end of an epoch of each phase, without validation.
        learning: share of the steps in which all is updated that is.
        finishing: what the method does after the last step.

    >>> pace = Pace({"train": (1.0, 3.0)}, 0.5, {"train": 2.0}, 0.25, 0.0)
    >>> pace.epoch("train", TrainOptions("data", "run", iterations=10))
    22.0
    """

    steps: Mapping[str, tuple[float, float]]
    fetching: float
    ending: Mapping[str, float]
    learning: float
    finishing: float

    def epoch(self, phase: str, options: TrainOptions) -> float:
        """Seconds of an epoch of a phase, without validation.

        Args:
            phase: its name.
            options: of the run: worker processes cut patches side by side with the steps.
        """
        ordinary, full = self.steps[phase]
        step = ordinary + (full - ordinary) * self.learning
        each = max(step, self.fetching / options.workers) if options.workers else step + self.fetching
        return options.iterations * each + self.ending[phase]


class _Watch:
    """Times of a trainer's steps.

    Args:
        trainer: that has yet to run.
        rare: whether its method updates all that it does in some of its steps only.
    """

    def __init__(self, trainer: AutoAugTrainer, *, rare: bool) -> None:
        self.trainer, self.rare = trainer, rare
        self.steps: dict[str, list[float]] = {}
        self.fetching: list[float] = []
        self.ending: dict[str, float] = {}
        self._last = time.perf_counter()
        for event, handler in (
            (Events.GET_BATCH_STARTED, self._read), (Events.ITERATION_STARTED, self._begin),
            (Events.ITERATION_COMPLETED, self._end), (Events.EPOCH_COMPLETED, self._end_epoch),
        ):  # fmt: skip
            trainer.add_event_handler(event, handler)

    def _read(self) -> float:
        """Seconds since the last look."""
        if self.trainer.task.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.task.device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before

    def _begin(self) -> None:
        """A step begins: let the method be where it is well under way."""
        self.fetching.append(self._read())
        method, place = self.trainer.method, (self.trainer.state.iteration - 1) % STEPS
        if self.rare:  # one step without and one with an update of what learns now and then
            method.steps = method.settled - 1 + place % 2
        elif place == 0:
            method.steps = method.phase_began + method.settled

    def _end(self) -> None:
        self.steps.setdefault(self.trainer.method.phase.name, []).append(self._read())

    def _end_epoch(self) -> None:
        self.ending[self.trainer.method.phase.name] = self._read()


def measure_pace(trainer: AutoAugTrainer, options: TrainOptions) -> Pace:
    """Run a few steps of each phase; the trainer is spent afterwards.

    Args:
        trainer: of the run, on a few of its cases.
        options: of the run.
    """
    method, total = trainer.method, options.epochs * options.iterations
    learning = method.learning_steps(total)
    watch = _Watch(trainer, rare=learning < total)
    after, method.finishing = method.finishing, min(method.finishing, 1)
    state: Any = trainer.state
    state.max_epochs, state.epoch_length = len(method.phases), STEPS
    trainer.run()
    finishing = watch._read() * after if after else 0.0
    steps = {}
    for name, times in watch.steps.items():
        ordinary, full = times[STEPS // 2 :: 2], times[STEPS // 2 + 1 :: 2]
        if not watch.rare:
            ordinary = full = times[STEPS // 2 :]
        steps[name] = (sum(ordinary) / len(ordinary), sum(full) / len(full))
    counted = [seconds for place, seconds in enumerate(watch.fetching) if place % STEPS >= STEPS // 2]
    return Pace(steps, sum(counted) / len(counted), watch.ending, learning / total, finishing)


def measure_window(network: nn.Module, channels: int, patch_size: Sequence[int], precision: Precision) -> float:
    """Seconds of a window of a prediction.

    Args:
        network: on the device.
        channels: of the image.
        patch_size: of the window.
        precision: where and how the network runs.
    """
    image, spent = torch.zeros(channels, *patch_size), math.inf
    for _ in range(2):  # the first time much is made ready
        began = time.perf_counter()
        infer(network, image, patch_size, precision)
        spent = min(spent, time.perf_counter() - began)
    return spent


def windows(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> int:
    """How many windows a volume is predicted by.

    Args:
        shape: of the volume in voxels.
        patch_size: of a window.
        overlap: of neighbouring windows.

    >>> windows((40, 40, 40), (40, 40, 40), 0.5), windows((60, 40, 20), (40, 40, 40), 0.5)
    (1, 2)
    """
    count = 1
    for n, patch in zip(shape, patch_size, strict=True):
        interval = max(int(patch * (1 - overlap)), 1)
        count *= math.ceil(max(n - patch, 0) / interval) + 1
    return count
