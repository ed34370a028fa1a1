# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is decided before a run trains: the parts that its cases fall into, the preprocessing, the size of patches."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai_autoaug
from monai_autoaug.data import Case, DataList, Split
from monai_autoaug.data.audit import Finding
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.data.schemes import choose_schemes
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions, find_device, find_precision
from monai_autoaug.engines.parts import known_cases, resampled, split_cases, unlabelled_cases
from monai_autoaug.engines.progress import Listener
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.engines.segmentation import choose_margin, choose_patch_size, downsampling
from monai_autoaug.engines.volumes import sound
from monai_autoaug.errors import ConfigError

__all__ = [
    "Plan", "check", "check_folders", "check_unused", "decide", "examine", "fit_preprocessing", "make_plan",
]  # fmt: skip

_PACKAGES = ("torch", "monai", "numpy", "nibabel")


@dataclass(frozen=True)
class Plan:
    """What was decided before training: written into config.json, and the same again when a run is resumed.

    Args:
        options: of the run.
        split: of the cases; where meta-validation cases are drawn anew each epoch, all of them are training cases.
        patch_size: voxels.
        margin: by which training patches are enlarged.
        unlabelled: images without labels that the method learns from.
    """

    options: TrainOptions
    split: Split
    patch_size: tuple[int, ...]
    margin: tuple[int, ...]
    unlabelled: tuple[Case, ...] = ()

    @property
    def used(self) -> dict[str, tuple[Case, ...]]:
        """All cases of the run: those with labels, and those without."""
        return {"cases": (*self.split.train, *self.split.meta, *self.split.validation), "unlabelled": self.unlabelled}

    @property
    def resampled(self) -> int:
        """How many training cases are meta-validation cases in each epoch; 0 where these don't change."""
        return resampled(self.options, self.split)

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of the cases of each part."""
        return {part: [c.name for c in cases] for part, cases in self.split._asdict().items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many cases there are of each part, in an epoch; meta-validation is told where there is any."""
        counts = {part: len(cases) for part, cases in self.split._asdict().items()}
        counts["train"] -= self.resampled
        counts["meta"] += self.resampled
        if self.unlabelled:
            counts["unlabelled"] = len(self.unlabelled)
        return counts if counts["meta"] else {part: n for part, n in counts.items() if part != "meta"}

    def told(self) -> str:
        """How the cases are split, in a sentence."""
        counts = self.counts
        images = counts.pop("unlabelled", 0)
        meta = f", {counts['meta']} to learn policies from (meta-validation)" if "meta" in counts else ""
        total, train = sum(counts.values()), counts["train"]
        unlabelled = f", and {images} unlabelled image{'s' * (images != 1)}" if images else ""
        return f"{total} cases: {train} train the network{meta}, {counts['validation']} validate it{unlabelled}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "options": self._options(),
            "patch_size": list(self.patch_size),
            "margin": list(self.margin),
            "split": self.names,
            "unlabelled": [case.name for case in self.unlabelled],
            "meta_cases_of_an_epoch": self.resampled or len(self.split.meta),
            "versions": {"monai_autoaug": monai_autoaug.__version__, "python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
        }

    def _options(self) -> dict[str, Any]:
        """The options with whole paths, so that the run can be resumed from any folder."""
        paths = {name: getattr(self.options, name) for name in ("data", "meta_list", "split", "unlabelled", "cache")}
        method_options = dict(self.options.method_options)
        if "policy" in method_options:
            method_options["policy"] = str(Path(method_options["policy"]).resolve())
        whole = {name: str(p.resolve()) for name, p in paths.items() if p is not None}
        return self.options.to_dict() | whole | {"method_options": method_options}


def check_folders(options: TrainOptions) -> None:
    """Refuse files where folders have to be.

    Args:
        options: of the run.

    Raises:
        ConfigError: the message names the option.
    """
    for name, path in (("output", options.output), ("cache", options.cache)):
        if path is not None and path.exists() and not path.is_dir():
            raise ConfigError(f"{name} must be a folder, but {path} is a file")


def check_unused(run: Run) -> None:
    """Refuse a folder that holds a run already.

    Args:
        run: that is to begin.

    Raises:
        ConfigError: it does.
    """
    if run.config.exists() or run.checkpoint.exists():
        raise ConfigError(
            f"{run.folder} holds a run already: go on with it by --resume --output {run.folder} (in Python"
            " engines.resume), or choose another folder with --output"
        )


def decide(options: TrainOptions, datalist: DataList, listener: Listener) -> tuple[Plan, Preprocessing, list[Finding]]:
    """Refuse what can't work, audit the data, and decide what a run is.

    Args:
        options: of the run.
        datalist: the data set.
        listener: hears of each case that is looked at.

    Returns:
        The plan, the preprocessing of the volumes, and what the audit warns of or notes.

    Raises:
        ConfigError: an option can't work.
        DataError: the data set can't be used.
    """
    check(options, datalist)
    parts, unlabelled = split_cases(options, datalist), unlabelled_cases(options, datalist)
    findings = examine(options, datalist, parts, unlabelled, listener)
    preprocessing = fit_preprocessing(options, datalist, parts)
    return make_plan(options, parts, preprocessing, unlabelled), preprocessing, findings


def check(options: TrainOptions, datalist: DataList) -> None:
    """Refuse options that can't work, before any image is read.

    Args:
        options: of the run.
        datalist: the data set.

    Raises:
        ConfigError: the message names the option.
    """
    find_precision(options.precision, find_device(options.device))
    schemes = choose_schemes(options.normalisation, datalist.channels)  # one a channel, or it refuses
    if options.bias_correction and "ct" in schemes:
        raise ConfigError("bias_correction is for MR images, but a channel is normalised as CT; leave it out")
    rehearse(options, datalist)


def examine(
    options: TrainOptions, datalist: DataList, parts: Split, unlabelled: tuple[Case, ...], listener: Listener
) -> list[Finding]:
    """Audit the cases that are used; no others are looked at.

    Args:
        options: of the run.
        datalist: the data set.
        parts: which cases are for what.
        unlabelled: images without labels that the method learns from.
        listener: hears of each case.

    Raises:
        DataError: the data set can't be used.
    """
    used = replace(datalist, training=(*parts.train, *parts.meta, *parts.validation), test=(), unlabelled=unlabelled)
    return sound(used, parts=parts, spacing=options.spacing, listener=listener)


def fit_preprocessing(options: TrainOptions, datalist: DataList, parts: Split) -> Preprocessing:
    """Decide the preprocessing on the cases that are learned from.

    Args:
        options: of the run.
        datalist: the data set.
        parts: which cases are for what.
    """
    return Preprocessing.fit(
        datalist, known_cases(options, parts), spacing=options.spacing, normalisation=options.normalisation,
        bias_correction=options.bias_correction,
    )  # fmt: skip


def make_plan(
    options: TrainOptions, parts: Split, preprocessing: Preprocessing, unlabelled: tuple[Case, ...] = ()
) -> Plan:
    """Choose patch size and margin.

    Args:
        options: of the run.
        parts: which cases are for what.
        preprocessing: of their volumes.
        unlabelled: images without labels that the method learns from.
    """
    factor = downsampling(options.network, options.network_options)
    patch_size = options.patch_size or choose_patch_size(preprocessing.median_shape, factor)
    margin = choose_margin(patch_size, preprocessing.median_shape)
    return Plan(options, parts, patch_size, (0, 0, 0) if options.method == "none" else margin, unlabelled)
