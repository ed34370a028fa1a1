# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a reader of a report should beware of: collapses, bounds, classes without foreground, too little of anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_autoaug.evaluation import LEAST_CASES
from monai_autoaug.methods.collapse import WARN_BELOW, collapse_warnings
from monai_autoaug.report.source import Source, finite

__all__ = ["cautions", "counted", "grouped"]

_RARE = 0.02  # share of the patches below which a class of a policy hardly learns


def cautions(source: Source, content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Everything that is wrong or doubtful, the worst first.

    Args:
        source: the training.
        content: what the report says otherwise: ``policy``, ``generators``, ``views``.

    Returns:
        For each: ``severity`` ("serious" or "note"), ``text`` and ``todo``, what can be done about it, or "".
    """
    found = [*_unfinished(source), *_of_policy(source, content), *_of_generators(source, content),
             *_of_structures(source), *_of_views(content), *_of_run(source)]  # fmt: skip
    known: dict[str, dict[str, str]] = {}
    for caution in found:
        known.setdefault(caution["text"], caution)
    return sorted(known.values(), key=lambda caution: caution["severity"] != "serious")


def _caution(severity: str, text: str, todo: str = "") -> dict[str, str]:
    return {"severity": severity, "text": text[:1].upper() + text[1:], "todo": todo}


def _unfinished(source: Source) -> list[dict[str, str]]:
    if source.ended:
        return []
    text = "This training has not ended: what is told is of its last finished epoch"
    return [_caution("serious", text, "train --resume (nnU-Net: --c), and report again")]


def _of_policy(source: Source, content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Collapsed cascades, and a policy of which nothing is decided."""
    policy = content.get("policy")
    if not policy or not policy["learned"]:
        return []
    found = []
    for name in policy["classes"]:
        rows = [row for row in policy["collapsed"] if row["kind"] == name]
        if rows:
            told = ", ".join(f"{r['operation']} ({r['start']:.2f} to {r['probability']:.2f})" for r in rows)
            found.append(_caution(
                "serious",
                f"collapsed policy: in {counted(len(rows), 'cascade')} class {name} has become as good as certain of an"
                f" operation without evidence that it helps: {told}",
                "a smaller learning rate of the policy, more meta-validation patches, or a floor for probabilities",
            ))  # fmt: skip
    if not any(policy["risen"].values()):
        found.append(_caution(
            "note",
            "no operation is decided: what became more probable may have done so by chance",
            "more updates: more epochs, more meta-validation cases, larger meta batches",
        ))  # fmt: skip
    last = source.log[-1] if source.log else {}
    for name in policy["classes"]:
        share = finite(last.get(f"share_{name}"))
        if share is not None and share < _RARE:
            found.append(_caution(
                "serious", f"class {name} was {share:.1%} of the patches: hardly anything could be learned of it",
                "smaller patches, or loss_region",
            ))  # fmt: skip
    return found


def _of_generators(source: Source, content: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the last line of the log tells of a collapse, and folding that was measured."""
    last = source.log[-1] if source.log else {}
    figures = {k: float(v) for k, v in last.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    kinds = [g["kind"] for g in content.get("generators", ())]
    found = [_caution("serious", text, _todo(text)) for text in collapse_warnings(figures, kinds)]
    for generator in content.get("generators", ()):
        folding = next((f for f in generator["figures"] if f["name"] == "folding voxels"), None)
        told = finite(last.get(f"{generator['kind']}_jacobian_minimum"))
        if folding and folding["bad"] and not (told is not None and told <= WARN_BELOW["jacobian_minimum"]):
            text = f"{generator['kind']}: the field folds in {folding['value']:.0f} voxels ({folding['hint']})"
            found.append(_caution("serious", text, _todo(text)))
    return found


def _todo(text: str) -> str:
    """What can be done about a collapse."""
    if "folds" in text:
        return "a smaller amplitude, or a larger magnitude penalty"
    if "bounds" in text:
        return "a larger magnitude penalty, or wider bounds if stronger augmentation is wanted"
    if "discriminator" in text:
        return "a smaller learning rate of the discriminator, or weaker augmentation"
    return "a smaller magnitude penalty, or a larger learning rate of the generators" if "collapsed" in text else ""


def _of_structures(source: Source) -> list[dict[str, str]]:
    """Structures that no case has, or that are never found; findings of the audit on labels."""
    found, evaluation = [], source.evaluation
    for finding in (source.audit or {}).get("findings", ()):
        if finding.get("check") in ("absent_class", "no_foreground"):
            text = finding["message"] + (f" ({finding['came']})" if finding.get("came") else "")
            found.append(_caution("serious", f"class without foreground: {text}", finding.get("remedy", "")))
    if evaluation is None:
        return found
    for k, name in enumerate(evaluation.classes):
        values = evaluation.values["dice"][:, k]
        if np.isnan(values).all():
            text = f"class without foreground: no validation case has {name}, in its label or predicted"
            found.append(_caution("serious", text, "another split, or labels that have it"))
        elif float(np.nanmax(values)) == 0:
            text = f"structure {name} was never found in a validation case: its Dice is 0 in all of them"
            found.append(_caution("serious", text))
    if 0 < len(evaluation.cases) < LEAST_CASES:
        text = f"{len(evaluation.cases)} validation cases are too few for an interval"
        found.append(_caution("note", text, "--validation-cases"))
    return found


def _of_views(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Views that do harm."""
    views = content.get("views")
    gain = views and views["gain"]
    if gain and gain["high"] is not None and gain["high"] < 0:
        text = "averaging the learned views makes the predictions of the validation cases worse"
        return [_caution("serious", text, "predict without them (--z 0)")]
    return []


def _of_run(source: Source) -> list[dict[str, str]]:
    """What the training itself has warned of at its end, and skipped updates."""
    return [_caution("serious", text) for text in source.warnings]


def counted(number: int, word: str) -> str:
    """A number of things.

    >>> counted(1, "case"), counted(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {word}{'s' * (number != 1)}"


def grouped(audit: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Findings of an audit, those of one check together: how many cases, the first message, what to do.

    Args:
        audit: what ``audit.json`` holds.

    >>> one = {"check": "empty_mask", "severity": "warn", "case": "a", "message": "is empty", "remedy": "look at it"}
    >>> grouped({"findings": [one, one | {"case": "b"}]})[0]["cases"]
    2
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    findings: Sequence[Mapping[str, Any]] = (audit or {}).get("findings", ())
    for finding in findings:
        key = finding["severity"], finding["check"]
        group = groups.setdefault(
            key,
            {"severity": key[0], "check": key[1].replace("_", " "), "message": finding["message"],
             "expected": finding.get("expected", ""), "came": finding.get("came", ""),
             "remedy": finding.get("remedy", ""), "of": set()},
        )  # fmt: skip
        group["of"].add(finding.get("case", ""))
    order = ("refuse", "warn", "note")
    rows = sorted(groups.values(), key=lambda group: order.index(group["severity"]))
    return [{k: v for k, v in row.items() if k != "of"} | {"cases": len(row["of"] - {""})} for row in rows]
