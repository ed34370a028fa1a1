# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The optimiser and the engine of a run, from its options and what is known of its labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from monai_autoaug.data import DataList, PatchBatches, loader
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.segmentation import SegmentationLoss
from monai_autoaug.engines.sides import find_sides
from monai_autoaug.engines.trainer import AutoAugTrainer
from monai_autoaug.precision import DTYPES

__all__ = ["Labels", "make_optimizer", "make_trainer"]

_CLIP = 12.0  # as nnU-Net


@dataclass(frozen=True)
class Labels:
    """What a run's labels are called, and how they lie in a patch.

    Args:
        names: of the label values, the background first; of regions "background" and theirs.
        values: of the label files, in that order; with regions: of no meaning.
        orientation: the directions in which the patches' axes increase.

    >>> from pathlib import Path
    >>> Labels.of_datalist(DataList(Path("."), "decathlon", ("CT",), {"background": 0, "liver": 5})).values
    (0, 5)
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    orientation: str

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> Labels:
        """Those of preprocessed volumes."""
        names = preprocessing.label_names
        names = names if preprocessing.regions is None else ("background", *names)
        return cls(names, preprocessing.label_values, preprocessing.orientation)

    @classmethod
    def of_datalist(cls, datalist: DataList) -> Labels:
        """Those of a data set that is going to be preprocessed as usual."""
        values = datalist.label_values
        if datalist.has_regions:
            names = ("background", *datalist.foreground)
        else:
            known = {value: name for name, value in datalist.foreground.items()} | {0: "background"}
            names = tuple(known[v] for v in values)
        return cls(names, values, Preprocessing.orientation)


def make_optimizer(options: TrainOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the segmentation network, which has been through `methods.prepare`."""
    return torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)


def make_trainer(
    options: TrainOptions,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: PatchBatches,
    device: torch.device,
    dtype: torch.dtype,
    *,
    labels: Labels,
    meta: PatchBatches | None = None,
    unlabelled: PatchBatches | None = None,
    build: Callable[[], nn.Module] | None = None,
) -> AutoAugTrainer:
    """The engine of a run.

    Args:
        options: of the run.
        network: prepared, on the device.
        optimizer: its optimiser.
        batches: training patches.
        device: where training runs.
        dtype: that the networks run in.
        labels: names and places of what the patches show.
        meta: meta-validation patches, where the method needs them.
        unlabelled: patches of unlabelled images, likewise.
        build: makes the plain network anew, for methods that begin anew.

    Raises:
        ConfigError: an option of the method can't be.
    """
    regions, ignore = batches.regions is not None, batches.ignore_label is not None
    pin, meta_loader = device.type == "cuda", None
    if meta is not None:  # fewer batches, of which one process makes enough
        meta_loader = loader(meta, num_workers=min(options.workers, 1), pin_memory=pin)
    further = None
    if unlabelled is not None:
        further = loader(unlabelled, num_workers=min(options.workers, 1), pin_memory=pin)
    given = dict(options.method_options)
    if given.get("laterality"):  # in a patch label values are numbered from 0 on
        given["laterality"] = find_sides(
            given["laterality"], labels.names, orientation=labels.orientation, values=labels.values, regions=regions
        )
    trainer = AutoAugTrainer(
        device, options.epochs, loader(batches, num_workers=options.workers, pin_memory=pin),
        network, optimizer, SegmentationLoss(regions=regions, ignore=ignore),
        method=options.method, method_options=given, seed=options.seed, margin=batches.margin,
        meta_data_loader=meta_loader, unlabelled_data_loader=further,
        label_names=labels.names, orientation=labels.orientation,
        num_classes=batches.num_classes if batches.regions is None else len(batches.regions), regions=regions,
        clip=_CLIP, network_builder=build, amp=dtype is not DTYPES["float32"], amp_kwargs={"dtype": dtype},
        epoch_length=options.iterations, decollate=False,
    )  # fmt: skip
    # its warnings go into log and summary, not into the terminal every epoch; what it reports as errors is raised
    trainer.logger = logging.getLogger(f"{__name__}.quiet")  # its own: ignite's belongs to all engines of a process
    trainer.logger.setLevel(logging.CRITICAL)
    return trainer
