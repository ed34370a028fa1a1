# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""RandAugment's one choice, the magnitude of all operations, as a training policy.

Source: paper 002, section IV-B 3: "we keep the data augmentation probability and replace the operations of the same
type with different magnitudes, yielding RandAugment-S, RandAugment-M and RandAugment-L". Where a type has more than
three magnitudes (the zoom's five), these are the smallest, the middle one and the largest.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms.registry import Cascade, Operation

__all__ = ["Magnitude", "rand_augment"]

Magnitude = Literal["small", "medium", "large"]


def rand_augment(policy: TrainingPolicy, magnitude: Magnitude) -> TrainingPolicy:
    """A policy whose operations are all small, all of medium size or all large, each type as probable as before.

    Operations of one type are those of a cascade that differ in nothing but the range of their magnitude: blur and
    sharpening are two types of one cascade. What has no range, such as mirroring and quarter turns, stays as it is.

    Args:
        policy: where the probabilities come from; it is left as it is.
        magnitude: which operation of each type stays.

    Returns:
        A new policy on the same device, whose other operations are gone rather than improbable, so that its file tells
        what was applied, and so that it could learn.

    Raises:
        ConfigError: there is no such magnitude.

    >>> small = rand_augment(TrainingPolicy.preset("nnunet"), "small")
    >>> [o.name for o in small.cascades[1].operations]
    ['identity', 'rotate_hw_0_10', 'rotate_hw_90']
    >>> small.probabilities("foreground")[1].detach()
    tensor([0.9000, 0.0750, 0.0250])
    """
    if magnitude not in get_args(Magnitude):
        raise ConfigError(f"magnitude must be one of {', '.join(get_args(Magnitude))}, got {magnitude!r}")
    cascades, columns = [], []
    first = 0  # of the cascade's columns in the logits
    for cascade in policy.cascades:
        groups = [_chosen(cascade, members, magnitude) for members in _types(cascade)]
        groups.sort(key=lambda group: group[0])  # the catalogue's order
        cascades.append(replace(cascade, operations=tuple(cascade[kept] for kept, _ in groups)))
        columns += [[first + k for k in members] for _, members in groups]
        first += len(cascade)
    made = TrainingPolicy(
        cascades, policy.classes, spatial_dims=policy.spatial_dims, temperature=policy.temperature, floor=policy.floor,
        laterality=policy.laterality,
    ).to(policy.logits)  # fmt: skip
    with torch.no_grad():
        made.logits.copy_(torch.stack([policy.logits[:, some].logsumexp(1) for some in columns], 1))
        made.constrain()
    return made


def _types(cascade: Cascade) -> list[list[int]]:
    """Places of the operations of each type, those without a range alone."""
    found: dict[object, list[int]] = {}
    for place, o in enumerate(cascade.operations):
        key = (o.kind, o.acts, o.unit, o.opposite, o.neutral) if o.low < o.high else place
        found.setdefault(key, []).append(place)
    return list(found.values())


def _chosen(cascade: Cascade, members: list[int], magnitude: Magnitude) -> tuple[int, list[int]]:
    """The member of a type that stays, and all of them."""
    ordered = sorted(members, key=lambda place: _strength(cascade[place]))
    place = {"small": 0, "medium": (len(ordered) - 1) // 2, "large": -1}[magnitude]
    return ordered[place], members


def _strength(operation: Operation) -> float:
    """How far the middle of its range is from what changes nothing; a Gaussian of no end sharpens nothing."""
    middle = (operation.low + operation.high) / 2
    neutral = 0.0 if operation.neutral is None else operation.neutral
    return abs(middle - neutral) if math.isfinite(neutral) else -middle
