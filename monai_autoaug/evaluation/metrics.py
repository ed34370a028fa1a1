# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Metrics of one structure in one case; adding one is a function and a row in ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray

from monai_autoaug.errors import ConfigError

__all__ = [
    "METRICS", "Mask", "Metric", "decided", "dice", "hausdorff95", "precision", "sensitivity", "surface_dice",
]  # fmt: skip

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


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


def sensitivity(prediction: Mask, reference: Mask, spacing: tuple[float, ...] = ()) -> float:
    """Share of the structure that was found, ``|P and R| / |R|``, in [0, 1]; NaN where the structure is not there.

    Args:
        prediction: boolean.
        reference: boolean, of the same shape.
        spacing: not needed.

    >>> sensitivity(np.array([True, True, False]), np.array([True, False, False]))
    1.0
    """
    size = int(reference.sum())
    return int((prediction & reference).sum()) / size if size else float("nan")


def precision(prediction: Mask, reference: Mask, spacing: tuple[float, ...] = ()) -> float:
    """Share of what was predicted that is right, ``|P and R| / |P|``, in [0, 1]; NaN where nothing was predicted.

    Args:
        prediction: boolean.
        reference: boolean, of the same shape.
        spacing: not needed.

    >>> precision(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    size = int(prediction.sum())
    return int((prediction & reference).sum()) / size if size else float("nan")


def surface_dice(prediction: Mask, reference: Mask, spacing: tuple[float, ...], tolerance: float = 1.0) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other, in [0, 1] (normalised surface Dice).

    NaN where the structure is in neither, 0 where it is in one of the two. Surfaces are voxels of the edge.

    Args:
        prediction: boolean.
        reference: boolean, of the same shape.
        spacing: voxel size in mm along the same axes.
        tolerance: in mm, 0 or more.

    Source: Nikolov et al. 2021, "Clinically applicable segmentation of head and neck anatomy".

    >>> a, b = np.zeros((2, 9, 9, 9), bool); a[3, 3, 3] = b[3, 3, 5] = True
    >>> surface_dice(a, b, (1.0, 1.0, 1.0)), surface_dice(a, b, (1.0, 1.0, 0.5))
    (0.0, 1.0)
    """
    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() or reference.any() else float("nan")
    p, r = torch.from_numpy(prediction[None, None]), torch.from_numpy(reference[None, None])
    return float(compute_surface_dice(p, r, [tolerance], include_background=True, spacing=spacing))


METRICS = {
    "dice": Metric(dice),
    "sensitivity": Metric(sensitivity),
    "precision": Metric(precision),
    "hd95": Metric(hausdorff95, "mm", higher_is_better=False),
    "surface_dice": Metric(surface_dice),
}


def decide_pairs(one: Values, other: Values) -> tuple[Values, Values]:
    """Dice values of two trainings on the same cases, without pairs that are lost to what one of them predicted.

    A Dice value is not defined (NaN) where a structure is neither in the label nor predicted. Where only one training
    predicts it there, the other, which rightly doesn't, has 1; where neither does, both stay without a value.

    Args:
        one: any shape.
        other: of the same shape.

    >>> decide_pairs(np.array([np.nan, 0.0, np.nan]), np.array([0.0, 0.9, np.nan]))
    (array([ 1.,  0., nan]), array([0. , 0.9, nan]))
    """
    first, second = np.isnan(one), np.isnan(other)
    return np.where(first & ~second, 1.0, one), np.where(second & ~first, 1.0, other)


def decided(tolerance: float = 1.0) -> dict[str, Metric]:
    """The metrics in a form that leaves no case out because of what was predicted, so that methods can be compared.

    Left out by the plain form, a structure that one method misses altogether would cost it nothing in its distances.
    Here it is the label alone that says whether a value is defined:

    - the structure is in neither: as good as can be (1, or 0 mm), as MONAI's ``ignore_empty=False`` has it;
    - it is in one of the two: as bad as can be, 0, or for the distance the diagonal of the volume in mm;
    - sensitivity of a structure that is not there has no value (NaN), whatever is predicted.

    Args:
        tolerance: of the surface Dice, in mm.

    Raises:
        ConfigError: the tolerance is below 0 or no number.

    >>> neither, one = np.zeros((2, 3, 4, 12), bool); one[1, 1, 1] = True
    >>> {name: m.function(one, neither, (1.0, 1.0, 1.0)) for name, m in decided().items()}
    {'dice': 0.0, 'sensitivity': nan, 'precision': 0.0, 'hd95': 13.0, 'surface_dice': 0.0}
    """
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"the tolerance of the surface Dice must be 0 mm or more, got {tolerance}")
    functions = {name: metric.function for name, metric in METRICS.items()}
    functions["surface_dice"] = partial(surface_dice, tolerance=tolerance)
    return {
        name: Metric(partial(_decided, functions[name], name), metric.unit, metric.higher_is_better)
        for name, metric in METRICS.items()
    }


def _decided(
    function: Callable[[Mask, Mask, tuple[float, ...]], float],
    name: str,
    prediction: Mask,
    reference: Mask,
    spacing: tuple[float, ...],
) -> float:
    """A metric's value, by `decided` where prediction or reference is empty."""
    predicted, there = bool(prediction.any()), bool(reference.any())
    if (predicted and there) or (name == "sensitivity" and not there):
        return function(prediction, reference, spacing)
    if name == "hd95":
        return float(np.linalg.norm(np.multiply(prediction.shape, spacing))) if predicted or there else 0.0
    return 0.0 if predicted or there else 1.0
