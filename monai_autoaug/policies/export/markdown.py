# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies as tables that people read."""

from __future__ import annotations

from collections.abc import Sequence

from monai_autoaug.policies.export.plan import Exported, Plan, amounts
from monai_autoaug.policies.policy_file import Policies

__all__ = ["to_markdown"]


def to_markdown(found: Plan, policies: Policies) -> Exported:
    """Tables of the probabilities by class, in order of execution, and of the views with their weights.

    >>> from monai_autoaug.policies import Policies, TrainingPolicy
    >>> from monai_autoaug.policies.export.plan import plan
    >>> policies = Policies(TrainingPolicy.preset("nnunet"))
    >>> print(to_markdown(plan(policies), policies).text.splitlines()[9])
    |  | rotate_dw_0_10 | 0 to 10 degrees, or the negative | 2.5 % | 2.5 % |
    """
    lines = ["# Learned augmentation policy", ""]
    if found.training is not None:
        lines += _training(found, policies)
    if found.test_time is not None:
        lines += _test_time(found)
    told = [f"| {_cell(k)} | {_cell(str(v))} |" for k, v in policies.provenance.items()]
    if told:
        lines += ["## Provenance", "", "| what | value |", "| --- | --- |", *told, ""]
    return Exported("\n".join(lines), ())


def _training(found: Plan, policies: Policies) -> list[str]:
    """One row an operation that may be drawn."""
    assert found.training is not None  # noqa: S101  # for the type checker
    seen = policies.seen
    places: dict[tuple[str, str], int] = {}
    for cascade in found.training.cascades:
        for operation in cascade.operations:
            places[cascade.name, operation.name] = len(places)
    heads = ["cascade", "operation", "amount", *found.classes]
    told = "A patch gets one operation of each cascade, in this order; quarter turns come after zoom and deformation."
    if len(found.classes) > 1:
        told += " It is drawn for the class of the patch's centre."
    lines = ["## While training", "", told]
    if seen is not None:
        lines[-1] += " In brackets the probability at the start; in bold what is decided."
    lines += ["", _row(heads), _row(["---"] * 3 + ["---:"] * len(found.classes))]
    for slot in found.slots:
        for number, row in enumerate(slot.rows):
            shares = []
            for k, p in enumerate(row.probabilities):
                place = places[slot.name, row.operation.name]
                start = "" if seen is None else f" ({100 * float(seen.start[k, place]):.1f} %)"
                bold = "**" if seen is not None and bool(seen.decided()[k, place]) else ""
                shares.append(f"{bold}{100 * p:.1f} %{bold}{start}")
            name = slot.name if number == 0 else ""
            lines.append(_row([name, row.operation.name, amounts(row.deed, row.operation.unit), *shares]))
    sides = found.laterality
    if sides is not None:
        pairs = ", ".join(f"{a} and {b}" for a, b in sides.pairs)
        lines += ["", f"Mirroring axis {sides.axis} exchanges the labels {pairs}." if sides.mirrors == "swap" else
                  f"Axis {sides.axis} is never mirrored, because of the labels {pairs}."]  # fmt: skip
    return [*lines, ""]


def _test_time(found: Plan) -> list[str]:
    """One row a view that is averaged."""
    policy = found.test_time
    assert policy is not None  # noqa: S101  # for the type checker
    what = {"volume": "whole volumes", "patch": "patches"}[policy.level]
    lines = ["## At test time", "", f"The {policy.average} of {len(found.views)} views of {what} are averaged.", "",
             _row(["view", "amount", "weight"]), _row(["---", "---", "---:"])]  # fmt: skip
    for view in found.views:
        told = amounts(view.deed, view.operation.unit)
        lines.append(_row([view.operation.name, told, f"{100 * view.weight:.1f} %"]))
    return [*lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Without what would end a cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
