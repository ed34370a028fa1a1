# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The policies that a training begins with, made from the options of `JointPolicy`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Task
from monai_autoaug.policies import Laterality, Policies, TestTimePolicy, TrainingPolicy, load, rand_augment
from monai_autoaug.policies.rand_augment import Magnitude

__all__ = ["Classes", "Given", "Sides", "given_policies", "training_start", "views_start"]

Classes = Literal["foreground", "labels", "all"]
Sides = Laterality | Sequence[Sequence[int]] | None
Given = TrainingPolicy | Policies | str | Path | None


def given_policies(policy: Given) -> Policies:
    """What the option ``policy`` of `JointPolicy` stands for: itself, or what a file holds; without it nothing.

    Raises:
        PolicyError: the file can't be read.
        ConfigError: there is no training policy.

    >>> given_policies(None)
    Policies(training=None, test_time=None, provenance={}, seen=None)
    """
    if policy is None or isinstance(policy, TrainingPolicy):
        return Policies(policy)
    made = policy if isinstance(policy, Policies) else load(policy)
    if made.training is None:
        where = "what was given" if isinstance(policy, Policies) else policy
        raise ConfigError(f"policy: {where} holds no training policy; give another file")
    return made


def training_start(
    task: Task,
    *,
    preset: str,
    classes: Classes,
    extra: Sequence[str],
    without: Sequence[str],
    laterality: Sides,
    floor: float,
    policy: TrainingPolicy | None,
    magnitude: Magnitude | None,
    learns: bool,
) -> TrainingPolicy:
    """The training policy on the task's device.

    Args:
        task: what the host owns.
        preset: see `JointPolicy`, as all that follows.
        classes: of patches.
        extra: cascades.
        without: cascades and operations.
        laterality: pairs of labels.
        floor: smallest probability of an operation.
        policy: in place of all that.
        magnitude: of its operations.
        learns: whether the policy will learn.

    Raises:
        ConfigError: an option is out of range, or the policy could never move.
    """
    if policy is None:
        # a floor is for what learns; without one "none" stays what its name says
        least = 0.0 if preset == "none" and not learns else floor
        policy = TrainingPolicy.preset(
            preset, _classes(task, classes), spatial_dims=task.spatial_dims, extra=extra, without=without,
            laterality=laterality, floor=least,
        )  # fmt: skip
    _check_fits(policy, task)
    made = policy
    sides = Laterality.of(laterality, task.spatial_dims)
    if sides is not None and sides != made.laterality:
        raise ConfigError(
            f"policy: its laterality is {made.laterality}, the option laterality says {sides}; leave the option out, or"
            " give a policy that was learned with it"
        )
    if magnitude is not None:
        made = rand_augment(made, magnitude)
    if learns:
        shares = torch.cat([p for name in made.classes for p in made.probabilities(name)])
        _check_movable("training", shares, "set floor above 0, choose another preset, or set learn_training: false")
    return made.to(task.device)


def views_start(
    task: Task, preset: str, laterality: Sides, *, learns: bool, given: TestTimePolicy | None = None
) -> TestTimePolicy:
    """The test-time policy on the task's device: views that keep a patch's size, since patches is what it sees.

    Args:
        task: what the host owns.
        preset: where it starts.
        laterality: pairs of labels.
        learns: whether the policy will learn.
        given: where it starts instead, as far as its views keep a patch's size here.

    Raises:
        ConfigError: there is no such preset, no given view is possible here, or the policy could never move.
    """
    made = TestTimePolicy.preset(
        preset, spatial_dims=task.spatial_dims, patch_size=task.patch_size, level="patch", regions=task.regions,
        laterality=laterality,
    )  # fmt: skip
    if given is not None:
        made = _restricted(given, made)
    if learns:
        remedy = "set test_time_preset to another one, or learn_test_time or test_time to false"
        _check_movable("test-time", made.probabilities(), remedy)
    return made.to(task.device)


def _restricted(given: TestTimePolicy, possible: TestTimePolicy) -> TestTimePolicy:
    """The views of a policy that are possible here, with the logits that they have."""
    known, found = {o.name: k for k, o in enumerate(given.operations)}, possible.operations
    rows = [o for o in found if o.name in known]
    if given.spatial_dims != possible.spatial_dims or not rows:
        raise ConfigError(
            f"policy: none of its {len(known)} views, of {given.spatial_dims}D images, is possible for the"
            f" {possible.spatial_dims}D patches of this training; set test_time_preset to begin with one"
        )
    logits = given.logits.detach()[[known[o.name] for o in rows]]
    return TestTimePolicy(
        rows, logits, spatial_dims=possible.spatial_dims, level=possible.level, average=given.average,
        regions=possible.regions, laterality=possible.laterality, z=min(given.z, len(rows)),
    )  # fmt: skip


def _check_fits(policy: TrainingPolicy, task: Task) -> None:
    """A policy of other axes or labels would fail in the middle of training, or augment by another label's."""
    if policy.spatial_dims != task.spatial_dims:
        raise ConfigError(
            f"policy: it is of {policy.spatial_dims}D patches, those of this training are {task.spatial_dims}D; give"
            " one that such a training has learned"
        )
    classes, labels = tuple(policy.classes), tuple(task.label_names)
    if len(classes) > 1 and classes != ("background", "foreground") and labels and classes != labels:
        raise ConfigError(
            f"policy: its classes are {', '.join(classes)}, the labels here are {', '.join(labels)}; give a policy of"
            " these, of background and foreground, or of one class"
        )


def _check_movable(what: str, probabilities: Tensor, remedy: str) -> None:
    """What is never drawn is never judged, so its probability stays 0 for ever."""
    if bool(((probabilities == 0) | (probabilities == 1)).all()):
        raise ConfigError(
            f"the {what} policy would never learn anything: its start is certain (preset 'none'), and nothing can be"
            f" found out about what is never drawn; {remedy}"
        )


def _classes(task: Task, classes: str) -> tuple[str, ...]:
    if classes == "labels":
        if not task.label_names:
            raise ConfigError("classes 'labels' needs the labels' names, which this host doesn't know")
        return task.label_names
    known = {"foreground": ("background", "foreground"), "all": ("all",)}
    if classes not in known:
        raise ConfigError(f"classes must be one of foreground, labels, all, got {classes!r}")
    return known[classes]
