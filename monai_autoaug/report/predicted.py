# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The worst, the median and the best validation case of a training, for its report: label and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data import DataList, read_datalist
from monai_autoaug.errors import AutoAugError, DataError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods.montage import COLOURS
from monai_autoaug.report.pictures import canonical, chosen_cases, structures
from monai_autoaug.report.planes import planes_of
from monai_autoaug.report.predictions import PredictionRow, channels, near
from monai_autoaug.report.slices import grey_window, slices
from monai_autoaug.report.source import Source
from monai_autoaug.report.strips import Layer, Strip, strip

__all__ = ["PredictedCase", "predicted_cases"]


@dataclass(frozen=True)
class PredictedCase:
    """One case.

    Args:
        title: "worst", "median" or "best", and its name if names are told.
        dice: of each structure, None where it is not defined.
        strip: its slices with label (solid) and prediction (dashed).
    """

    title: str
    dice: dict[str, float | None]
    strip: Strip


def predicted_cases(
    source: Source, data: Path | None = None, *, names: bool = False
) -> tuple[list[PredictedCase], str]:
    """The cases that are shown, and where there are none the reason.

    Args:
        source: the training.
        data: the data set; None: where the training says it is.
        names: tell the cases' names.

    Raises:
        DataError: ``data`` is given and can't be read, or has not the cases.
    """
    if source.evaluation is None or not source.evaluation.cases:
        return [], "The validation cases have not been evaluated."
    folder = data or source.data
    if folder is None:
        return [], "Give the data set's folder by --data to see validation cases."
    try:
        datalist = read_datalist(folder)
        chosen = chosen_cases(source.evaluation)
        return [_case(source, datalist, name, title, names) for name, title in chosen.items()], ""
    except (AutoAugError, OSError) as error:
        if data is not None:
            raise
        told = f" ({error})" if names else ""
        return [], f"The data set is no longer where this training read it{told}; give its folder by --data."


def _case(source: Source, datalist: DataList, name: str, title: str, names: bool) -> PredictedCase:
    assert source.evaluation is not None  # noqa: S101  # callers have asked
    case = next((c for c in datalist.training if c.name == name), None)
    file = _prediction(source.folder, name)
    if case is None or file is None:
        what = "has no such case" if case is None else "its prediction is not there"
        told = name if names else None
        raise DataError(f"can't be shown: the data set {what}", file=told, remedy="give another --data")
    values = [*structures(datalist).values()]
    image, spacing = canonical(case.images[0])
    reference = None if case.label is None else canonical(case.label)[0].long()[0]
    row = near(PredictionRow("", image, reference, canonical(file)[0].long()[0], spacing), values)
    drawn = channels(row.prediction, values)
    wanted = None if row.reference is None else channels(row.reference, values)
    middle = slices(drawn if wanted is None or not wanted.any() else wanted)
    cut = [row.image[0].double().numpy().take(index, axis) for axis, index in enumerate(middle)]
    layers = [] if wanted is None else [_layer(wanted, middle, 2.0)]
    layers.append(_layer(drawn, middle, 1.4, dashed=True))
    words = title.split(":")[0].strip() if title != name else ""
    alt = f"axial, coronal and sagittal slices of the {words or 'only'} validation case; label solid, prediction dashed"
    window = grey_window(row.image[0].double().numpy())
    shown = strip(planes_of("RAS"), cut, row.spacing, window, layers=layers, alt=alt)
    title = f"{words} case" if words else "the only case"
    return PredictedCase(f"{title}: {name}" if names else title, _dice(source.evaluation, name), shown)


def _layer(label: NDArray[np.bool_], middle: tuple[int, ...], width: float, *, dashed: bool = False) -> Layer:
    """Contours of hard labels (K, D, H, W)."""
    fields = [[channel.take(index, axis).astype(float) for channel in label] for axis, index in enumerate(middle)]
    return Layer(fields, [[[0.5]] * len(label)] * 3, COLOURS, width, dashed=dashed, rim=not dashed)


def _prediction(folder: Path, name: str) -> Path | None:
    """The file of a case's prediction, whatever its ending."""
    return next((f for f in sorted((folder / "validation").glob(f"{name}.nii*")) if f.is_file()), None)


def _dice(evaluation: Evaluation, name: str) -> dict[str, float | None]:
    values = evaluation.values["dice"][evaluation.cases.index(name)]
    return {n: None if np.isnan(v) else float(v) for n, v in zip(evaluation.classes, values, strict=True)}
