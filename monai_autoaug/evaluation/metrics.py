# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Metrics of one structure in one case; adding one is a function and a row in ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from numpy.typing import NDArray

__all__ = ["METRICS", "Mask", "Metric", "dice", "hausdorff95"]

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


def hausdorff95(prediction: Mask, reference: Mask, spacing: tuple[float, ...]) -> float:
    """The 95th percentile of the distances between the surfaces in mm, of the two directions the larger one.

    Where one of the two is empty there is no distance (NaN), and the case is left out; Dice tells of it, as 0.

    Args:
        prediction: boolean.
        reference: boolean, of the same shape.
        spacing: voxel size in mm along the same axes.

    >>> a, b = np.zeros((2, 9, 9, 9), bool); a[3, 3, 3] = b[3, 3, 5] = True
    >>> hausdorff95(a, b, (1.0, 1.0, 2.0))
    4.0
    """
    if not prediction.any() or not reference.any():
        return float("nan")
    p, r = torch.from_numpy(prediction[None, None]), torch.from_numpy(reference[None, None])
    return float(compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing))


METRICS = {"dice": Metric(dice), "hd95": Metric(hausdorff95, "mm", higher_is_better=False)}
