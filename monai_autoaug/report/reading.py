# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reading the folder of a training: a run of the MONAI host, or a fold of nnU-Net's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_autoaug import policies
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods.sample_file import read_samples
from monai_autoaug.report.curves import read_log
from monai_autoaug.report.source import Source, file_hash
from monai_autoaug.report.source_nnunet import is_fold, read_fold, read_summary

__all__ = ["read_evaluation", "read_source"]

# options that say how a training went, and neither where its files are nor whose images they hold
_TOLD = (
    "method", "method_options", "network", "network_options", "epochs", "iterations", "batch_size", "learning_rate",
    "weight_decay", "meta_split", "validation_interval", "normalisation", "bias_correction", "seed", "split_seed",
    "precision",
)  # fmt: skip


_TOOK = (
    "epochs", "iterations", "parameters", "device", "precision", "seconds", "cpu_seconds", "gpu_memory_bytes", "cases",
)  # fmt: skip


def read_source(folder: str | Path) -> Source:
    """Read the folder of a run of ``monai-autoaug train``, or of a fold of nnU-Net with one of this package's trainers.

    Raises:
        ConfigError: it is neither.
    """
    folder = Path(folder)
    if is_fold(folder):
        return read_fold(folder)
    if not (folder / "config.json").is_file() or not (folder / "preprocessing.json").is_file():
        what = "it holds no config.json and no autoaug.jsonl" if folder.is_dir() else "there is no such folder"
        raise ConfigError(
            f"{folder}: is no training run ({what}). To do: give the folder that monai-autoaug train wrote, or a fold"
            " (fold_0) of one of nnU-Net's trainers nnUNetTrainerAutoAug*"
        )
    return _read_run(Run(folder))


def read_evaluation(folder: str | Path) -> Evaluation | None:
    """The evaluation of the validation cases of a run, or of a fold of any nnU-Net trainer; None: there is none.

    Raises:
        DataError: it can't be read.
    """
    run = Run(Path(folder))
    if run.evaluation.is_file():
        return Evaluation.load(run.evaluation)
    return read_summary(run.folder)


def _read_run(run: Run) -> Source:
    """A run of the MONAI host."""
    config, preprocessing = read_json(run.config), run.load_preprocessing()
    options, ended = config["options"], run.summary.exists()
    summary = read_json(run.summary) if ended else {}
    log = read_log(run.log) if run.log.exists() else []
    learned = policies.load(run.policy) if run.policy.exists() else None
    names = preprocessing.label_names if preprocessing.regions is not None else preprocessing.label_names[1:]
    facts = {name: summary[name] for name in _TOOK if name in summary}
    known = {name: options[name] for name in ("epochs", "batch_size")} | {
        "iterations": options["epochs"] * options["iterations"], "patch_size": config["patch_size"],
        "spacing": list(preprocessing.spacing), "orientation": preprocessing.orientation,
        "channels": list(preprocessing.channels), "normalisation": list(preprocessing.normalisation),
    }  # fmt: skip
    cases = {part: len(of_part) for part, of_part in config["split"].items() if of_part}
    held = [name for part in config["split"].values() for name in part] + list(config.get("unlabelled", ()))
    return Source(
        "MONAI", run.folder, options["method"], tuple(names), log,
        Evaluation.load(run.evaluation) if run.evaluation.exists() else None,
        Evaluation.load(run.plain_evaluation) if run.plain_evaluation.exists() else None,
        {"cases": cases} | known | facts, {n: options[n] for n in _TOLD if n in options}, config["versions"],
        summary.get("prediction", {}), read_json(run.audit) if run.audit.exists() else None,
        learned, file_hash(run.policy), tuple(summary.get("no_ops", ())), _lines(run.course),
        run.augmenters if run.augmenters.exists() else None,
        read_samples(run.samples) if run.samples.exists() else None,
        tuple(summary.get("warnings", log[-1].get("warnings", ()) if log else ())), tuple(held), Path(options["data"]),
        file_hash(run.preprocessing), ended,
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_log(path) if path.exists() else []
