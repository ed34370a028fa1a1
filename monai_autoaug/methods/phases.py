# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The parts that a training falls into: each has a share of the epochs, and may begin with a fresh segmenter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from monai_autoaug.errors import ConfigError

__all__ = ["Phase", "phase_at", "schedule_epochs", "spans"]


@dataclass(frozen=True)
class Phase:
    """One part of a training.

    Args:
        name: for the log, and by which a method knows it.
        share: of the epochs, above 0; shares need not add up to 1, their proportions count.
        fresh: whether it begins with a new segmentation network, optimiser and learning-rate schedule (`Task.fresh`);
            the first phase of a training has new ones anyway.
        rests: whether the segmentation network isn't trained in it; in the MONAI host its learning-rate schedule stands
            still.

    Raises:
        ConfigError: the share is not above 0.

    >>> Phase("generators", 1.0).fresh
    False
    """

    name: str
    share: float = 1.0
    fresh: bool = False
    rests: bool = False

    def __post_init__(self) -> None:
        if not self.share > 0 or not math.isfinite(self.share):
            raise ConfigError(f"phase {self.name!r} must have a share of the epochs above 0, got {self.share}")


def spans(phases: Sequence[Phase], epochs: int) -> tuple[range, ...]:
    """The epochs of each phase, counted from 0: its share of them, rounded, and at least one.

    Args:
        phases: of a method, in their order.
        epochs: of the whole training.

    Raises:
        ConfigError: there are more phases than epochs.

    >>> spans((Phase("generators", 1), Phase("network", 2)), 10)
    (range(0, 3), range(3, 10))
    """
    if epochs < len(phases):
        names = ", ".join(p.name for p in phases)
        raise ConfigError(
            f"this method trains in {len(phases)} phases ({names}), which take an epoch each at least; got"
            f" {epochs} epoch{'s' * (epochs != 1)}"
        )
    total, done, bounds = sum(p.share for p in phases), 0.0, [0]
    for number, phase in enumerate(phases, start=1):
        done += phase.share
        wanted = math.floor(epochs * done / total + 0.5)
        bounds.append(min(max(wanted, bounds[-1] + 1), epochs - (len(phases) - number)))
    bounds[-1] = epochs
    return tuple(range(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False))


def phase_at(phases: Sequence[Phase], epochs: int, epoch: int) -> int:
    """The number of the phase of an epoch, both counted from 0; beyond the last epoch the last one.

    >>> [phase_at((Phase("a"), Phase("b")), 4, epoch) for epoch in range(5)]
    [0, 0, 1, 1, 1]
    """
    return sum(epoch >= span.start for span in spans(phases, epochs)) - 1


def schedule_epochs(phases: Sequence[Phase], epochs: int, number: int) -> range:
    """The epochs that a phase's learning-rate schedule goes over: from one fresh segmenter to the next.

    Args:
        phases: of a method.
        epochs: of the whole training.
        number: of the phase.

    >>> schedule_epochs((Phase("a"), Phase("b"), Phase("c", fresh=True)), 6, 1)
    range(0, 4)
    """
    bounds = spans(phases, epochs)
    first = max(k for k in range(number + 1) if k == 0 or phases[k].fresh)
    later = [bounds[k].start for k in range(number + 1, len(phases)) if phases[k].fresh]
    return range(bounds[first].start, later[0] if later else epochs)
