# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Metrics of one structure in one case; adding one is a function and a row in ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["METRICS", "Mask", "Metric", "dice"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """A figure of one structure in one case.

    Args:
        function: ``(prediction, reference, spacing) -> value``: two boolean arrays on the label's grid and its voxel
            size in mm along the same axes; NaN where the figure is not defined, which leaves the case out.
        unit: "" or such as "mm".
        higher_is_better: the direction.

    >>> METRICS["dice"].higher_is_better
    True
    """

    function: Callable[[Mask, Mask, tuple[float, ...]], float]
    unit: str = ""
    higher_is_better: bool = True


def dice(prediction: Mask, reference: Mask, spacing: tuple[float, ...] = ()) -> float:
    """Dice overlap ``2 |P and R| / (|P| + |R|)``, in [0, 1].

    A structure that is in neither is not defined (NaN) and left out of every mean; one that is in only one of the two
    counts as 0. This is nnU-Net's rule; MONAI's ``ignore_empty`` also leaves out what is predicted but not there.

    Args:
        prediction: boolean.
        reference: boolean, of the same shape.
        spacing: not needed.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    >>> dice(np.zeros(3, bool), np.zeros(3, bool))
    nan
    """
    size = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / size if size else float("nan")


METRICS = {"dice": Metric(dice)}
