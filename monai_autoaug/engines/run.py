# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training run from a folder of NIfTI files to a trained network: read, audit, split, prepare, train, predict."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from monai.utils import set_determinism
from torch.utils.data import Subset

import monai_autoaug
from monai_autoaug import augmenters
from monai_autoaug.data import Case, DataList, Split, read_datalist
from monai_autoaug.data.audit import Finding, findings_to_json
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.data.schemes import choose_schemes
from monai_autoaug.engines.claims import check_writable, claimed
from monai_autoaug.engines.fit import Fit
from monai_autoaug.engines.folder import Run, read_json, write_json
from monai_autoaug.engines.options import TrainOptions, find_device, find_precision
from monai_autoaug.engines.parts import known_cases, resampled, split_cases, unlabelled_cases
from monai_autoaug.engines.prediction import learned_views, predict_cases
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.engines.segmentation import choose_margin, choose_patch_size, downsampling
from monai_autoaug.engines.volumes import sound, volumes
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.writing import write_text

__all__ = ["resume", "train"]

_PACKAGES = ("torch", "monai", "numpy", "nibabel")


@dataclass(frozen=True)
class _Plan:
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
    def resampled(self) -> int:
        """How many training cases are meta-validation cases in each epoch; 0 where these don't change."""
        return resampled(self.options, self.split)

    def _options(self) -> dict[str, Any]:
        """The options with whole paths, so that the run can be resumed from any folder."""
        paths = {name: getattr(self.options, name) for name in ("data", "meta_list", "unlabelled", "cache")}
        method_options = dict(self.options.method_options)
        if "policy" in method_options:
            method_options["policy"] = str(Path(method_options["policy"]).resolve())
        whole = {name: str(p.resolve()) for name, p in paths.items() if p is not None}
        return self.options.to_dict() | whole | {"method_options": method_options}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "options": self._options(),
            "patch_size": list(self.patch_size),
            "margin": list(self.margin),
            "split": _named(self.split),
            "unlabelled": [case.name for case in self.unlabelled],
            "meta_cases_of_an_epoch": self.resampled or len(self.split.meta),
            "versions": {"monai_autoaug": monai_autoaug.__version__, "python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
        }


def train(options: TrainOptions, *, listener: Listener = unheard) -> Run:
    """Train a segmentation network on a folder of NIfTI files.

    The folders are claimed (`claims.claimed`) and every option is tried out on random patches first, so that what can't
    work is refused before any image is read; until the run's configuration is written, a refusal leaves nothing behind.
    The data set is audited, split by ``options.split_seed``, preprocessed with statistics of the training cases alone,
    and trained on by the chosen method. The network after the last epoch is kept (no choice by validation Dice, unless
    the method is one that chooses so, as "task_driven" is), and predicts the validation cases.

    Args:
        options: what to do.
        listener: hears where the run is.

    Returns:
        The run's folder, complete.

    Raises:
        ConfigError: an option can't work, or the folder holds another run, is in use or can't be written.
        DataError: the data set can't be used.
    """
    run = Run(options.output)
    _check_folders(options)
    with claimed(run.folder):
        return _train(run, options, listener)


def _train(run: Run, options: TrainOptions, listener: Listener) -> Run:
    """All of `train`, in a folder that is ours."""
    if options.cache is not None:
        check_writable("cache", options.cache)
    if run.config.exists() or run.checkpoint.exists():
        raise ConfigError(
            f"{run.folder} holds a run already: go on with it by --resume --output {run.folder} (in Python"
            " engines.resume), or choose another folder with --output"
        )
    find_precision(options.precision, find_device(options.device))
    datalist = read_datalist(options.data)
    schemes = choose_schemes(options.normalisation, datalist.channels)  # one a channel, or it refuses
    if options.bias_correction and "ct" in schemes:
        raise ConfigError("bias_correction is for MR images, but a channel is normalised as CT; leave it out")
    rehearse(options, datalist)
    parts, unlabelled, findings = _examine(options, datalist, listener)
    preprocessing = Preprocessing.fit(
        datalist, known_cases(options, parts), spacing=options.spacing, normalisation=options.normalisation,
        bias_correction=options.bias_correction,
    )  # fmt: skip
    plan = _plan(options, parts, preprocessing, unlabelled)
    _begin(run, plan, preprocessing, findings)
    return _carry_out(run, plan, datalist, preprocessing, None, listener)


def resume(
    folder: str | Path, *, device: str | None = None, workers: int | None = None, listener: Listener = unheard
) -> Run:
    """Go on with a run that was stopped, also by a kill: its folder is free as soon as its process has ended.

    On the same machine's CPU the result is that of a run that never stopped, bit for bit. On a GPU it begins with the
    same state and batches, but no two runs are equal to the last digit there: the gradient of a warp
    (``grid_sample``) is added up in no fixed order.

    Args:
        folder: of the run.
        device: another device than before; None: the same.
        workers: another number of processes; None: the same.
        listener: hears where the run is.

    Returns:
        The run's folder, complete.

    Raises:
        ConfigError: there is no run, it has ended, another process is working in it, or it can't be written.
        CheckpointError: the data set has changed, or the checkpoint is damaged.
    """
    run = Run(Path(folder))
    read_json(run.config)  # before a folder that holds no run is claimed
    with claimed(run.folder):
        return _resume(run, device, workers, listener)


