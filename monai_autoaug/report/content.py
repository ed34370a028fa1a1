# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""All that a report says of a training, as JSON values: nothing is drawn here, and nothing but this is drawn.

A report's JSON has the keys: ``format``, ``version``, ``host``, ``method``, ``about`` (what the method learns),
``verdict``, ``against`` (differences from other trainings), ``dice`` (of each structure, with its interval, and of each
case), ``facts``, ``cautions``, ``policy``, ``views``, ``generators``, ``curves``, ``audit``, ``provenance`` and
``missing`` (what the run has not kept). Names of cases and paths are in it only if they were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_autoaug import __version__, augmenters
from monai_autoaug.evaluation import LEAST_CASES
from monai_autoaug.report.caution import cautions, counted, grouped
from monai_autoaug.report.content_policy import policy_content, views_content
from monai_autoaug.report.curves import TOPICS, Series, Topic, series_of
from monai_autoaug.report.measure import DRAWS, logged_figures, measured_figures
from monai_autoaug.report.privacy import Veil
from monai_autoaug.report.source import Source, finite
from monai_autoaug.report.verdict import Baseline, chooses_epoch, differences, verdict_of

__all__ = ["FORMAT", "VERSION", "collect"]

FORMAT, VERSION = "monai_autoaug.report", 1
_ABOUT = {
    "adversarial": "Affine maps, deformations and changes of appearance that make the segmentation harder, kept"
    " realistic by a discriminator and small by a penalty (Gao et al. 2021).",
    "task_driven": "Deformations and changes of intensity, learned from the task and from unlabelled images (Chaitanya"
    " et al. 2019).",
    "joint_policy": "Which operations each class of patches is augmented with, and which views are averaged at test"
    " time, learned from meta-validation cases (Li et al. 2023).",
    "bilevel": "A distribution of transformations that lowers the loss on cases set apart (Mounsaveng et al. 2021).",
    "general_adversarial": "An affine map and a U-Net against a class and a dissimilarity discriminator (Mounsaveng et"
    " al. 2019).",
    "random": "Nothing: transformations within the same bounds, drawn uniformly. The control for what is learned.",
    "none": "Nothing: plain training.",
}  # fmt: skip
_FACTS = (
    "cases", "epochs", "iterations", "batch_size", "patch_size", "spacing", "orientation", "channels", "normalisation",
    "parameters", "device", "precision", "seconds", "cpu_seconds", "gpu_memory_bytes",
)  # fmt: skip
_POLICY_TOPICS = (
    Topic("Entropy of the policies", "1: as good as a uniform choice, 0: certain", "entropy", after=True,
          bounds=(0.0, 1.0)),
    Topic("Loss on meta-validation patches", "lower is better", "meta_loss"),
    Topic("Gain of the views on meta-validation patches", "soft Dice; below 0 they do harm", "views_gain",
          bounds=(0.0, 0.0)),
)  # fmt: skip
_LATER_TOPICS = (
    Topic("Loss, transformed over untransformed", "above 1: the task is made harder", "loss_ratio", bounds=(1.0, None)),
    Topic("Rotation (degrees)", "mean over draws", "rotation", bounds=(0.0, None)),
)
_VOXELS, _MM = "Mean displacement (voxels)", "Mean displacement (mm)"


def collect(source: Source, against: Sequence[Baseline] = (), *, names: bool = False) -> dict[str, Any]:
    """All that a report says.

    Args:
        source: the training (`reading.read_source`).
        against: trainings to compare it with.
        names: tell names of cases and paths.

    Returns:
        JSON values, see this module.

    Raises:
        DataError: a training in ``against`` has other structures or other cases.
    """
    veil = _veil(source, names)
    rows = differences(source, against) if source.evaluation is not None else []
    content: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "host": source.host, "method": source.method,
        "about": _ABOUT.get(source.method, ""), "structures": list(source.structures),
        "verdict": veil(verdict_of(source, rows)), "against": veil(rows), "dice": _dice(source, veil),
        "facts": _facts(source),
        "policy": policy_content(source), "views": views_content(source), "generators": _generators(source),
        "curves": _curves(source), "audit": _audit(source, veil),
    }  # fmt: skip
    content["cautions"] = veil(cautions(source, content))
    content["provenance"] = _provenance(source, names)
    content["missing"] = _missing(source, content)
    return content


def _veil(source: Source, names: bool) -> Veil:
    """What hides names and paths, unless they are asked for."""
    known = [path for path in (source.folder, source.data) if path is not None]
    paths = {str(form) for path in known for form in (path, path.absolute(), path.resolve())}
    return Veil(source.names, paths=[path for path in paths if len(path) > 2], lifted=names)


