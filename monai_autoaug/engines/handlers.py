# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Handlers for what a MONAI run with learned augmentation has more than a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.utils import is_scalar

__all__ = ["figures"]


def figures() -> Callable[[Any], dict[str, float]]:
    """For ``output_transform`` of StatsHandler and TensorBoardStatsHandler: every scalar of a step, by name.

    >>> figures()([{"loss": 0.5, "loss_affine": 0.7, "pred": object()}])
    {'loss': 0.5, 'loss_affine': 0.7}
    """

    def pick(output: Any) -> dict[str, float]:
        first = output[0] if isinstance(output, list) else output
        return {str(name): float(value) for name, value in first.items() if is_scalar(value)}

    return pick
