# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a prediction will be, told without predicting: images, windows, views; by the first image time and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from monai_autoaug.data import DataList
from monai_autoaug.engines.pace import measure_window, windows
from monai_autoaug.engines.prediction import refused
from monai_autoaug.engines.prediction_job import Average, Job
from monai_autoaug.engines.progress import Listener, unheard
from monai_autoaug.memory import peak_memory

__all__ = ["Foresight", "foresee"]


@dataclass(frozen=True)
class Foresight:
    """What a prediction will be.

    Args:
        cases: to be predicted.
        there: predictions that are there already and stay.
        failed: case -> why its image can't be used.
        shape: voxels of the first image, preprocessed; empty where there is none to predict.
        patch_size: voxels of a window.
        windows: of the first image.
        views: of each image that are averaged.
        device: "cpu" or "cuda".
        precision: that the network runs in.
        seconds: of all images, if they are like the first.
        host_mib: of the process so far, with one image; None where the system doesn't tell.
        device_mib: of tensors on the GPU; None on the CPU.
        output: where to.
    """

    cases: int
    there: int
    failed: dict[str, str]
    shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    windows: int
    views: int
    device: str
    precision: str
    seconds: float
    host_mib: float | None
    device_mib: float | None
    output: Path


def foresee(
    run: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    overlap: float = 0.5,
    overwrite: bool = False,
    resume: bool = False,
    z: int | None = None,
    average: Average | None = None,
    listener: Listener = unheard,
) -> Foresight:
    """Look ahead at a prediction: the first image is preprocessed, a window of it predicted; nothing is written.

    What `predict` would refuse is refused.

    Args:
        run: see `predict`, as all others.
        images: a NIfTI file, or a folder of them.
        output: of the predictions.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: of the network.
        overlap: of neighbouring windows.
        overwrite: whether predictions that are there already are replaced.
        resume: whether they are kept.
        z: how many views are averaged.
        average: "logits" or "probabilities" of the views.
        listener: hears of each case that is looked at.

    Raises:
        CheckpointError: the run has no model.
        ConfigError: an option can't work, there is no such run, or a prediction is there already.
        DataError: there are no images.
    """
    job = Job.of(
        run, images, output, device=device, precision=precision, overlap=overlap, overwrite=overwrite, resume=resume,
        z=z, average=average,
    )  # fmt: skip
    failed = refused(job.cases, job.preprocessing, listener)
    left = [case for case in job.cases if case.name not in failed]
    where = job.precision.device
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    shape: tuple[int, ...] = ()
    count, seconds = 0, 0.0
    if left:
        began = time.perf_counter()
        row = DataList.of_images(left[:1], channels=job.preprocessing.channels).to_monai(left[:1])[0]
        image = job.preprocessing.transforms(("image",))(row)["image"]
        preparing = time.perf_counter() - began
        shape = tuple(int(n) for n in image.shape[1:])
        count = windows(shape, job.patch_size, overlap)
        window = measure_window(job.network.to(where), image.shape[0], job.patch_size, job.precision)
        # putting a prediction back onto its image's grid takes about as long as making the network's of it
        seconds = len(left) * (2 * preparing + count * job.passes * window)
    memory = peak_memory(where)
    return Foresight(
        len(left), len(job.there), failed, shape, tuple(job.patch_size), count, job.passes, where.type,
        str(job.precision.dtype).removeprefix("torch."), seconds, memory["host_mib"], memory["device_mib"], job.folder,
    )  # fmt: skip
