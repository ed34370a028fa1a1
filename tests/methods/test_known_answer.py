# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies find what each class needs, which only meta-validation shows, and find nothing where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from known_answer import BACKGROUND, FOREGROUND, run, unseen_dice

from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.policies import Sampled, TrainingPolicy
from monai_autoaug.policies.presets import identity_probabilities
from monai_autoaug.transforms import training_cascades


def answers(method: JointPolicy) -> tuple[float, float]:
    """Probabilities of the right operations: of background's and of foreground's."""
    background, foreground = (method.training.probabilities(c)[0] for c in ("background", "foreground"))
    return float(background[BACKGROUND].detach()), float(foreground[FOREGROUND].detach())


class Shuffled(JointPolicy):
    """What samples are worth is dealt anew within each class: everything is as it was but what there is to learn."""

    def _improve(self, drawn: Sampled) -> None:
        values = drawn.values.clone()
        for k in range(2):
            rows = torch.nonzero(drawn.classes == k)[:, 0]
            values[rows] = values[rows[torch.randperm(len(rows))]]
        super()._improve(replace(drawn, values=values))


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.long) for k in range(1, 5))])
def test_each_class_finds_the_operation_that_it_needs(seed: int) -> None:
    background, foreground = answers(run(seed))
    assert background > 0.8
    assert foreground > 0.8


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.long) for k in range(1, 5))])
def test_without_the_meta_gradient_nothing_is_found(seed: int) -> None:
    """A policy becomes peaked all the same, now and then at what is right: not in both classes as the learned one."""
    assert min(answers(run(seed, method=Shuffled))) < 0.8


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_adam_looks_ahead_as_well(seed: int) -> None:
    """Its step is not proportional to the gradient."""
    assert min(answers(run(seed, adam=True, lr=1e-3))) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_two_learns_from_pooled_samples(seed: int) -> None:
    """nnU-Net's batch: one patch of each class; the network learns as much from a sample as with ten."""
    method = run(seed, steps=400, rate=0.2, lr=0.003, train=2, meta=8, pool=5)
    assert min(answers(method)) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_it_is_found_among_all_cascades(seed: int) -> None:
    """From the nnU-Net preset, where the right operations have 0.025 each: more samples are needed to draw them."""
    policy = TrainingPolicy(training_cascades(), identity=identity_probabilities("nnunet"))
    start = [_all(policy, c) for c in ("background", "foreground")]
    method = run(seed, steps=150, rate=0.1, lr=0.01, policy=policy, train=80)
    found = [_all(method.training, c) for c in ("background", "foreground")]
    assert max(start) < 0.03
    assert min(found) > 0.3


def _all(policy: TrainingPolicy, name: str) -> float:
    """Probability of the right operation among all cascades."""
    wanted = {"background": "rotate_dh_90", "foreground": "rotate_dw_90"}[name]
    for cascade, p in zip(policy.cascades, policy.probabilities(name), strict=True):
        for operation, value in zip(cascade.operations, p.tolist(), strict=True):
            if operation.name == wanted:
                return float(value)
    raise AssertionError(wanted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_unseen_cases_gain(seed: int) -> None:
    """After more iterations: Dice on patches like those of meta-validation, against the uniform policy's."""
    common: dict[str, Any] = {"steps": 250, "rate": 0.1, "lr": 0.03}
    learned = unseen_dice(run(seed, **common))
    uniform = unseen_dice(run(seed, learn_training=False, **common))
    assert learned > uniform + 0.15
