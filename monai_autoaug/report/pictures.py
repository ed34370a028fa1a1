# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The pictures of a finished run: what its augmenters do or its policies are, what its network predicts, its course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_autoaug import augmenters, policies
from monai_autoaug.data import Case, DataList
from monai_autoaug.data.datalist import LabelValue
from monai_autoaug.data.nifti import read_nifti
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.volumes import volumes
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.report.augmentations import augmentation_figure
from monai_autoaug.report.curves import read_log, training_curves
from monai_autoaug.report.panels import augmentation_panels
from monai_autoaug.report.policy import policy_figure
from monai_autoaug.report.predictions import PredictionRow, prediction_figure

__all__ = [
    "augmentation_picture", "canonical", "chosen_cases", "label_names", "picture_files", "policy_picture",
    "prediction_picture", "run_pictures", "structures", "subject",
]  # fmt: skip

TRAINING, PREDICTIONS, AUGMENTATIONS, POLICY = "training.png", "predictions.png", "augmentations.png", "policy.png"
_LEAST = 64  # voxels a side of the window about the structures, where volumes are as large


def picture_files(run: Run) -> list[Path]:
    """The pictures that a run's folder holds when all are drawn.

    Args:
        run: its training has ended.
    """
    names = [TRAINING, PREDICTIONS] + [AUGMENTATIONS] * run.augmenters.exists() + [POLICY] * run.policy.exists()
    return [run.folder / name for name in names]


