# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Validation while a network trains: quick, on the preprocessed grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics import DiceMetric
from torch import Tensor, nn

from monai_autoaug.data.items import Items, read_item
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.segmentation import infer
from monai_autoaug.precision import Precision

__all__ = ["masks", "validate"]


def validate(
    network: nn.Module, items: Items, preprocessing: Preprocessing, patch_size: Sequence[int], precision: Precision
) -> dict[str, float]:
    """Dice of each foreground structure over the validation cases, on the preprocessed grid, and their mean.

    A structure that a case's label doesn't have is left out of its mean. It tells how the training goes;
    `evaluation.evaluate` gives the final figure, on the voxels of the label files.

    Args:
        network: in any mode.
        items: preprocessed validation cases.
        preprocessing: of them.
        patch_size: of the windows.
        precision: where and how the network runs.
    """
    metric = DiceMetric(include_background=True, reduction="mean_batch", ignore_empty=True)
    for i in range(len(items)):
        item = read_item(items, i)
        logits = infer(network, item["image"], patch_size, precision, overlap=0.25)
        prediction, reference = masks(logits, item["label"], preprocessing)
        metric(y_pred=prediction[None].float(), y=reference[None].float())
    values = metric.aggregate()
    assert isinstance(values, Tensor)  # noqa: S101  # for the type checker: no counts were asked for
    names = preprocessing.label_names[0 if preprocessing.regions else 1 :]
    figures = {"dice": float(values.nanmean())}
    return figures | {f"dice_{n}": float(v) for n, v in zip(names, values, strict=True)}


def masks(logits: Tensor, label: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Where each foreground structure is predicted and where it is, leaving out voxels of unknown label.

    Args:
        logits: (K, D, H, W).
        label: (1, D, H, W) class indices; the number of classes marks unknown voxels.
        preprocessing: says what the channels and indices are.

    Returns:
        Two boolean tensors (structures, D, H, W).
    """
    known = label != preprocessing.num_classes
    if preprocessing.regions is None:
        classes = torch.arange(1, preprocessing.num_classes).view(-1, 1, 1, 1)
        return (logits.max(0, keepdim=True).indices == classes) & known, label == classes
    groups = preprocessing.patch_options["regions"]
    reference = torch.stack([torch.isin(label[0], torch.tensor(g)) for g in groups])
    return (logits > 0) & known, reference
