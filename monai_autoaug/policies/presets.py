# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where policies start: probabilities like those that nnU-Net and DeepMedic augment with, or all alike, or nothing.

Source: paper 002's official code, its presets 2 (nnU-Net), 3 (DeepMedic) and 0 (uniform) of the training policy, and
2, 4 and 0 of the test-time policy. Cascades beyond the paper start as rarely used ones do there. "none" is no
augmentation at all, the paper's first baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.registry import Cascade, Operation

__all__ = ["PRESETS", "identity_probabilities", "view_logits", "training_logits"]

_NEVER = -1000.0  # a logit beside 1: its probability is 0 in any precision, and policy.json can hold it
_BEYOND = ("elastic", "bias_field", "gibbs", "channel_scale")
# probability of each cascade's identity; the rest is split evenly among its operations
_TRAINING: dict[str, dict[str, float]] = {
    "nnunet": {
        "scale": 0.8, "rotF": 0.9, "rotS": 0.9, "rotL": 0.9, "mirrorS": 0.5, "mirrorF": 0.5, "mirrorA": 0.5,
        "gamma": 0.7, "invgamma": 0.9, "badd": 0.95, "bmul": 0.85, "contrast": 0.85, "sharpen": 0.8, "noise": 0.9,
        "simulow": 0.9, **dict.fromkeys(_BEYOND, 0.9),
    },
    "deepmedic": {
        "scale": 0.8, "rotF": 0.8, "rotS": 0.8, "rotL": 0.8, "mirrorS": 0.5, "mirrorF": 0.95, "mirrorA": 0.95,
        "gamma": 0.95, "invgamma": 0.95, "badd": 0.85, "bmul": 0.95, "contrast": 0.95, "sharpen": 0.95, "noise": 0.95,
        "simulow": 0.95, **dict.fromkeys(_BEYOND, 0.95),
    },
    "uniform": {},
}  # fmt: skip
_TRAINING["none"] = dict.fromkeys(_TRAINING["nnunet"], 1.0)
# views that share four fifths of the probability: nnU-Net's eight mirrorings (a half turn is two of them), DeepMedic's
# four; by their places among the 84
_TEST_TIME: dict[str, tuple[int, ...]] = {
    "nnunet": (0, 29, 30, 31, 34, 37, 40, 83),
    "deepmedic": (0, 29, 30, 31),
    "uniform": (),
    "none": (0,),
}
PRESETS = tuple(_TRAINING)


def _known(name: str) -> str:
    if name not in _TRAINING:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return name


def identity_probabilities(name: str) -> dict[str, float]:
    """The identity's probability in each cascade; cascades that are not in it start uniform.

    Args:
        name: "nnunet", "deepmedic", "uniform" or "none".

    Raises:
        ConfigError: there is no such preset.

    >>> identity_probabilities("nnunet")["gamma"], identity_probabilities("uniform")
    (0.7, {})
    """
    return dict(_TRAINING[_known(name)])


def training_logits(cascade: Cascade, identity: float | None) -> Tensor:
    """Logits (operations,) of a cascade that leaves a sample alone with probability ``identity``.

    Args:
        cascade: its first operation is the identity.
        identity: above 0, at most 1, where the others are never drawn; None: all operations are alike.

    Raises:
        ConfigError: the probability is out of range.

    >>> from monai_autoaug.transforms import training_cascades
    >>> training_logits(training_cascades()[0], 0.8).softmax(0)
    tensor([0.8000, 0.0400, 0.0400, 0.0400, 0.0400, 0.0400])
    """
    if identity is None:
        return torch.zeros(len(cascade))
    if not 0 < identity <= 1:
        raise ConfigError(f"cascade {cascade.name}: the identity's probability must be in (0, 1], got {identity}")
    others = len(cascade) - 1
    rest = _NEVER if identity == 1 else 1 + math.log((1 - identity) / (others * identity))
    return torch.tensor([1.0] + [rest] * others)


def view_logits(operations: Sequence[Operation], name: str) -> Tensor:
    """Logits (operations,) of the views at test time.

    Args:
        operations: from `operations_at_test_time`, all or some of them.
        name: "nnunet", "deepmedic", "uniform" or "none", which is the image as it is.

    Raises:
        ConfigError: there is no such preset.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> view_logits(operations_at_test_time(), "nnunet").softmax(0)[[0, 1, 83]]
    tensor([0.1000, 0.0026, 0.1000])
    """
    chosen = [o.index in _TEST_TIME[_known(name)] for o in operations]
    count = sum(chosen)
    if count in (0, len(chosen)):
        return torch.zeros(len(chosen))
    rest = _NEVER if name == "none" else 1 + math.log(0.2 / (len(chosen) - count) / (0.8 / count))
    return torch.tensor([1.0 if c else rest for c in chosen])
