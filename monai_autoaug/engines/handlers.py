# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Handlers for what a MONAI run with learned augmentation has more than a plain one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import is_scalar

from monai_autoaug import augmenters
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import rank

__all__ = ["AugmenterSaver", "figures"]


def figures() -> Callable[[Any], dict[str, float]]:
    """For ``output_transform`` of StatsHandler and TensorBoardStatsHandler: every scalar of a step, by name.

    >>> figures()([{"loss": 0.5, "loss_affine": 0.7, "pred": object()}])
    {'loss': 0.5, 'loss_affine': 0.7}
    """

    def pick(output: Any) -> dict[str, float]:
        first = output[0] if isinstance(output, list) else output
        return {str(name): float(value) for name, value in first.items() if is_scalar(value)}

    return pick


class AugmenterSaver:
    """Writes what the augmentation has learned, in a file that `monai_autoaug.augmenters.load` reads.

    Args:
        path: the file, usually ``augmenters.pt``; nothing is written by a method without augmenters.
        interval: epochs between writes; it is always written when training ends. 0: only then.

    Raises:
        ConfigError: it is attached to an engine that has no method.

    >>> AugmenterSaver("augmenters.pt", interval=10).interval
    10
    """

    def __init__(self, path: str | os.PathLike[str], interval: int = 0) -> None:
        if interval < 0:
            raise ConfigError(f"interval must be a number of epochs, or 0, got {interval}")
        self.path, self.interval = Path(path), interval

    def attach(self, engine: Engine) -> None:
        """Save at the end of training and every ``interval`` epochs of ``engine``, an `AutoAugTrainer`."""
        if not hasattr(engine, "method"):
            raise ConfigError(f"AugmenterSaver belongs to an AutoAugTrainer, not to a {type(engine).__name__}")
        if self.interval:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Save now."""
        learned = engine.method.augmenters()
        if learned and rank() == 0:
            augmenters.save(self.path, learned)
