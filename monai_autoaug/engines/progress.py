# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a long piece of work says where it is: a command line draws a bar, a program does what it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Ended", "Listener", "Progress", "unheard"]


@dataclass(frozen=True)
class Ended:
    """What is known of an epoch that has ended.

    Args:
        seconds: that it took, its validation included.
        memory: the most that this process, or a process of its own that has ended, has had so far, in MiB; None: this
            system doesn't tell.
        device_memory: the most that tensors have had on the GPU so far, in MiB; None on the CPU.
        loss: mean over its iterations.
        dice: of each structure, on the validation cases; empty where the epoch wasn't validated.
        entropy: of the policy of each class of patches and of the views: 1 for a uniform choice, 0 for certainty;
            empty where the method has no policy.

    >>> Ended(2.5, 812.0).dice
    {}
    """

    seconds: float
    memory: float | None
    device_memory: float | None = None
    loss: float | None = None
    dice: Mapping[str, float] = field(default_factory=dict)
    entropy: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, row: Mapping[str, Any], kinds: Iterable[str], seconds: float, memory: Mapping[str, float | None]
    ) -> Ended:
        """What an epoch's line in the log says of it.

        Args:
            row: the line, see `engines.log`.
            kinds: classes of the training policy, and "views"; of which the line has no entropy is left out.
            seconds: that the epoch took.
            memory: see `memory.peak_memory`.
        """
        return cls(
            seconds, memory["host_mib"], memory["device_mib"], row["loss"],
            {name.removeprefix("dice_"): row[name] for name in row if name.startswith("dice_")},
            {kind: row[f"entropy_{kind}"] for kind in kinds if f"entropy_{kind}" in row},
        )  # fmt: skip


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
        ended: of the epoch that has just ended; None at all other times.

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
    ended: Ended | None = None


Listener = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """A listener that doesn't care."""
