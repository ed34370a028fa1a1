# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A trained run applied to images: NIfTI in, NIfTI with the input's own geometry out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_autoaug.data import Case, DataList, read_images
from monai_autoaug.data.nifti import is_nifti
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.options import find_device, find_precision
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.segmentation import infer
from monai_autoaug.engines.volumes import sound
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import Precision

__all__ = ["predict", "predict_cases", "probabilities_of"]


def predict(
    run: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    overlap: float = 0.5,
    listener: Listener = unheard,
) -> list[Path]:
    """Segment images with a trained run.

    Args:
        run: the folder of a run that has ended.
        images: a NIfTI file, or a folder of them (``CASE_0000``, ``CASE_0001`` ... are the channels of one case).
        output: the folder of the predictions; for a single image also a name that ends in ``.nii`` or ``.nii.gz``.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto", "float32", "bfloat16" or "float16".
        overlap: of neighbouring windows, in [0, 1).
        listener: hears of each case.

    Returns:
        The files written, one a case, each on the voxel grid of its (first) image file.

    Raises:
        CheckpointError: the run has no model.
        ConfigError: an option can't work.
        DataError: an image can't be used.
    """
    folder, output = Run(Path(run)), Path(output)
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be in [0, 1), got {overlap}")
    preprocessing = folder.load_preprocessing()
    cases = read_images(images, channels=len(preprocessing.channels))
    single = is_nifti(output)
    if single and len(cases) > 1:
        raise ConfigError(f"{len(cases)} images can't be predicted into the one file {output}; give a folder")
    folder_of_images = cases[0].images[0].parent
    sound(DataList.of_images(cases, channels=preprocessing.channels, folder=folder_of_images), listener=listener)
    network = folder.load_model()
    where = find_device(device)
    patch_size = read_json(folder.config)["patch_size"]
    files = [output if single else output / f"{c.name}.nii.gz" for c in cases]
    inputs = {file.resolve() for case in cases for file in case.images}
    for file in files:
        if file.resolve() in inputs:
            raise ConfigError(f"the prediction {file} would overwrite an image; give another output")
    return predict_cases(
        network.to(where), preprocessing, cases, files, patch_size=patch_size,
        precision=Precision(where, find_precision(precision, where)), overlap=overlap, listener=listener,
    )  # fmt: skip


def predict_cases(
    network: nn.Module,
    preprocessing: Preprocessing,
    cases: Sequence[Case],
    files: Sequence[Path],
    *,
    patch_size: Sequence[int],
    precision: Precision,
    overlap: float = 0.5,
    listener: Listener = unheard,
) -> list[Path]:
    """Segment cases and write one file each.

    Args:
        network: on the device of ``precision``.
        preprocessing: what the network was trained with.
        cases: their images are read, not their labels.
        files: where to.
        patch_size: of the windows.
        precision: where and how the network runs.
        overlap: of neighbouring windows.
        listener: hears of each case.
    """
    transform = preprocessing.transforms(("image",))
    written = []
    for i, (case, file) in enumerate(zip(cases, files, strict=True)):
        row = DataList.of_images([case], channels=preprocessing.channels).to_monai([case])[0]
        image = transform(row)["image"]
        logits = infer(network, image.as_tensor(), patch_size, precision, overlap=overlap)
        probabilities = probabilities_of(logits, preprocessing)
        written.append(preprocessing.restore(probabilities, case=case, path=file, affine=image.affine))
        listener(Progress("predicting", i + 1, len(cases)))
    return written


def probabilities_of(logits: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Logits (K, D, H, W) -> probabilities of classes (softmax), or of regions (sigmoid)."""
    return torch.sigmoid(logits) if preprocessing.regions is not None else torch.softmax(logits, dim=0)
