# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A report warns of what is wrong, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_autoaug.evaluation import Evaluation
from monai_autoaug.policies import Evidence, Policies, Sampled, TrainingPolicy
from monai_autoaug.report.caution import cautions, grouped
from monai_autoaug.report.content_policy import policy_content
from monai_autoaug.report.source import Source


def source(**given: Any) -> Source:
    values = given.pop("dice", np.full((6, 2), 0.8))
    evaluation = Evaluation(tuple(f"c{k}" for k in range(len(values))), ("liver", "tumour"), {"dice": values})
    return Source("MONAI", Path("run"), "adversarial", ("liver", "tumour"), given.pop("log", ()), evaluation, **given)


def told(given: Source, **content: Any) -> list[tuple[str, str]]:
    return [(caution["severity"], caution["text"]) for caution in cautions(given, content)]


def policy(logit: float, *, evidence: bool = False) -> Source:
    """A policy whose first class has moved towards mirroring along the first axis."""
    training = TrainingPolicy.preset("nnunet")
    seen, start = Evidence(training), training.logits.detach().clone()
    if evidence:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.stack([torch.randint(len(c), (200,), generator=generator) for c in training.cascades], 1)
        h = torch.randn(200, generator=generator) - 2.0 * drawn[:, 4]
        seen.add(Sampled(h, torch.zeros(200, dtype=torch.long), drawn))
    place = [o.name for c in training.cascades for o in c.operations].index("flip_d")
    with torch.no_grad():
        training.logits[0, place] += logit
    return source(policies=Policies(training, None, {}, seen.seen(start)))


def test_a_sound_training_is_not_warned_of() -> None:
    given = policy(1.0, evidence=True)
    assert told(given, policy=policy_content(given)) == []
    assert told(source()) == []


def test_a_collapsed_policy_is_named_by_class_and_operation() -> None:
    given = policy(6.0)
    (first, second) = told(given, policy=policy_content(given))
    assert first[0] == "serious"
    assert first[1].startswith("Collapsed policy: in 1 cascade class background")
    assert "mirror D (0.50 to 1.00)" in first[1]
    assert second == ("note", "No operation is decided: what became more probable may have done so by chance")
    certain = policy(6.0, evidence=True)
    assert told(certain, policy=policy_content(certain)) == []  # it is decided


def test_a_class_without_patches_has_learned_nothing() -> None:
    given = policy(1.0, evidence=True)
    row = {"epoch": 1, "share_background": 0.995, "share_foreground": 0.005}
    named = Source(**{**vars(given), "log": [row]})
    (warning,) = told(named, policy=policy_content(named))
    assert warning == ("serious", "Class foreground was 0.5% of the patches: hardly anything could be learned of it")


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"affine_saturation": 0.6}, "60% of its parameters are at their bounds"),
        ({"affine_displacement_mean": 0.001}, "collapsed to the identity"),
        ({"affine_jacobian_minimum": -0.2}, "the field folds"),
        ({"affine_noise_share": 0.1}, "nearly alike"),
        ({"discriminator_accuracy": 0.99}, "no longer tells the generators anything"),
    ],
)
def test_collapsed_generators_and_magnitudes_at_their_bounds(figures: dict[str, float], words: str) -> None:
    generator = {"kind": "affine", "figures": []}
    given = source(log=[{"epoch": 1, **figures}], warnings=())
    ((severity, text),) = told(given, generators=[generator])
    assert severity == "serious"
    assert words in text
    assert told(given, generators=[]) == [] or "discriminator" in text


def test_folding_that_was_measured_is_told_once() -> None:
    folding = {"name": "folding voxels", "value": 12.0, "bad": True, "hint": "of 100 in 3 draws"}
    generators = [{"kind": "affine", "figures": [folding]}]
    assert told(source(), generators=generators) == [
        ("serious", "Affine: the field folds in 12 voxels (of 100 in 3 draws)")
    ]
    log = [{"epoch": 1, "affine_jacobian_minimum": -0.2}]
    assert len(told(source(log=log), generators=generators)) == 1


def test_classes_without_foreground() -> None:
    values = np.full((6, 2), 0.8)
    values[:, 1] = np.nan
    assert told(source(dice=values))[0][1].startswith("Class without foreground: no validation case has tumour")
    values[:, 1] = 0
    assert told(source(dice=values))[0][1].startswith("Structure tumour was never found")
    finding = {"check": "absent_class", "severity": "warn", "case": "", "message": "no case has tumour",
               "came": "0 of 9", "remedy": "look at the labels"}  # fmt: skip
    (found,) = cautions(source(audit={"findings": [finding]}), {})
    assert found["text"] == "Class without foreground: no case has tumour (0 of 9)"
    assert found["todo"] == "look at the labels"


def test_few_cases_harmful_views_and_unfinished_trainings() -> None:
    assert told(source(dice=np.full((3, 2), 0.8))) == [("note", "3 validation cases are too few for an interval")]
    views = {"gain": {"mean": -0.02, "low": -0.03, "high": -0.01}}
    assert "makes the predictions of the validation cases worse" in told(source(), views=views)[0][1]
    assert told(source(), views={"gain": {"mean": -0.02, "low": -0.03, "high": 0.01}}) == []
    assert "has not ended" in told(source(ended=False))[0][1]


def test_what_the_run_warned_of_comes_once_and_what_is_serious_first() -> None:
    given = source(dice=np.full((3, 2), 0.8), warnings=("affine: 60% of its parameters are at their bounds",),
                   log=[{"epoch": 1, "affine_saturation": 0.6}])  # fmt: skip
    found = told(given, generators=[{"kind": "affine", "figures": []}])
    assert [severity for severity, _ in found] == ["serious", "note"]


def test_findings_are_grouped_by_check() -> None:
    one = {"check": "empty_mask", "severity": "warn", "case": "a", "message": "is empty", "remedy": "look"}
    audit = {"findings": [{**one, "severity": "note", "check": "wide_label"}, one, {**one, "case": "b"}]}
    assert [(g["severity"], g["check"], g["cases"]) for g in grouped(audit)] == [
        ("warn", "empty mask", 2), ("note", "wide label", 1),
    ]  # fmt: skip
    assert grouped(None) == []
