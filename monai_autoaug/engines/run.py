# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training run from a folder of NIfTI files to a trained network: read, audit, split, prepare, train, predict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from monai.utils import set_determinism
from torch.utils.data import Subset

from monai_autoaug import augmenters, policies
from monai_autoaug.data import DataList, read_datalist
from monai_autoaug.data.audit import Finding, findings_to_json
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines import fingerprints
from monai_autoaug.engines.claims import check_writable, claimed
from monai_autoaug.engines.fit import Fit
from monai_autoaug.engines.folder import Run, read_json, write_json
from monai_autoaug.engines.options import TrainOptions, find_device, find_precision
from monai_autoaug.engines.parts import split_cases, unlabelled_cases
from monai_autoaug.engines.plan import Plan, check_folders, check_unused, decide, examine
from monai_autoaug.engines.prediction import learned_views, predict_cases
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.volumes import volumes
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.writing import write_text

__all__ = ["resume", "train"]


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
    check_folders(options)
    with claimed(run.folder):
        return _train(run, options, listener)


def _train(run: Run, options: TrainOptions, listener: Listener) -> Run:
    """All of `train`, in a folder that is ours."""
    if options.cache is not None:
        check_writable("cache", options.cache)
    check_unused(run)
    datalist = read_datalist(options.data)
    plan, preprocessing, findings = decide(options, datalist, listener)
    known = fingerprints.of_cases(plan.used, listener=listener)
    _begin(run, plan, preprocessing, findings, known)
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
        CheckpointError: the data set has changed since the run began, be it in the content of one file
            (`engines.fingerprints`), or the checkpoint is damaged.
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
    parts, unlabelled = split_cases(options, datalist), unlabelled_cases(options, datalist)
    plan = Plan(options, parts, tuple(config["patch_size"]), tuple(config["margin"]), unlabelled)
    if plan.names != {"meta": []} | config["split"]:  # older runs know of no meta-validation
        raise CheckpointError(f"{run.folder}: the data set no longer splits into the cases that this run began with")
    if [case.name for case in unlabelled] != config.get("unlabelled", []):
        raise CheckpointError(f"{run.folder}: the unlabelled images are no longer those that this run began with")
    if run.fingerprints.exists():  # in runs of earlier versions there is none
        fingerprints.check_cases(read_json(run.fingerprints), plan.used, run.folder, listener=listener)
    examine(options, datalist, parts, unlabelled, listener)
    preprocessing = run.load_preprocessing()
    checkpoint = run.load_checkpoint() if run.checkpoint.exists() else None
    return _carry_out(run, plan, datalist, preprocessing, checkpoint, listener)


def _begin(
    run: Run, plan: Plan, preprocessing: Preprocessing, findings: list[Finding], known: Mapping[str, Any]
) -> None:
    """Write what makes a folder a run, the configuration last; or nothing, if one file can't be written."""
    try:
        preprocessing.save(run.preprocessing)
        write_text(run.audit, findings_to_json(findings) + "\n")
        write_json(run.fingerprints, known)
        write_json(run.config, plan.to_dict())
    except BaseException:
        for file in (run.config, run.fingerprints, run.audit, run.preprocessing):
            file.unlink(missing_ok=True)
        raise


def _carry_out(
    run: Run,
    plan: Plan,
    datalist: DataList,
    preprocessing: Preprocessing,
    checkpoint: Mapping[str, Any] | None,
    listener: Listener,
) -> Run:
    """Preprocess, train, predict the validation cases, and write what remains."""
    options, parts = plan.options, plan.split
    cases = plan.used["cases"]
    listener(Progress("preparing", 0, len(cases), note=plan.told()))
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
    predicted = _predict_validation(run, plan, fit, preprocessing, listener)
    write_json(run.summary, fit.summary() | {"cases": plan.counts, "prediction": predicted})
    return run


def _predict_validation(
    run: Run, plan: Plan, fit: Fit, preprocessing: Preprocessing, listener: Listener
) -> dict[str, Any]:
    """Predict the validation cases; where views were learned, without them too, which tells what they are worth.

    Returns:
        How many views each prediction is of, and wall-clock seconds of all cases, also without views.
    """
    views, cases = learned_views(run), plan.split.validation
    told: dict[str, float] = {}
    for key, folder, around in (
        ("seconds", run.validation, views), ("seconds_without_views", run.plain_validation, None)
    ):  # fmt: skip
        if key == "seconds" or views is not None:
            files, began = [folder / f"{c.name}.nii.gz" for c in cases], time.perf_counter()
            predict_cases(
                fit.network, preprocessing, cases, files, patch_size=plan.patch_size, precision=fit.precision,
                views=around, listener=listener,
            )  # fmt: skip
            told[key] = round(time.perf_counter() - began, 3)
    test_time = policies.load(run.policy).test_time if views is not None else None
    return {"views": 1 if test_time is None else test_time.z, **told}