def _resume(run: Run, device: str | None, workers: int | None, listener: Listener) -> Run:
    """All of `resume`, in a folder that is ours."""
    config = read_json(run.config)
    if run.summary.exists():
        raise ConfigError(f"{run.folder}: this run has ended; start another one with more epochs")
    options = TrainOptions.from_mapping(config["options"] | {"output": run.folder})
    if device is not None:
        options = replace(options, device=device)
    if workers is not None:
        options = replace(options, workers=workers)
    find_precision(options.precision, find_device(options.device))
    datalist = read_datalist(options.data)
    parts, unlabelled, _ = _examine(options, datalist, listener)
    if _named(parts) != {"meta": []} | config["split"]:  # older runs know of no meta-validation
        raise CheckpointError(f"{run.folder}: the data set no longer splits into the cases that this run began with")
    if [case.name for case in unlabelled] != config.get("unlabelled", []):
        raise CheckpointError(f"{run.folder}: the unlabelled images are no longer those that this run began with")
    preprocessing = run.load_preprocessing()
    plan = _Plan(options, parts, tuple(config["patch_size"]), tuple(config["margin"]), unlabelled)
    checkpoint = run.load_checkpoint() if run.checkpoint.exists() else None
    return _carry_out(run, plan, datalist, preprocessing, checkpoint, listener)


def _begin(run: Run, plan: _Plan, preprocessing: Preprocessing, findings: list[Finding]) -> None:
    """Write what makes a folder a run, the configuration last; or nothing, if one file can't be written."""
    try:
        preprocessing.save(run.preprocessing)
        write_text(run.audit, findings_to_json(findings) + "\n")
        write_json(run.config, plan.to_dict())
    except BaseException:
        for file in (run.config, run.audit, run.preprocessing):
            file.unlink(missing_ok=True)
        raise


def _named(parts: Split) -> dict[str, list[str]]:
    """Names of the cases of each part."""
    return {part: [c.name for c in cases] for part, cases in parts._asdict().items()}


def _check_folders(options: TrainOptions) -> None:
    """Refuse files where folders have to be."""
    for name, path in (("output", options.output), ("cache", options.cache)):
        if path is not None and path.exists() and not path.is_dir():
            raise ConfigError(f"{name} must be a folder, but {path} is a file")


def _examine(
    options: TrainOptions, datalist: DataList, listener: Listener
) -> tuple[Split, tuple[Case, ...], list[Finding]]:
    """Split and audit; only the cases that are used are looked at."""
    parts, unlabelled = split_cases(options, datalist), unlabelled_cases(options, datalist)
    used = replace(
        datalist, training=(*parts.train, *parts.meta, *parts.validation), test=(), unlabelled=unlabelled
    )
    return parts, unlabelled, sound(used, parts=parts, spacing=options.spacing, listener=listener)


def _plan(
    options: TrainOptions, parts: Split, preprocessing: Preprocessing, unlabelled: tuple[Case, ...]
) -> _Plan:
    """Patch size and margin."""
    factor = downsampling(options.network, options.network_options)
    patch_size = options.patch_size or choose_patch_size(preprocessing.median_shape, factor)
    margin = choose_margin(patch_size, preprocessing.median_shape)
    return _Plan(options, parts, patch_size, (0, 0, 0) if options.method == "none" else margin, unlabelled)


def _carry_out(
    run: Run,
    plan: _Plan,
    datalist: DataList,
    preprocessing: Preprocessing,
    checkpoint: Mapping[str, Any] | None,
    listener: Listener,
) -> Run:
    """Preprocess, train, predict the validation cases, and write what remains."""
    options, parts = plan.options, plan.split
    cases = (*parts.train, *parts.meta, *parts.validation)
    listener(Progress("preparing", 0, len(cases), note=_told(_counts(plan))))
    items = cast(Any, volumes(datalist, cases, preprocessing, cache=options.cache, listener=listener))
    further = None
    if plan.unlabelled:
        further = volumes(datalist, plan.unlabelled, preprocessing, cache=options.cache, listener=listener)
    set_determinism(seed=options.seed)
    fit = Fit(run, options, preprocessing, plan.patch_size, plan.margin, listener)
    learned_from = len(parts.train) + len(parts.meta)
    train, meta, validation = (
        Subset(items, range(start, stop))
        for start, stop in pairwise([0, len(parts.train), learned_from, len(items)])
    )
    fit.run(
        train, validation, checkpoint, meta=meta if len(meta) else None, resampled=plan.resampled, unlabelled=further
    )
    run.save_model(
        fit.network, name=options.network, inputs=len(preprocessing.channels), outputs=preprocessing.num_outputs,
        options=options.network_options,
    )  # fmt: skip
    learned = fit.method.augmenters()
    if learned:
        augmenters.save(run.augmenters, learned)
    fit.save_policies()
    files = [run.validation / f"{c.name}.nii.gz" for c in parts.validation]
    predict_cases(
        fit.network, preprocessing, parts.validation, files, patch_size=plan.patch_size, precision=fit.precision,
        views=learned_views(run), listener=listener,
    )  # fmt: skip
    write_json(run.summary, fit.summary() | {"cases": _counts(plan)})
    return run


def _told(counts: Mapping[str, int]) -> str:
    """How the cases are split, in a sentence."""
    meta = f", {counts['meta']} to learn policies from (meta-validation)" if "meta" in counts else ""
    more = f"; {counts['unlabelled']} images without a label are learned from, too" if "unlabelled" in counts else ""
    total, train = sum(n for part, n in counts.items() if part != "unlabelled"), counts["train"]
    return f"{total} cases: {train} train the network{meta}, {counts['validation']} validate it{more}"


def _counts(plan: _Plan) -> dict[str, int]:
    """How many cases there are of each part, in an epoch; meta-validation is told where there is any."""
    counts = {part: len(cases) for part, cases in plan.split._asdict().items()}
    counts["train"] -= plan.resampled
    counts["meta"] += plan.resampled
    if plan.unlabelled:
        counts["unlabelled"] = len(plan.unlabelled)
    return counts if counts["meta"] else {part: n for part, n in counts.items() if part != "meta"}
