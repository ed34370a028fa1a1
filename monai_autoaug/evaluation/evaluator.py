# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A folder of predictions against the labels they should equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_autoaug.data import DataList, read_datalist
from monai_autoaug.data.datalist import LabelValue
from monai_autoaug.data.folders import list_nifti
from monai_autoaug.data.nifti import nifti_stem, read_nifti
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation.components import Components
from monai_autoaug.evaluation.metrics import METRICS, Metric
from monai_autoaug.evaluation.result import Evaluation

__all__ = ["evaluate"]

Voxels = NDArray[np.int64]
_TOLERANCE = 0.05  # of a voxel, at the corner that is furthest off: header rounding is far below, a real shift above


def evaluate(
    predictions: str | Path,
    reference: str | Path | DataList,
    *,
    metrics: Sequence[str] | Mapping[str, Metric] = ("dice",),
    components: Components | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare every prediction with its label, in the label's own voxel grid.

    Args:
        predictions: a folder of NIfTI label maps named after the cases.
        reference: the data set (see `data.read_datalist`), or a folder of label files with the predictions' names;
            the structures are then the label values found in it.
        metrics: names in `METRICS`, or metrics by name, such as those of `metrics.decided`.
        components: which connected components of the predictions count; None: all.
        progress: called with the number of cases done and of all cases.

    Returns:
        Values of all cases that have a prediction; labels without one are named in ``without_prediction``.

    Raises:
        ConfigError: an unknown metric.
        DataError: there is no prediction, one without a label, one that lies on another grid than its label, or one
            with a label value that the data set does not declare.
    """
    known_metrics = metrics if isinstance(metrics, Mapping) else METRICS
    unknown = sorted(set(metrics) - set(known_metrics))
    if unknown or not metrics:
        raise ConfigError(f"unknown metrics {unknown}; choose from {', '.join(sorted(METRICS))}")
    found = _predictions(Path(predictions))
    labels, structures, ignore, unlabelled = _reference(reference)
    strange = sorted(set(found) - set(labels))
    if strange:
        remedy = "give the data set that the predictions were made of, or a folder of label files with their names"
        if unlabelled.intersection(strange):
            remedy = (
                "the data set has no label for these images, so nothing tells how good their predictions are; evaluate"
                " predictions of labelled images, or give a folder of label files with their names"
            )
        raise DataError(
            "has predictions without a label", file=predictions, expected=f"names such as {sorted(labels)[:3]}",
            came=strange[:5], remedy=remedy,
        )  # fmt: skip
    cases = sorted(found)
    values = {m: np.full((len(cases), len(structures)), np.nan) for m in metrics}
    known = {0, *(v for value in structures.values() for v in _members(value))}
    for i, case in enumerate(cases):
        prediction, label, spacing = _pair(found[case], labels[case], known)
        if components is not None:
            prediction = components(prediction, spacing, tuple(structures.values()))
        counts = label != ignore  # all of them where there is no ignore label
        for j, value in enumerate(structures.values()):
            members = _members(value)
            p, r = np.isin(prediction, members) & counts, np.isin(label, members) & counts
            for metric in metrics:
                values[metric][i, j] = known_metrics[metric].function(p, r, spacing)
        if progress is not None:
            progress(i + 1, len(cases))
    missing = tuple(sorted(set(labels) - set(found)))
    return Evaluation(tuple(cases), tuple(structures), values, missing, "" if components is None else str(components))


def _members(value: LabelValue) -> tuple[int, ...]:
    """The label values of a structure."""
    return value if isinstance(value, tuple) else (value,)


def _predictions(folder: Path) -> dict[str, Path]:
    """Case name -> prediction."""
    files = list_nifti(folder) if folder.is_dir() else []
    if not files:
        raise DataError(
            "holds no prediction", file=folder, expected="a folder of .nii or .nii.gz files",
            came="none" if folder.is_dir() else "no folder", remedy="make them with monai-autoaug predict",
        )  # fmt: skip
    return {nifti_stem(f): f for f in files}


def _reference(
    reference: str | Path | DataList,
) -> tuple[dict[str, Path], Mapping[str, LabelValue], int | None, set[str]]:
    """Case name -> label file; structure -> label values; the ignore label; the cases that have no label."""
    if not isinstance(reference, DataList):
        folder = Path(reference)
        files = list_nifti(folder) if folder.is_dir() else []
        if files:
            return {nifti_stem(f): f for f in files}, _structures(files), None, set()
        reference = read_datalist(folder)
    labels = {c.name: c.label for c in reference.training if c.label is not None}
    unlabelled = {c.name for c in (*reference.training, *reference.test)} - set(labels)
    return labels, reference.foreground, reference.ignore_label, unlabelled


def _structures(files: Iterable[Path]) -> dict[str, LabelValue]:
    """Names for the label values that the files hold."""
    found: set[int] = set()
    for file in files:
        found.update(int(v) for v in np.unique(_integers(read_nifti(file).image, file)))
    return {f"label_{v}": v for v in sorted(found - {0})}


def _integers(image: nib.Nifti1Image, file: Path) -> Voxels:
    """The voxels of a label map."""
    data: NDArray[Any] = np.asanyarray(image.dataobj)
    whole = np.rint(data)
    if not np.isfinite(data).all() or np.abs(data - whole).max(initial=0) > 1e-3:
        raise DataError("is no label map", file=file.name, expected="whole numbers", came="fractions, NaN or Inf")
    return whole.astype(np.int64)


def _volume(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without superfluous axes of size 1 at its end, which the audit notes and preprocessing drops."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _pair(prediction: Path, label: Path, known: set[int]) -> tuple[Voxels, Voxels, tuple[float, ...]]:
    """The voxels of a prediction and of its label, and the voxel size in mm; both lie on one grid."""
    p, r = read_nifti(prediction).image, read_nifti(label).image
    if _volume(p.shape) != _volume(r.shape):
        raise DataError(
            "has another shape than its label", file=prediction.name, expected=r.shape, came=p.shape,
            remedy="predict the image that the label belongs to",
        )  # fmt: skip
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in r.shape[:3]])).reshape(3, -1)
    apart = (p.affine[:3, :3] - r.affine[:3, :3]) @ corners + (p.affine[:3, 3:] - r.affine[:3, 3:])
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(r.affine))
    furthest = float(np.linalg.norm(apart, axis=0).max())
    if not furthest <= _TOLERANCE * min(spacing):
        raise DataError(
            "lies elsewhere than its label", file=prediction.name, expected="the same affine",
            came=f"corners up to {furthest:.3g} mm apart", remedy="predict the image that the label belongs to",
        )  # fmt: skip
    values = _integers(p, prediction)
    undeclared = sorted(set(np.unique(values).tolist()) - known)
    if undeclared:
        raise DataError(
            "holds label values that the data set does not declare", file=prediction.name, expected=sorted(known),
            came=undeclared[:5], remedy="check that these are predictions for this data set",
        )  # fmt: skip
    reference = _integers(r, label)
    return values.reshape(_volume(p.shape)), reference.reshape(_volume(r.shape)), spacing
