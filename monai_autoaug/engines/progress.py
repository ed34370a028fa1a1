# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a long piece of work says where it is: a command line draws a bar, a program does what it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Listener", "Progress", "unheard"]


@dataclass(frozen=True)
class Progress:
    """Where a piece of work is.

    Args:
        stage: what is being done, such as "training".
        done: units done.
        total: units in all.
        epoch: the current epoch, counted from 1; 0 outside training.
        epochs: epochs in all.
        loss: of the last iteration.
        dice: mean foreground Dice of the last validation.
        note: a sentence that a person should read, once.

    >>> Progress("predicting", 3, 10).done
    3
    """

    stage: str
    done: int
    total: int
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    dice: float | None = None
    note: str | None = None


Listener = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """A listener that doesn't care."""
