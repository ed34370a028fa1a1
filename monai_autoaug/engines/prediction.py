# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A trained run applied to images: NIfTI in, NIfTI with the input's own geometry out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_autoaug.data import Case, DataList
from monai_autoaug.data.audit import audit
from monai_autoaug.data.preprocess import Clean, Preprocessing
from monai_autoaug.engines.claims import check_writable
from monai_autoaug.engines.prediction_job import Around, Average, Job, learned_views
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.segmentation import infer
from monai_autoaug.errors import DataError
from monai_autoaug.precision import Precision

__all__ = ["PredictionError", "learned_views", "predict", "predict_cases", "probabilities_of"]


class PredictionError(DataError):
    """Some images could not be predicted; all others were.

    Args:
        failed: case -> why not.
        written: the predictions of the others.

    >>> print(PredictionError({"a": "holds NaN", "b": "can't be read"}, []))
    2 images can't be predicted:
      a: holds NaN
      b: can't be read
    """

    def __init__(self, failed: Mapping[str, str], written: Sequence[Path]) -> None:
        images = f"{len(failed)} image{'s' * (len(failed) != 1)}"
        super().__init__(f"{images} can't be predicted:" + "".join(f"\n  {c}: {why}" for c, why in failed.items()))
        self.failed, self.written = dict(failed), list(written)


def predict(
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
    clean: Clean | None = None,
    listener: Listener = unheard,
) -> list[Path]:
    """Segment images with a trained run, and with the views at test time if it has learned any.

    Where a run has learned views, but its ``policy.json`` is gone, images are predicted as they are, with a warning.

    Args:
        run: the folder of a run that has ended.
        images: a NIfTI file, or a folder of them (``CASE_0000``, ``CASE_0001`` ... are the channels of one case).
        output: the folder of the predictions; for a single image also a name that ends in ``.nii`` or ``.nii.gz``.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto", "mixed", "float32", "bfloat16" or "float16", see `find_precision`.
        overlap: of neighbouring windows, in [0, 1).
        overwrite: whether predictions that are there already are replaced.
        resume: whether predictions that are there already are left as they are, and the others made: a prediction is
            whole or not there, however the command that made it has ended.
        z: how many views of each image are predicted and averaged; None: as many as the run's policy says (usually 8);
            0: the image alone.
        average: "logits" or "probabilities" of the views; None: as the policy says.
        clean: post-processing of the label maps, such as `monai_autoaug.evaluation.Components`.
        listener: hears of each case.

    Returns:
        The files, one a case, each on the voxel grid of its (first) image file.

    Raises:
        CheckpointError: the run has no model.
        ConfigError: an option can't work, there is no such run, or a prediction is there already.
        PredictionError: some images can't be used; it comes at the end, when the others have been predicted.
        DataError: there are no images.
    """
    job = Job.of(
        run, images, output, device=device, precision=precision, overlap=overlap, overwrite=overwrite, resume=resume,
        z=z, average=average,
    )  # fmt: skip
    check_writable("output", job.folder)
    preprocessing, files, cases, there = job.preprocessing, job.files, job.cases, len(job.there)
    total = there + len(cases)
    note = f"{there} of {total} predictions are there already and stay" if there else None
    failed = refused(cases, preprocessing, listener)
    network, written = job.network.to(job.precision.device), list(job.there)
    listener(Progress("predicting", there + len(failed), total, note=note))
    for case in cases:
        if case.name in failed:
            continue
        try:
            written += predict_cases(
                network, preprocessing, [case], [files[case]], patch_size=job.patch_size, precision=job.precision,
                overlap=overlap, views=job.views, clean=clean,
            )  # fmt: skip
        except DataError as error:
            failed[case.name] = str(error)
        listener(Progress("predicting", len(written) + len(failed), total))
    if failed:
        raise PredictionError(failed, written)
    return written


def refused(cases: Sequence[Case], preprocessing: Preprocessing, listener: Listener) -> dict[str, str]:
    """Case -> why its image can't be used, as the audit sees it.

    Args:
        cases: to predict.
        preprocessing: of the run.
        listener: hears of each case.
    """
    if not cases:
        return {}
    folder = cases[0].images[0].parent
    datalist = DataList.of_images(cases, channels=preprocessing.channels, folder=folder)
    findings = audit(datalist, progress=lambda done, total: listener(Progress("checking", done, total)))
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity == "refuse":
            measured = f" (expected {finding.expected}, came {finding.came})" if finding.expected else ""
            remedy = f"; to do: {finding.remedy}" if finding.remedy else ""
            reasons.setdefault(finding.case, []).append(f"{finding.message}{measured}{remedy}")
    return {case: "; ".join(texts) for case, texts in reasons.items()}


def predict_cases(
    network: nn.Module,
    preprocessing: Preprocessing,
    cases: Sequence[Case],
    files: Sequence[Path],
    *,
    patch_size: Sequence[int],
    precision: Precision,
    overlap: float = 0.5,
    views: Around | None = None,
    clean: Clean | None = None,
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
        views: see `learned_views`.
        clean: see `predict`.
        listener: hears of each case.
    """
    transform = preprocessing.transforms(("image",))
    written = []
    for i, (case, file) in enumerate(zip(cases, files, strict=True)):
        row = DataList.of_images([case], channels=preprocessing.channels).to_monai([case])[0]
        image = transform(row)["image"]
        logits = infer(network, image.as_tensor(), patch_size, precision, overlap=overlap, around=views)
        probabilities = probabilities_of(logits, preprocessing)
        written.append(preprocessing.restore(probabilities, case=case, path=file, affine=image.affine, clean=clean))
        listener(Progress("predicting", i + 1, len(cases)))
    return written


def probabilities_of(logits: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Logits (K, D, H, W) -> probabilities of classes (softmax), or of regions (sigmoid)."""
    return torch.sigmoid(logits) if preprocessing.regions is not None else torch.softmax(logits, dim=0)
