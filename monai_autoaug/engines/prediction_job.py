# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a prediction has to do: the trained run, its views at test time, the images and the files that they become."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai.inferers import Inferer, SimpleInferer
from torch import nn

from monai_autoaug import methods
from monai_autoaug.data import Case, read_images
from monai_autoaug.data.nifti import is_nifti
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.options import find_device, find_precision
from monai_autoaug.engines.test_time import TestTimePolicyInferer
from monai_autoaug.errors import AutoAugWarning, ConfigError
from monai_autoaug.policies import load
from monai_autoaug.precision import Precision

__all__ = ["Around", "Average", "Job", "learned_views"]

Average = Literal["logits", "probabilities"]
Around = Callable[[Inferer], Inferer]

# endings of files that someone may take for an output; a folder's name may hold other dots
_FILES = frozenset(".png .jpg .jpeg .tif .tiff .gz .zip .mha .mhd .nrrd .mgz .img .hdr .dcm .npy .npz .json".split())


@dataclass(frozen=True)
class Job:
    """What a prediction has to do, once all that was asked for has been checked.

    Args:
        preprocessing: of the run.
        network: on the CPU.
        patch_size: of the windows.
        views: see `learned_views`.
        precision: where and how the network runs.
        files: case -> its prediction.
        there: predictions that are there already and stay.
        folder: of the predictions.
    """

    preprocessing: Preprocessing
    network: nn.Module
    patch_size: list[int]
    views: Around | None
    precision: Precision
    files: dict[Case, Path]
    there: list[Path]
    folder: Path

    @property
    def cases(self) -> list[Case]:
        """What is to be predicted."""
        return list(self.files)

    @property
    def passes(self) -> int:
        """How often each image is predicted: once, or once a view."""
        around: Any = None if self.views is None else self.views(SimpleInferer())
        return around.z if isinstance(around, TestTimePolicyInferer) else 1

    @classmethod
    def of(
        cls, run: str | Path, images: str | Path, output: str | Path, *, device: str, precision: str, overlap: float,
        overwrite: bool, resume: bool, z: int | None, average: Average | None,
    ) -> Job:  # fmt: skip
        """Check what `prediction.predict` was asked for; no image is read and nothing is written.

        Raises:
            ConfigError: an option can't work, there is no such run, or a prediction is there already.
            DataError: there are no images.
        """
        folder, output = Run(Path(run)), Path(output)
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), got {overlap}")
        if overwrite and resume:
            raise ConfigError("overwrite replaces predictions that are there already, resume keeps them; give one")
        preprocessing, network, patch_size = _trained(folder)
        views = learned_views(folder, z, average)
        where = find_device(device)
        chosen = Precision(where, find_precision(precision, where))
        cases = read_images(images, channels=len(preprocessing.channels))
        files = dict(zip(cases, _outputs(cases, output, keep=overwrite or resume), strict=True))
        there = [file for file in files.values() if resume and file.exists()]
        left = {case: file for case, file in files.items() if file not in there}
        place = output.parent if len(files) == 1 and next(iter(files.values())) == output else output
        return cls(preprocessing, network, patch_size, views, chosen, left, there, place)


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
        z: as in `prediction.predict`.
        average: as in `prediction.predict`.

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
                AutoAugWarning, stacklevel=4,
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


def _outputs(cases: Sequence[Case], output: Path, *, keep: bool) -> list[Path]:
    """A file a case; refuses what would be lost, and predictions that are there unless it is said what to do."""
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
    if there and not keep:
        raise ConfigError(
            f"{there[0]}{f' and {len(there) - 1} more' if len(there) > 1 else ''}: a prediction is there already; give"
            " another output, overwrite it (--overwrite), or make only those that are missing (--resume)"
        )
    return files