def _dice(source: Source, veil: Veil) -> dict[str, Any] | None:
    """Mean, interval and cases of each structure, and the Dice of every case."""
    evaluation = source.evaluation
    if evaluation is None:
        return None
    rows = [
        {"name": name, "mean": finite(value.mean), "low": finite(value.low), "high": finite(value.high), "cases": count,
         "all": name == "mean" and number == len(evaluation.classes)}
        for number, (name, value, count) in enumerate(evaluation.rows("dice"))
    ]  # fmt: skip
    order = [case for case in source.names if case in evaluation.cases] or list(evaluation.cases)
    return {
        "rows": rows, "least_cases": LEAST_CASES,
        "cases": [
            {"case": veil.case(case),
             "dice": {n: finite(float(v)) for n, v in zip(evaluation.classes,
                      evaluation.values["dice"][evaluation.cases.index(case)], strict=True)}}
            for case in order
        ],
        "lacking": int(np.isnan(evaluation.values["dice"]).sum()),
    }  # fmt: skip


def _facts(source: Source) -> dict[str, Any]:
    """What the training took; None for what isn't known."""
    return {key: source.facts.get(key) for key in _FACTS} | {"epoch_chosen": chooses_epoch(source.method)}


def _generators(source: Source) -> list[dict[str, Any]]:
    """What each learned augmenter does, measured on the kept patch; without one, as far as the log tells."""
    if source.augmenters is None:
        return []
    last = source.log[-1] if source.log else {}
    found = []
    for name, augmenter in augmenters.load(source.augmenters).items():
        measured = [] if source.kept is None else measured_figures(augmenter, source.kept.patch)
        found.append(
            {"kind": name, "draws": DRAWS if measured else 0, "figures": [*measured, *logged_figures(last, name)]}
        )
    return found


def _curves(source: Source) -> list[dict[str, Any]]:
    """The course of the training: a diagram a topic."""
    policy = None if source.policies is None else source.policies.training
    classes = () if policy is None else policy.classes
    found = []
    for topic in (*TOPICS[:2], *_POLICY_TOPICS, *TOPICS[2:], *_LATER_TOPICS):
        series, title = series_of(source.log, topic), topic.title
        if topic.figure == "entropy":
            series = {name: s for name, s in series.items() if name in (*classes, "views")}
        if topic.figure == "displacement_mean":
            series, title = _in_mm(source, series, title)
        if series:
            curves = [{"name": name, "epochs": list(epochs), "values": [finite(v) for v in values]}
                      for name, (epochs, values) in series.items()]  # fmt: skip
            found.append({
                "title": title, "hint": topic.hint, "figure": topic.figure, "bounds": list(topic.bounds),
                "series": curves,
            })  # fmt: skip
    return found


def _in_mm(source: Source, series: Series, title: str) -> tuple[Series, str]:
    """Displacements are logged in voxels; with cubic voxels they are as many mm."""
    size = source.spacing
    if not source.facts.get("spacing") or max(size) > 1.01 * min(size):
        return series, title
    return {name: (epochs, [v * size[0] for v in values]) for name, (epochs, values) in series.items()}, _MM


def _audit(source: Source, veil: Veil) -> dict[str, Any] | None:
    if source.audit is None:
        return None
    groups = [{k: veil(v) for k, v in group.items()} for group in grouped(source.audit)]
    return {"counts": source.audit["counts"], "groups": groups}


def _provenance(source: Source, names: bool) -> dict[str, Any]:
    """Where the results come from."""
    veil = _veil(source, names)
    told: dict[str, Any] = {
        "report_version": __version__, "versions": dict(source.versions),
        "options": veil({k: v for k, v in source.options.items() if v not in ({}, [], "")}),
        "data_fingerprint": source.fingerprint, "policy_hash": source.policy_hash,
    }  # fmt: skip
    data = source.data if names else None
    return told | {"folder": str(source.folder) if names else None, "data": None if data is None else str(data)}


def _missing(source: Source, content: Mapping[str, Any]) -> list[str]:
    """What the training has not kept, so that the report can't tell it."""
    found = []
    learned = content["policy"] is not None or source.augmenters is not None
    if learned and source.kept is None:
        found.append("No training patch was kept (samples.pt), so there are no pictures of the augmentation")
    if content["policy"] is not None and not source.course:
        found.append("Probabilities were not kept by epoch (policy.jsonl)")
    if source.audit is None:
        found.append("No audit of the data: nnU-Net's trainers make none; monai-autoaug check DATA does")
    if content["views"] is not None and content["views"]["gain"] is None:
        found.append("The validation cases were not predicted without the views, so what these gain there is not known")
    if source.facts.get("device") != "cuda":
        found.append("Peak memory is told of GPUs only")
    elif not source.facts.get("gpu_memory_bytes"):
        found.append("Peak memory was not kept")
    if source.evaluation is not None and content["dice"] and content["dice"]["lacking"]:
        number = content["dice"]["lacking"]
        text = f"{counted(number, 'value')} of Dice not defined: the structure is neither in the label nor predicted"
        found.append(text)
    return found
