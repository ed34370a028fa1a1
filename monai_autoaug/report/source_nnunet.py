# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a fold's folder of nnU-Net says of its training; nnU-Net itself is not needed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_autoaug import policies
from monai_autoaug.errors import DataError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods.sample_file import read_samples
from monai_autoaug.reading import MALFORMED
from monai_autoaug.report.curves import read_log
from monai_autoaug.report.source import Source, file_hash

__all__ = ["is_fold", "read_fold", "read_summary"]

_LOG, _FACTS = "autoaug.jsonl", "autoaug.json"
# of policy.json, where an older training has left no facts
_ORIGIN = ("method", "trainer", "plans", "configuration", "fold", "seed", "data_fingerprint")


def is_fold(folder: Path) -> bool:
    """Whether a folder is a fold's of one of this package's trainers."""
    return (folder / _LOG).is_file()


def read_fold(folder: Path) -> Source:
    """A training by one of this package's nnU-Net trainers.

    Raises:
        DataError: a file can't be read.
    """
    facts = _json(folder / _FACTS) if (folder / _FACTS).is_file() else {}
    log = [line | {"epoch": int(line["epoch"]) + 1} for line in read_log(folder / _LOG)]
    policy = folder / "policy.json"
    learned = policies.load(policy) if policy.is_file() else None
    origin = {} if learned is None else {n: learned.provenance[n] for n in _ORIGIN if n in learned.provenance}
    known = origin | facts
    structures = tuple(known.get("structures") or (n for _, n in _labels(folder)))
    evaluation = read_summary(folder)
    told = ("trainer", "plain_trainer", "plans", "configuration", "fold", "seed")
    options = dict(facts.get("options", {})) | {name: known[name] for name in told if name in known}
    samples, augmenters = folder / "samples.pt", folder / "augmenters.pt"
    ended = "seconds" in facts or (folder / "checkpoint_final.pth").is_file()
    last = log[-1] if log else {}
    course = folder / "policy.jsonl"
    return Source(
        "nnU-Net", folder, str(known.get("method") or _method(folder)), structures, log, evaluation, None,
        {"epochs": len(log)} | {k: v for k, v in facts.items() if v is not None},
        {k: v for k, v in options.items() if v not in (None, {}, [])}, facts.get("versions", _versions(learned)),
        {"views": 1 if learned is None or learned.test_time is None else learned.test_time.z},
        None, learned, file_hash(policy), (), read_log(course) if course.is_file() else [],
        augmenters if augmenters.is_file() else None, read_samples(samples) if samples.is_file() else None,
        tuple(facts.get("warnings", last.get("warnings", ()))), evaluation.cases if evaluation else (), None,
        str(known.get("data_fingerprint") or ""), ended,
    )  # fmt: skip


def read_summary(folder: Path) -> Evaluation | None:
    """nnU-Net's ``validation/summary.json`` of a fold as an evaluation; None: there is none.

    Raises:
        DataError: it can't be read.
    """
    file = folder / "validation" / "summary.json"
    if not file.is_file():
        return None
    content = _json(file)
    try:
        rows = content["metric_per_case"]
        keys = list(rows[0]["metrics"]) if rows else []
        cases = tuple(_case(row["prediction_file"]) for row in rows)
        values = np.array([[_number(row["metrics"][k].get("Dice")) for k in keys] for row in rows], dtype=np.float64)
    except MALFORMED as error:
        raise DataError(f"is no summary of nnU-Net ({type(error).__name__}: {error})", file=file) from error
    names = {str(value): name for value, name in _labels(folder)}
    return Evaluation(
        cases, tuple(names.get(k, f"label {k}") for k in keys), {"dice": values.reshape(len(cases), len(keys))}
    )


def _labels(folder: Path) -> list[tuple[Any, str]]:
    """Label values, or tuples of them, as nnU-Net's summary writes them, with their names."""
    file = folder.parent / "dataset.json"
    labels: Mapping[str, Any] = _json(file).get("labels", {}) if file.is_file() else {}
    rows = [(tuple(v) if isinstance(v, list) else v, name) for name, v in labels.items() if name != "ignore"]
    return [(value, name) for value, name in rows if value not in (0, (0,))]


def _case(file: str) -> str:
    r"""A case's name, from the path of its prediction, which may be of another system.

    >>> _case("C:\\results\\case_1.nii.gz"), _case("/results/case_1.nrrd")
    ('case_1', 'case_1')
    """
    return re.split(r"[/\\]", file)[-1].removesuffix(".gz").rsplit(".", 1)[0]


def _method(folder: Path) -> str:
    """The method, from the trainer's name that nnU-Net gives the folder."""
    trainer = folder.parent.name.split("__")[0]
    known = {"Adversarial": "adversarial", "TaskDriven": "task_driven", "Bilevel": "bilevel", "Random": "random",
             "General": "general_adversarial", "None": "none"}  # fmt: skip
    return next((method for end, method in known.items() if trainer.endswith(f"AutoAug{end}")), "joint_policy")


def _versions(learned: policies.Policies | None) -> dict[str, str]:
    if learned is None:
        return {}
    return {n: str(learned.provenance[n]) for n in ("monai_autoaug", "torch", "monai") if n in learned.provenance}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read ({error})", file=file, remedy="validate the fold again") from error
    if not isinstance(content, dict):
        raise DataError("is no JSON object", file=file, came=type(content).__name__)
    return content
