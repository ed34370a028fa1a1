# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies in words and numbers, and policies again from these; `policy_file` brings them to disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.errors import PolicyError
from monai_autoaug.policies.evidence import Seen
from monai_autoaug.policies.laterality import Laterality
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms.catalogue import extra_cascades, operations_at_test_time, training_cascades
from monai_autoaug.transforms.registry import Cascade, Operation

__all__ = ["build_seen", "build_test_time", "build_training", "describe_test_time", "describe_training"]


def _numbers(x: Tensor, digits: int | None = None) -> list[float]:
    values: list[float] = x.detach().double().cpu().tolist()
    return values if digits is None else [round(v, digits) for v in values]


def _laterality(known: Laterality | None) -> dict[str, Any] | None:
    if known is None:
        return None
    return {"pairs": [list(pair) for pair in known.pairs], "axis": known.axis, "mirrors": known.mirrors}


def describe_training(policy: TrainingPolicy, seen: Seen | None = None) -> dict[str, Any]:
    """What ``policy.json`` says of a training-time policy: operations with ranges, and what each class learned.

    Args:
        policy: what to describe.
        seen: what is known of its operations; None: nothing is said of that.

    >>> describe_training(TrainingPolicy.preset("nnunet"))["cascades"][4]["operations"][1]["probability"]
    {'background': 0.5, 'foreground': 0.5}
    """
    logits = {name: _numbers(row) for name, row in zip(policy.classes, policy.logits, strict=True)}
    shares = {name: _numbers(torch.cat(policy.probabilities(name)), 6) for name in policy.classes}
    cascades, place = [], 0
    for cascade in policy.cascades:
        rows = []
        for operation in cascade.operations:
            row: dict[str, Any] = {"name": operation.name}
            if operation.acts != "nothing":
                row |= {"range": list(operation.range), "unit": operation.unit, "opposite": operation.opposite}
            row["probability"] = {name: shares[name][place] for name in policy.classes}
            row["logit"] = {name: logits[name][place] for name in policy.classes}
            if seen is not None:
                row |= _describe_seen(seen, policy.classes, place)
            rows.append(row)
            place += 1
        cascades.append({"name": cascade.name, "operations": rows})
    return {
        "spatial_dims": policy.spatial_dims, "classes": list(policy.classes), "temperature": policy.temperature,
        "floor": policy.floor, "laterality": _laterality(policy.laterality), "cascades": cascades,
    }  # fmt: skip


def _describe_seen(seen: Seen, classes: Sequence[str], place: int) -> dict[str, Any]:
    """Of one operation: its probability at the start, and by class what speaks for it, where that is known."""
    known = {
        name: {"advantage": round(float(seen.advantage[k, place]), 6), "standard_error": round(error, 6)}
        for k, name in enumerate(classes)
        if math.isfinite(error := float(seen.error[k, place]))
    }
    start = {name: round(float(seen.start[k, place]), 6) for k, name in enumerate(classes)}
    return {"start": start} | ({"evidence": known} if known else {})


def describe_test_time(policy: TestTimePolicy) -> dict[str, Any]:
    """What ``policy.json`` says of a test-time policy: its views in the order of the catalogue.

    >>> describe_test_time(TestTimePolicy.preset("nnunet"))["views"][1]["magnitude"]
    1.05
    """
    views = []
    for operation, logit, share in zip(
        policy.operations, _numbers(policy.logits), _numbers(policy.probabilities(), 6), strict=True
    ):
        row: dict[str, Any] = {"name": operation.name}
        if operation.acts != "nothing":
            row |= {"magnitude": operation.low, "unit": operation.unit}
        views.append(row | {"probability": share, "logit": logit})
    return {
        "spatial_dims": policy.spatial_dims, "level": policy.level, "average": policy.average,
        "regions": policy.regions, "views_averaged": policy.z, "laterality": _laterality(policy.laterality),
        "views": views,
    }  # fmt: skip


def build_training(described: Mapping[str, Any], cascades: Sequence[Cascade] = ()) -> TrainingPolicy:
    """The policy that `describe_training` has described.

    Args:
        described: as the schema says.
        cascades: where operations of one's own are found.

    Raises:
        PolicyError: an operation is unknown, has another range here, or a probability is not that of its logit.
        ConfigError: what no policy can be made of.

    >>> build_training(describe_training(TrainingPolicy.preset("uniform", ("all",)))).classes
    ('all',)
    """
    dims = int(described["spatial_dims"])
    known = {c.name: c for c in (*training_cascades(dims), *extra_cascades().values(), *cascades)}
    rows = [row for c in described["cascades"] for row in c["operations"]]
    _refuse_unknown(
        [row["name"] for row in rows],
        {o.name for c in known.values() for o in c.operations} | {"identity"},
        "training.cascades", "give what is yours as cascades= (what is yours can't be exported)",
    )  # fmt: skip
    operations = {o.name: o for c in known.values() for o in c.operations if o.acts != "nothing"}
    made = []
    for c in described["cascades"]:
        first = known[c["name"]][0] if c["name"] in known else Operation("identity", cascade=c["name"])
        members = [operations.get(row["name"], first) for row in c["operations"]]
        for member, row in zip(members, c["operations"], strict=True):
            _compare(member, row, f"training.cascades, {c['name']}")
        made.append(Cascade(c["name"], tuple(members)))
    policy = TrainingPolicy(
        made, described["classes"], spatial_dims=dims, temperature=described["temperature"],
        floor=described["floor"], laterality=_sides(described["laterality"]),
    )  # fmt: skip
    count = sum(len(c) for c in policy.cascades)
    if count != len(rows):
        raise PolicyError(
            f"field training.cascades: names {len(rows)} operations, of which its own laterality allows {count}"
        )
    if any(set(row[kind]) != set(policy.classes) for row in rows for kind in ("logit", "probability")):
        names = ", ".join(policy.classes)
        raise PolicyError(f"field training.cascades: expected logits and probabilities of the classes {names} alone")
    for number, name in enumerate(policy.classes):
        _fill(policy.logits[number], [row["logit"][name] for row in rows])
        _check_shares(
            torch.cat(policy.probabilities(name)), [row["probability"][name] for row in rows], rows, f"class {name}"
        )
    return policy


