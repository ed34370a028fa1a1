# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What there is to export: operations in words, their probabilities in order of execution, and the views."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from monai_autoaug.errors import PolicyError
from monai_autoaug.policies.laterality import Laterality
from monai_autoaug.policies.policy_file import Policies
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms.catalogue import AXES, extra_cascades, operations_at_test_time, training_cascades
from monai_autoaug.transforms.registry import Operation

__all__ = ["Deed", "Exported", "Plan", "Row", "Slot", "View", "amounts", "deed", "plan"]

_NEVER = 5e-7  # a probability below it is none: it is written with six digits
_TURN = re.compile(r"rotate_([dhw])([dhw])")
# the words with which operations' names begin, the longer ones before what they begin with
_WORDS = ("scale", "rotate", "flip", "gamma", "inverted_gamma", "brightness_add", "brightness_multiply", "contrast",
          "blur", "sharpen", "noise", "low_resolution", "elastic", "bias_field", "gibbs", "channel_scale")  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A policy as another library's file.

    Args:
        text: the file's content.
        limits: what the file does otherwise than this package, one sentence each; the text has them too.
    """

    text: str
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Deed:
    """What an operation does, without this package's functions.

    Args:
        what: "identity", "scale", "rotate", "turn" (by 90 degrees), "flip", or the name of an operation on values.
        axes: spatial axes of it, counted from 0.
        low: smallest amount.
        high: largest amount.
        opposite: "none", "negative" or "reciprocal": with probability 1/2 in place of the amount.
        order: deeds are done by growing order.
    """

    what: str
    axes: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 0.0
    opposite: str = "none"
    order: int = 0


@dataclass(frozen=True)
class Row:
    """One operation of a cascade and how probable it is for each class of patches."""

    operation: Operation
    probabilities: tuple[float, ...]

    @property
    def deed(self) -> Deed:
        """What it does."""
        return deed(self.operation)


@dataclass(frozen=True)
class Slot:
    """A cascade without what is never drawn."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class View:
    """One of the views at test time that are averaged."""

    operation: Operation
    weight: float

    @property
    def deed(self) -> Deed:
        """What it does; its two amounts are the same."""
        return deed(self.operation)


@dataclass(frozen=True)
class Plan:
    """A policy file as exporters need it.

    Args:
        training: None: the file has no training-time policy.
        test_time: None: the file has no test-time policy.
        slots: cascades in the order in which a library that does one after the other has to have them.
        views: those that are averaged, the most probable one first.
    """

    training: TrainingPolicy | None
    test_time: TestTimePolicy | None
    slots: tuple[Slot, ...]
    views: tuple[View, ...]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        policy = self.training or self.test_time
        assert policy is not None  # noqa: S101  # for the type checker: a policy file has at least one
        return policy.spatial_dims

    @property
    def classes(self) -> tuple[str, ...]:
        """Of patches; none without a training-time policy."""
        return () if self.training is None else self.training.classes

    @property
    def laterality(self) -> Laterality | None:
        """Of the training-time policy."""
        return None if self.training is None else self.training.laterality

    @property
    def operations(self) -> dict[str, Deed]:
        """All operations that may be drawn, by name, without the identity."""
        rows = [row for slot in self.slots for row in slot.rows]
        return {row.operation.name: row.deed for row in rows if row.deed.what != "identity"}

    def whats(self) -> set[str]:
        """What the training-time policy may do."""
        return {found.what for found in self.operations.values()}


def deed(operation: Operation) -> Deed:
    """What an operation of the catalogue does.

    >>> deed(training_cascades()[1][4])
    Deed(what='turn', axes=(1, 2), low=90.0, high=90.0, opposite='negative', order=20)
    >>> deed(operations_at_test_time()[34])  # half a turn mirrors two axes
    Deed(what='flip', axes=(1, 2), low=0.0, high=0.0, opposite='none', order=20)
    """
    if operation.acts == "nothing":
        return Deed("identity")
    plane = _TURN.match(operation.name)
    axes = tuple(AXES.index(letter) for letter in plane.groups()) if plane else ()
    if operation.acts == "permutation" and operation.mirrors:
        return Deed("flip", operation.mirrors, order=operation.order)
    what = next(word for word in _WORDS if re.match(rf"{word}(_|$)", operation.name))
    what = "turn" if operation.acts == "permutation" else what
    return Deed(what, axes, operation.low, operation.high, operation.opposite, operation.order)


def plan(policies: Policies) -> Plan:
    """What there is to export.

    Args:
        policies: what `load` gave.

    Raises:
        PolicyError: an operation is not of the catalogue, and so its function can't be written down.

    >>> found = plan(Policies(TrainingPolicy.preset("nnunet")))
    >>> [slot.name for slot in found.slots][:5], found.slots[0].rows[0].probabilities
    (['rotS', 'rotL', 'rotF', 'scale', 'noise'], (0.9, 0.9))
    """
    training, test_time = policies.training, policies.test_time
    slots = () if training is None else _slots(training)
    views: tuple[View, ...] = ()
    if test_time is not None:
        operations, weights = test_time.top(test_time.z)
        views = tuple(View(o, w) for o, w in zip(operations, weights.tolist(), strict=True) if w > _NEVER)
        _refuse_foreign((v.operation for v in views), operations_at_test_time(test_time.spatial_dims))
    return Plan(training, test_time, slots, views)


def _slots(policy: TrainingPolicy) -> tuple[Slot, ...]:
    """Cascades by the order of their first operation that isn't the identity."""
    known = [*training_cascades(policy.spatial_dims), *extra_cascades().values()]
    _refuse_foreign((o for c in policy.cascades for o in c.operations), (o for c in known for o in c.operations))
    with torch.no_grad():
        shares = [policy.probabilities(name) for name in policy.classes]
    slots = []
    for place, cascade in enumerate(policy.cascades):
        table = torch.stack([s[place] for s in shares], 1).double().round(decimals=6).tolist()
        rows = [Row(o, tuple(p)) for o, p in zip(cascade.operations, table, strict=True) if max(p) > _NEVER]
        if any(row.deed.what != "identity" for row in rows):
            slots.append((min(o.order for o in cascade.operations[1:]), Slot(cascade.name, tuple(rows))))
    return tuple(slot for _, slot in sorted(slots, key=lambda found: found[0]))


def _refuse_foreign(operations: Iterable[Operation], known: Iterable[Operation]) -> None:
    """Names may be the catalogue's and the operation another one."""
    rows = {o.name: o for o in known}
    foreign = sorted({o.name for o in operations if o.acts != "nothing" and rows.get(o.name) != o})
    if foreign:
        raise PolicyError(
            f"operations that are not of this package can't be exported: {', '.join(foreign)}. To do: leave them out of"
            " the policy (option without), or apply it with monai_autoaug.policies.LearnedPolicyd"
        )


def amounts(found: Deed, unit: str) -> str:
    """How much of it, in words.

    >>> amounts(Deed("rotate", (0, 2), 0.0, 10.0, "negative"), "degrees")
    '0 to 10 degrees, or the negative'
    >>> amounts(Deed("gamma", (), 1.1, 1.1), "exponent")
    '1.1 (exponent)'
    """
    if found.what in ("identity", "flip"):
        return ""
    number = f"{found.low:.4g}" if found.low == found.high else f"{found.low:.4g} to {found.high:.4g}"
    other = "" if found.opposite == "none" else f", or the {found.opposite}"
    return f"{number} {unit}{other}" if unit in ("degrees", "voxels") else f"{number} ({unit}){other}"
