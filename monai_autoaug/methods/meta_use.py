# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the cases that are set apart are for, if policies don't learn from them: fine-tuning, or a fair comparison.

Source: paper 002, Tables II to V: "Heuristic" with the training cases alone and with all of them, "Heuristic
Fine-Tuning".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Batches

__all__ = ["MetaUse", "learns", "sets_apart"]


def learns(options: Mapping[str, Any]) -> bool:
    """Whether any policy learns with these options of `JointPolicy`.

    >>> learns({}), learns({"learn_training": False, "learn_test_time": False})
    (True, False)
    """
    views = options.get("test_time", True) and options.get("learn_test_time", True)
    return bool(options.get("learn_training", True) or views)


def sets_apart(options: Mapping[str, Any]) -> bool:
    """Whether a host has to set meta-validation cases apart with these options of `JointPolicy`.

    >>> nothing = {"learn_training": False, "test_time": False}
    >>> sets_apart(nothing), sets_apart(nothing | {"fine_tune": 0.1}), sets_apart(nothing | {"hold_out": True})
    (False, True, True)
    """
    return learns(options) or options.get("fine_tune", 0.0) > 0 or bool(options.get("hold_out", False))


class MetaUse:
    """Which stream a training step's patches come from.

    Args:
        steps: that the host plans; None: it doesn't know.
        learns: whether policies learn from the cases that are set apart.
        fine_tune: last share of the steps, below 1, that trains on them; 0: none.
        hold_out: they are set apart and not used.

    Raises:
        ConfigError: the share is out of range or can't be counted, or the cases are to serve two purposes.

    >>> MetaUse(100, learns=False, fine_tune=0.2).start
    80
    """

    def __init__(self, steps: int | None, *, learns: bool, fine_tune: float = 0.0, hold_out: bool = False) -> None:
        if not 0 <= fine_tune < 1:
            raise ConfigError(f"fine_tune must be a share of the steps in [0, 1), got {fine_tune}")
        if learns and (fine_tune or hold_out):
            given = "fine_tune trains the network on" if fine_tune else "hold_out keeps unused"
            raise ConfigError(
                f"{given} the cases from which policies learn; set learn_training and test_time (or learn_test_time) to"
                " false, or leave it out"
            )
        if fine_tune and hold_out:
            raise ConfigError("fine_tune and hold_out are two uses of the same cases; give one of them")
        if fine_tune and steps is None:
            raise ConfigError("fine_tune is a share of the planned steps, whose number this host doesn't tell")
        self.start = None if steps is None or not fine_tune else steps - round(steps * fine_tune)

    def batch(self, batches: Batches, step: int) -> Batch:
        """What the network is trained on in a step; of the cases set apart as many patches as otherwise, if there are.

        Args:
            batches: the host's.
            step: counted from 0.
        """
        batch = batches.next("train")
        if self.start is None or step < self.start:
            return batch
        meta, count = batches.next("meta"), len(batch.image)
        if count >= len(meta.image):
            return meta
        # from all over the batch: hosts put those that are centred on foreground last
        return meta.rows(torch.linspace(0, len(meta.image) - 1, count).round().long())
