# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A trained run applied to images: NIfTI in, NIfTI with the input's own geometry out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data import Case, DataList, read_images
from monai_autoaug.data.audit import audit
from monai_autoaug.data.nifti import is_nifti
from monai_autoaug.data.preprocess import Clean, Preprocessing
from monai_autoaug.engines.claims import check_writable
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.options import find_device, find_precision
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.segmentation import infer
from monai_autoaug.engines.test_time import TestTimePolicyInferer
from monai_autoaug.errors import AutoAugWarning, ConfigError, DataError
from monai_autoaug.policies import load
from monai_autoaug.precision import Precision

__all__ = ["PredictionError", "learned_views", "predict", "predict_cases", "probabilities_of"]

Average = Literal["logits", "probabilities"]
Around = Callable[[Inferer], Inferer]

# endings of files that someone may take for an output; a folder's name may hold other dots
_FILES = frozenset(".png .jpg .jpeg .tif .tiff .gz .zip .mha .mhd .nrrd .mgz .img .hdr .dcm .npy .npz .json".split())


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
        precision: "auto", "float32", "bfloat16" or "float16".
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
    folder, output = Run(Path(run)), Path(output)
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be in [0, 1), got {overlap}")
    preprocessing, network, patch_size = _trained(folder)
    views = learned_views(folder, z, average)
    where = find_device(device)
    chosen = Precision(where, find_precision(precision, where))
    cases = read_images(images, channels=len(preprocessing.channels))
    if overwrite and resume:
        raise ConfigError("resume leaves predictions that are there and overwrite replaces them; give one of them")
    files = dict(zip(cases, _outputs(cases, output, overwrite=overwrite or resume), strict=True))
    written = [files[case] for case in cases if resume and files[case].exists()]
    to_do = [case for case in cases if files[case] not in written]
    failed = _refused(to_do, preprocessing, listener) if to_do else {}
    network = network.to(where)
    listener(Progress("predicting", len(written) + len(failed), len(cases)))
    for case in to_do:
        if case.name in failed:
            continue
        try:
            written += predict_cases(
                network, preprocessing, [case], [files[case]], patch_size=patch_size, precision=chosen, overlap=overlap,
                views=views, clean=clean,
            )  # fmt: skip
        except DataError as error:
            failed[case.name] = str(error)
        listener(Progress("predicting", len(written) + len(failed), len(cases)))
    if failed:
        raise PredictionError(failed, written)
    return written


def _trained(run: Run) -> tuple[Preprocessing, nn.Module, list[int]]:
    """What a run that has ended has to say of prediction: preprocessing, network, patch size."""
    if not run.config.is_file():
        what = "there is no such folder" if not run.folder.is_dir() else "it holds no config.json"
        raise ConfigError(f"{run.folder}: is no training run ({what}); give the folder that monai-autoaug train wrote")
    return run.load_preprocessing(), run.load_model(), read_json(run.config)["patch_size"]


def learned_views(run: Run, z: int | None = None, average: Average | None = None) -> Around | None:
    """What makes the inferer with a run's views at test time of the one without; None: there are to be none.

    Warns where the run has learned some that can't be found, unless ``z`` is 0.

    Args:
        run: perhaps with a policy.
        z: as in `predict`.
        average: as in `predict`.

    Raises:
        ConfigError: views are asked for, but the run has learned none, or fewer.
        PolicyError: its policy can't be read.
    """
    policy = load(run.policy).test_time if run.policy.exists() else None
    if policy is None:
        lost = _lost_views(run)
        if lost and (z or average is not None):
            raise ConfigError(f"{lost}. To do: put the file back, or leave out z and average")
        if lost and z is None:
            warnings.warn(
                f"{lost}: images are predicted as they are, which is not what this run's validation has judged. To do:"
                " put the file back, or say z=0 (--z 0) if that is meant",
                AutoAugWarning, stacklevel=3,
            )  # fmt: skip
        if z or average is not None:
            raise ConfigError(
                f"{run.folder}: this run has learned no views at test time; leave out z and average, or train with"
                " method joint_policy"
            )
        return None
    if z == 0:
        if average is not None:
            raise ConfigError(f"z is 0, so there are no views whose {average} could be averaged; leave out one of them")
        return None
    made = TestTimePolicyInferer(SimpleInferer(), policy, z, average=average)  # refuses what can't be, before any work
    return lambda inferer: TestTimePolicyInferer(inferer, made.policy, made.z)


def _lost_views(run: Run) -> str:
    """That the policy file of a run that has learned views doesn't hold them; empty where it has learned none."""
    options = read_json(run.config)["options"]
    method = options["method"]
    if method not in methods.names() or not methods.find(method).learns_views(**options["method_options"]):
        return ""
    came = "holds no views" if run.policy.exists() else "is not there"
    return f"{run.policy}: {came}, but this run (method {method}) has learned which views of an image to average"


def _outputs(cases: Sequence[Case], output: Path, *, overwrite: bool) -> list[Path]:
    """A file a case; refuses what would be lost or what can't be written, before any work."""
    single = is_nifti(output) and not output.is_dir()
    if single and len(cases) > 1:
        raise ConfigError(f"{len(cases)} images can't be predicted into the one file {output}; give a folder")
    if not single and not output.is_dir() and (output.suffix.lower() in _FILES or output.is_file()):
        raise ConfigError(f"output: {output} is neither a folder nor a name that ends in .nii or .nii.gz; give one")
    files = [output] if single else [output / f"{case.name}.nii.gz" for case in cases]
    inputs = {file.resolve() for case in cases for file in case.images}
    for file in files:
        if file.resolve() in inputs:
            raise ConfigError(f"the prediction {file} would overwrite an image; give another output")
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{there[0]}{f' and {len(there) - 1} more' if len(there) > 1 else ''}: a prediction is there already; give"
            " another output, overwrite it (--overwrite), or make only those that are missing (--resume)"
        )
    check_writable("output", output.parent if single else output)
    return files


def _refused(cases: Sequence[Case], preprocessing: Preprocessing, listener: Listener) -> dict[str, str]:
    """Case -> why its image can't be used, as the audit sees it."""
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
