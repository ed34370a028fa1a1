# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What has become of every operation of a training policy, as picture and terminal tell it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from monai_autoaug.policies import Policies
from monai_autoaug.policies.evidence import COLLAPSED

__all__ = ["COLLAPSED", "PolicyRow", "policy_rows", "verdict"]

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

    @property
    def collapsed(self) -> bool:
        """Whether its cascade has become as good as certain of it without evidence; a start near there is no collapse.

        >>> PolicyRow("all", "gamma", "no gamma", 0.97, 0.9, decided=False, no_op=False).collapsed
        True
        >>> PolicyRow("all", "gamma", "no gamma", 0.91, 0.9, decided=False, no_op=False).collapsed
        False
        """
        if self.start is None or self.decided or self.no_op or self.probability < COLLAPSED:
            return False
        return 1 - self.probability <= (1 - self.start) / 2  # what is left to chance has been halved at least


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


def verdict(rows: Sequence[PolicyRow]) -> tuple[str, bool]:
    """How many cascades are decided, and how many have become certain of one operation without that, in a sentence.

    Args:
        rows: of `policy_rows`, at least one.

    Returns:
        The sentence, and whether all is well: something is decided and nothing is certain that isn't.

    >>> one = PolicyRow("all", "gamma", "gamma_1.00_1.20", 0.95, 0.5, decided=False, no_op=False)
    >>> verdict([one])
    ('none of 1 cascade is decided; 1 collapsed onto an operation that is not decided', False)
    >>> verdict([PolicyRow("all", "gamma", "gamma_1.00_1.20", 0.95, 0.5, decided=True, no_op=False)])
    ('1 of 1 cascade decided; not decided: pale', True)
    """
    if all(row.start is None for row in rows):
        return "given, not learned: nothing is known of what helps", True
    number = len({row.cascade for row in rows})
    of = f"{number} cascade{'s' * (number != 1)}"
    decided = {row.cascade for row in rows if row.decided and not row.no_op}
    collapsed = {row.cascade for row in rows if row.collapsed}
    told = f"{len(decided)} of {of} decided; not decided: pale" if decided else f"none of {of} is decided"
    if collapsed:
        told += f"; {len(collapsed)} collapsed onto an operation that is not decided"
    return told, bool(decided) and not collapsed