def build_seen(described: Mapping[str, Any]) -> Seen | None:
    """What `describe_training` has said of a policy's operations; None: nothing.

    Args:
        described: as the schema says.

    Raises:
        PolicyError: it is said of some operations or classes only.

    >>> build_seen(describe_training(TrainingPolicy.preset("uniform"))) is None
    True
    """
    rows, classes = [row for c in described["cascades"] for row in c["operations"]], described["classes"]
    if not any("start" in row or "evidence" in row for row in rows):
        return None
    table = torch.full((3, len(classes), len(rows)), torch.inf, dtype=torch.float64)
    table[1] = 0
    for place, row in enumerate(rows):
        evidence = row.get("evidence", {})
        if set(row.get("start", ())) != set(classes) or not set(evidence) <= set(classes):
            raise PolicyError(
                f"field training.cascades, {row['name']}: expected start of the classes {', '.join(classes)}, and"
                " evidence of no others. To do: write the file anew, or remove start and evidence from all operations"
            )
        for k, name in enumerate(classes):
            table[0, k, place] = row["start"][name]
            if name in evidence:
                table[1, k, place] = evidence[name]["advantage"]
                table[2, k, place] = evidence[name]["standard_error"]
    return Seen(*table)


def build_test_time(described: Mapping[str, Any]) -> TestTimePolicy:
    """The policy that `describe_test_time` has described.

    Args:
        described: as the schema says.

    Raises:
        PolicyError: a view is unknown, has another magnitude here, or a probability is not that of its logit.
        ConfigError: what no policy can be made of.

    >>> len(build_test_time(describe_test_time(TestTimePolicy.preset("uniform"))).operations)
    84
    """
    dims, rows = int(described["spatial_dims"]), described["views"]
    known = {o.name: o for o in operations_at_test_time(dims)}
    _refuse_unknown([row["name"] for row in rows], set(known), "test_time.views", "")
    for row in rows:
        _compare(known[row["name"]], row, "test_time.views")
    policy = TestTimePolicy(
        [known[row["name"]] for row in rows], spatial_dims=dims, level=described["level"], average=described["average"],
        regions=described["regions"], laterality=_sides(described["laterality"]), z=described["views_averaged"],
    )  # fmt: skip
    if len(policy.operations) != len(rows):
        raise PolicyError("field test_time.views: names views that its own laterality does not allow")
    _fill(policy.logits, [row["logit"] for row in rows])
    _check_shares(policy.probabilities(), [row["probability"] for row in rows], rows, "test_time")
    return policy


def _sides(described: Mapping[str, Any] | None) -> Laterality | None:
    return None if described is None else Laterality(**described)


def _fill(row: Tensor, values: Sequence[float]) -> None:
    with torch.no_grad():
        row.copy_(torch.tensor(values, dtype=torch.float64))


def _refuse_unknown(names: Iterable[str], known: set[str], where: str, remedy: str) -> None:
    missing = sorted(set(names) - known)
    if missing:
        some = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise PolicyError(
            f"field {where}: names operations that this version does not have: {some}. To do: use the version of"
            f" monai_autoaug that wrote the file{' or ' + remedy if remedy else ''}"
        )


def _compare(operation: Operation, row: Mapping[str, Any], where: str) -> None:
    """See that an operation does here what the file says of it."""
    if operation.acts == "nothing":
        return
    here = {
        "range": list(operation.range), "unit": operation.unit, "opposite": operation.opposite,
        "magnitude": operation.low,
    }  # fmt: skip
    for name, value in here.items():
        if name in row and row[name] != value:
            raise PolicyError(
                f"field {where}, {operation.name}, {name}: expected {value}, came {row[name]}. To do: an operation's"
                " range belongs to its name and can't be edited; use the version of monai_autoaug that wrote the file"
            )


def _check_shares(here: Tensor, there: Sequence[float], rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """See that nobody has edited a probability and believes that it counts."""
    for share, said, row in zip(here.tolist(), there, rows, strict=True):
        if abs(share - said) > 1e-4:
            raise PolicyError(
                f"{where}, operation {row['name']}: expected the probability of its logits, {share:.6f}, came {said}."
                " To do: edit logits, which alone count, and the probabilities with them"
            )
