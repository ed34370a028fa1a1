# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What has become of policies after an epoch, as a line of ``policy.jsonl``; both hosts write the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy

__all__ = ["course_interval", "course_line", "course_scalars"]

_LINES = 50  # of a training, at least


def course_interval(epochs: int) -> int:
    """Epochs between two lines, so that a long training leaves no large file.

    >>> course_interval(40), course_interval(1000)
    (1, 20)
    """
    return max(1, epochs // _LINES)


def course_line(epoch: int, learned: Mapping[str, nn.Module]) -> dict[str, Any]:
    """One JSON object: probabilities and entropies of all policies.

    Args:
        epoch: that has ended.
        learned: what `Method.policies` gives.

    Returns:
        ``epoch``; ``training``: by class and cascade the ``entropy`` (a share of the largest: 1 where nothing is
        decided) and the ``probabilities`` by operation; ``test_time``: the ``entropy``, the ``probabilities`` by view,
        and ``top``: the views that would be averaged with their ``weights``.

    >>> line = course_line(3, {"training": TrainingPolicy.preset("uniform", ["all"])})
    >>> line["epoch"], line["training"]["all"]["mirrorS"]["probabilities"]
    (3, {'identity': 0.5, 'flip_d': 0.5})
    """
    row: dict[str, Any] = {"epoch": epoch}
    training, test_time = learned.get("training"), learned.get("test_time")
    if isinstance(training, TrainingPolicy):
        row["training"] = _training(training)
    if isinstance(test_time, TestTimePolicy):
        row["test_time"] = _test_time(test_time)
    return row


@torch.no_grad()
def _training(policy: TrainingPolicy) -> dict[str, Any]:
    """By class and cascade: entropy, and probabilities by operation."""
    rows: dict[str, Any] = {}
    for name, entropy in zip(policy.classes, policy.entropy().tolist(), strict=True):
        rows[name] = {
            cascade.name: {
                "entropy": e,
                "probabilities": dict(zip((o.name for o in cascade.operations), p.tolist(), strict=True)),
            }
            for cascade, e, p in zip(policy.cascades, entropy, policy.probabilities(name), strict=True)
        }
    return rows


@torch.no_grad()
def _test_time(policy: TestTimePolicy) -> dict[str, Any]:
    """Entropy, probabilities by view, and the views that would be averaged."""
    p = policy.probabilities()
    entropy = -float(torch.special.xlogy(p, p).sum()) / math.log(len(p)) if len(p) > 1 else 0.0
    views, weights = policy.top(policy.z)
    return {
        "entropy": entropy,
        "probabilities": dict(zip((o.name for o in policy.operations), p.tolist(), strict=True)),
        "top": [o.name for o in views],
        "weights": weights.tolist(),
    }


def course_scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard draws of a line, by name.

    >>> dict(course_scalars({"epoch": 1, "training": {"all": {"mine": {"entropy": 0.5, "probabilities": {"a": 1.0}}}}}))
    {'policy_entropy/all/mine': 0.5, 'policy/all/mine/a': 1.0}
    """
    for kind, cascades in row.get("training", {}).items():
        for cascade, content in cascades.items():
            yield f"policy_entropy/{kind}/{cascade}", content["entropy"]
            yield from ((f"policy/{kind}/{cascade}/{o}", p) for o, p in content["probabilities"].items())
    if "test_time" in row:
        yield "policy_entropy/views", row["test_time"]["entropy"]
        yield from ((f"policy/views/{o}", p) for o, p in row["test_time"]["probabilities"].items())
