# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What has become of every operation of a training policy, as picture and terminal tell it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from monai_autoaug.policies import Policies

__all__ = ["PolicyRow", "policy_rows", "range_of"]

_RANGE = re.compile(r"(?P<what>.*?)_(?P<low>\d[\d.]*)(_(?P<high>\d[\d.]*))?$")
_ROUNDED = 1e-4  # what files and logits in float32 may lose


@dataclass(frozen=True)
class PolicyRow:
    """One operation for one class of patches.

    Args:
        kind: the class.
        cascade: its cascade.
        operation: its name; of a cascade's identity "no" and the cascade's name.
        probability: now.
        start: its probability at the start; None: it isn't known.
        decided: whether its advantage over the others of its cascade is beyond doubt (`policies.Seen.decided`).
        no_op: whether the network can't see it.
    """

    kind: str
    cascade: str
    operation: str
    probability: float
    start: float | None
    decided: bool
    no_op: bool

    @property
    def rose(self) -> bool:
        """Whether it has become more probable.

        >>> PolicyRow("all", "gamma", "no gamma", 0.8, 0.5, decided=True, no_op=False).rose
        True
        """
        return self.start is not None and self.probability > self.start + _ROUNDED


@torch.no_grad()
def policy_rows(found: Policies, no_ops: Collection[str] = ()) -> list[PolicyRow]:
    """All operations of a training policy, class by class, in the order of the policy.

    Args:
        found: what `policies.load` gave.
        no_ops: names of operations that the network can't see (`policies.no_ops`).

    Returns:
        Nothing where the file has no training policy.

    >>> from monai_autoaug.policies import TrainingPolicy
    >>> rows = policy_rows(Policies(training=TrainingPolicy.preset("nnunet")))
    >>> len(rows), rows[0].operation, rows[0].decided
    (124, 'no scale', False)
    """
    policy, seen = found.training, found.seen
    if policy is None:
        return []
    decided = None if seen is None else seen.decided()
    rows = []
    for k, name in enumerate(policy.classes):
        shares, place = torch.cat(policy.probabilities(name)).tolist(), 0
        for cascade in policy.cascades:
            for operation in cascade.operations:
                nothing = operation.acts == "nothing"
                rows.append(
                    PolicyRow(
                        name, cascade.name, f"no {cascade.name}" if nothing else operation.name, shares[place],
                        None if seen is None else float(seen.start[k, place]),
                        decided is not None and bool(decided[k, place]), operation.name in no_ops and not nothing,
                    )
                )  # fmt: skip
                place += 1
    return rows


def range_of(names: Sequence[str]) -> tuple[str, list[str]]:
    """What operations have in common, and the rest of their names, as ranges where they are.

    >>> range_of(["rotate_hw_0_10", "rotate_hw_90"])
    ('rotate_hw', ['0–10', '90'])
    >>> range_of(["blur_0.4_0.6", "sharpen_0.8_1.0"]), range_of(["flip_d"])
    (('', ['blur 0.4–0.6', 'sharpen 0.8–1.0']), ('', ['flip_d']))
    """
    found = [_RANGE.match(name) for name in names]
    common = {m["what"] if m else name for m, name in zip(found, names, strict=True)}
    alone = len(common) == 1 and all(found)
    short = []
    for m, name in zip(found, names, strict=True):
        numbers = "" if m is None else "\N{EN DASH}".join(n for n in (m["low"], m["high"]) if n)
        short.append(name if m is None else numbers if alone else f"{m['what']} {numbers}")
    return (common.pop() if alone else "", short)