def run_pictures(
    run: Run, datalist: DataList, evaluation: Evaluation, *, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Draw all pictures of a run into its folder.

    Args:
        run: its training has ended.
        datalist: its data set.
        evaluation: of its validation predictions.
        progress: called with the number of pictures drawn and of all pictures.

    Returns:
        ``training.png``, ``predictions.png`` and, where something was learned, ``augmentations.png`` or ``policy.png``.
    """
    draw: dict[str, Callable[[Path], Path]] = {
        TRAINING: lambda path: training_curves(run.log, path, classes=label_names(datalist)[1:]),
        PREDICTIONS: lambda path: prediction_picture(run, datalist, evaluation, path),
        AUGMENTATIONS: lambda path: augmentation_picture(run, datalist, path),
        POLICY: lambda path: policy_picture(run, path),
    }
    files = picture_files(run)
    for done, path in enumerate(files, 1):
        draw[path.name](path)
        if progress is not None:
            progress(done, len(files))
    return files


def _around(label: Tensor, size: tuple[int, ...]) -> tuple[slice, ...]:
    """A window of at most ``size`` about the middle of the foreground of ``label`` (1, D, H, W)."""
    places = torch.nonzero(label[0] > 0).float()
    shape = label.shape[1:]
    middle = places.mean(0) if len(places) else torch.tensor([n / 2 for n in shape])
    starts = [int(min(max(round(float(m)) - s // 2, 0), max(n - s, 0)))
              for m, s, n in zip(middle, size, shape, strict=True)]  # fmt: skip
    return (slice(None), *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))


def subject(run: Run, datalist: DataList, *, number: int = 0) -> tuple[Tensor, Tensor]:
    """A training case of a run about its structures, as large as the run's patches at least.

    Args:
        run: its training has begun.
        datalist: its data set.
        number: of the case, in the order of the run's split.

    Returns:
        The normalised image (C, D, H, W), and the one-hot label (K, D, H, W), background first.
    """
    config, preprocessing = read_json(run.config), run.load_preprocessing()
    case = _case(datalist, config["split"]["train"][number])
    item = volumes(datalist, [case], preprocessing)[0]
    # at least what the augmenters saw in training, and enough for a person to see where it is
    patch = (n + 2 * m for n, m in zip(config["patch_size"], config["margin"], strict=True))
    window = _around(item["label"], tuple(max(n, _LEAST) for n in patch))
    classes = torch.arange(preprocessing.num_classes).view(-1, 1, 1, 1)
    return item["image"][window], (item["label"][window] == classes).float()


def augmentation_picture(run: Run, datalist: DataList, path: str | Path, *, seed: int = 0) -> Path:
    """Draw the first training case of a run before and after each of its augmenters.

    Args:
        run: with augmenters.
        datalist: its data set.
        path: a PNG file.
        seed: of the draws.

    Returns:
        ``path``.
    """
    preprocessing = run.load_preprocessing()
    image, one_hot = subject(run, datalist)
    panels = augmentation_panels(augmenters.load(run.augmenters), image, one_hot, seed=seed)
    return augmentation_figure(
        panels, path, spacing=preprocessing.spacing, classes=label_names(datalist)[1:],
        orientation=preprocessing.orientation,
    )  # fmt: skip


def policy_picture(run: Run, path: str | Path) -> Path:
    """Draw the policies that a run has learned.

    Args:
        run: with ``policy.json``.
        path: a PNG file.

    Returns:
        ``path``.
    """
    return policy_figure(
        policies.load(run.policy), path, log=read_log(run.log), no_ops=read_json(run.summary).get("no_ops", ())
    )


def prediction_picture(run: Run, datalist: DataList, evaluation: Evaluation, path: str | Path) -> Path:
    """Draw the worst, the median and the best validation case, by their mean Dice.

    Args:
        run: with validation predictions.
        datalist: its data set.
        evaluation: of these predictions.
        path: a PNG file.

    Returns:
        ``path``.
    """
    rows = []
    for name, title in chosen_cases(evaluation).items():
        case = _case(datalist, name)
        image, spacing = canonical(case.images[0])
        reference = None if case.label is None else canonical(case.label)[0].long()[0]
        prediction = canonical(run.validation / f"{name}.nii.gz")[0].long()[0]
        rows.append(PredictionRow(title, image, reference, prediction, spacing, _dice(evaluation, name)))
    return prediction_figure(rows, path, classes=structures(datalist))


def structures(datalist: DataList) -> dict[str, LabelValue]:
    """What a network tells apart: each label value but the background by its name, or the regions.

    Args:
        datalist: a data set.
    """
    if datalist.has_regions:
        return datalist.foreground
    found: dict[str, LabelValue] = dict(zip(label_names(datalist)[1:], datalist.label_values[1:], strict=True))
    return found


def chosen_cases(evaluation: Evaluation) -> dict[str, str]:
    """The cases to draw, the worst, the median and the best by their mean Dice, and their titles.

    Args:
        evaluation: of predictions.
    """
    without = {c for c, v in zip(evaluation.cases, evaluation.values["dice"], strict=True) if np.isnan(v).all()}
    # a case with no structure, neither in its reference nor predicted, is no best case
    order = [case for case in evaluation.worst("dice") if case not in without] or list(evaluation.cases)
    chosen = list(dict.fromkeys([order[0], order[len(order) // 2], order[-1]]))
    names = {3: ("worst: ", "median: ", "best: "), 2: ("worst: ", "best: "), 1: ("",)}[len(chosen)]
    return {case: name + case for name, case in zip(names, chosen, strict=True)}


def _dice(evaluation: Evaluation, case: str) -> str:
    """Dice of a case: the mean over the structures for which it is defined, then each of them."""
    values = evaluation.values["dice"][evaluation.cases.index(case)]
    defined = {n: v for n, v in zip(evaluation.classes, values, strict=True) if not np.isnan(v)}
    if not defined:
        return "Dice: not defined, there is no structure"
    mean = f"Dice {np.mean(list(defined.values())):.2f}"
    return mean if len(evaluation.classes) == 1 else f"{mean}: " + ", ".join(f"{n} {v:.2f}" for n, v in defined.items())


def _case(datalist: DataList, name: str) -> Case:
    return next(c for c in datalist.training if c.name == name)


def label_names(datalist: DataList) -> list[str]:
    """A name for each label value; with regions values have none of their own.

    Args:
        datalist: a data set.
    """
    names = {value: name for name, value in datalist.labels.items()}
    return [names.get(v) or names.get((v,)) or f"label {v}" for v in datalist.label_values]


def canonical(path: Path) -> tuple[Tensor, tuple[float, ...]]:
    """The first channel (1, D, H, W) of a file with its axes to the right, front and head, and the voxel size in mm.

    Args:
        path: of a NIfTI file.
    """
    image = nib.as_closest_canonical(read_nifti(path).image)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    voxels = voxels.reshape(*voxels.shape[:3], -1)[..., 0]
    return torch.from_numpy(voxels.copy())[None], tuple(float(s) for s in image.header.get_zooms()[:3])
