# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the cells of a comparison say: a row an arm and number of training cases, with a verdict in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.evaluation.comparison.arms import Arm
from monai_autoaug.evaluation.comparison.notes import counted, notes
from monai_autoaug.evaluation.comparison.planning import Plan, training_time
from monai_autoaug.evaluation.comparison.rows import (
    COLUMNS,
    PRIMARY,
    RANKED,
    ComparedMetric,
    Row,
    Summary,
    Versus,
    verdict,
)
from monai_autoaug.evaluation.comparison.statistics import Difference, average_ranks, compare, holm
from monai_autoaug.evaluation.metrics import METRICS
from monai_autoaug.evaluation.result import Evaluation, class_mean

__all__ = ["Summary", "summarise"]

Values = NDArray[np.float64]


@dataclass
class _Cells:
    """The done cells of a row, by seed."""

    arm: Arm
    cases: int
    equal: str
    found: dict[int, tuple[Evaluation, dict[str, Any]]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The arm, its number of cases, and what it has in common with the others."""
        equal = " at equal time" if self.equal == "time" else ""
        return f"{self.arm.name} with {counted(self.cases, 'case')}{equal}"

    def values(self, metric: str, seeds: Iterable[int]) -> Values:
        """(seeds, cases, structures)."""
        return np.stack([self.found[s][0].values[metric] for s in seeds])


def summarise(plan: Plan) -> Summary:
    """What is known by now.

    Args:
        plan: of the comparison.

    Raises:
        DataError: a cell's result is damaged.
    """
    groups = list(_groups(plan))
    references = {(g.cases, "iterations"): g for g in groups if g.arm.name == plan.reference}
    differences: dict[tuple[str, int, str], dict[str, Difference]] = {}
    for group in groups:
        reference = references.get((group.cases, "iterations"))
        if group.arm.name != plan.reference and reference is not None:
            seeds = sorted(set(group.found) & set(reference.found))
            if seeds:
                differences[_key(group)] = {
                    m: compare(group.values(m, seeds), reference.values(m, seeds)) for m in COLUMNS
                }
    corrected = {m: dict(zip(differences, holm([d[m].p for d in differences.values()]), strict=True)) for m in COLUMNS}
    ranks = _ranks(groups, references)
    rows = tuple(
        _row(group, references.get((group.cases, "iterations")), differences.get(_key(group)),
             {m: corrected[m].get(_key(group)) for m in COLUMNS}, ranks.get(_key(group)), plan)
        for group in groups
    )  # fmt: skip
    cells = [*plan.cells(), *plan.equal_time_cells()]
    named = {f"{g.title}, seed {seed}": result for g in groups for seed, (_, result) in g.found.items()}
    results = [*named.values()]
    structures = next((e.classes for g in groups for e, _ in g.found.values()), tuple(plan.datalist.foreground))
    return Summary(
        host=plan.setting.host, reference=plan.reference, structures=tuple(structures),
        test_cases=len(plan.parts.test), rows=rows, overall=_overall(rows, plan.arms),
        notes=tuple(notes(plan, named, rows, len(differences))), provenance=_provenance(plan, results),
        done=sum(plan.place(cell).done for cell in cells), total=len(cells),
    )  # fmt: skip


def _key(group: _Cells) -> tuple[str, int, str]:
    return group.arm.name, group.cases, group.equal


def _groups(plan: Plan) -> Iterable[_Cells]:
    """Rows with what is done of them: all numbers of cases at equal iterations, then at equal time."""
    for equal in ("iterations", "time") if plan.equal_time else ("iterations",):
        for count in plan.counts:
            for arm in plan.arms:
                changes = None
                if equal == "time":
                    if arm.name == plan.reference:
                        continue
                    changes = plan.changes(arm, count)
                    if changes is None:
                        continue
                group = _Cells(arm, count, equal)
                for seed in plan.seeds:
                    folder = plan.place(plan.cell(arm, count, seed, changes or None))
                    if folder.done:
                        group.found[seed] = folder.read()
                    else:
                        group.missing.append(seed)
                yield group


def _ranks(groups: Sequence[_Cells], references: Mapping[tuple[int, str], _Cells]) -> dict[tuple[str, int, str], float]:
    """Of each row among those with the same number of cases; at equal time the reference is among them."""
    found: dict[tuple[str, int, str], float] = {}
    for cases, equal in dict.fromkeys((g.cases, g.equal) for g in groups):
        together = [g for g in groups if (g.cases, g.equal) == (cases, equal) and g.found]
        reference = references.get((cases, "iterations"))
        if equal == "time" and reference is not None and reference.found:
            together.append(reference)
        means = {m: [float(np.mean(class_mean(g.values(m, g.found)))) for g in together] for m in RANKED}
        ranks = average_ranks(means, {m: METRICS[m].higher_is_better for m in RANKED})
        for group, rank in zip(together, ranks, strict=True):
            if group.equal == equal:
                found[_key(group)] = rank
    return found


def _overall(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, float | None]:
    """Average over the numbers of training cases, as the last column of paper 002's Table II."""
    ranks = {a.name: [r.rank for r in rows if r.arm == a.name and r.equal == "iterations"] for a in arms}
    return {
        name: statistics.fmean(v for v in values if v is not None) if values and None not in values else None
        for name, values in ranks.items()
    }


def _row(
    group: _Cells, reference: _Cells | None, differences: dict[str, Difference] | None,
    corrected: Mapping[str, float | None], rank: float | None, plan: Plan,
) -> Row:  # fmt: skip
    is_reference = group.arm.name == plan.reference
    versus = None
    if differences is not None:
        versus = {m: _versus(d, corrected[m]) for m, d in differences.items()}
    kind, words = verdict(None if versus is None else versus[PRIMARY], is_reference=is_reference)
    return Row(
        arm=group.arm.name, what=group.arm.what, cases=group.cases, equal=group.equal, seeds=tuple(group.found),
        missing=tuple(group.missing), metrics={m: _metric(group, m) for m in COLUMNS} if group.found else {},
        rank=rank, versus=versus, kind=kind, verdict=words, **_costs(group, reference),
    )  # fmt: skip


def _versus(difference: Difference, corrected: float | None) -> Versus:
    interval = difference.interval
    return Versus(
        _known(interval.mean), _known(interval.low), _known(interval.high), tuple(map(_known, difference.by_seed)),
        _known(difference.p), _known(corrected), difference.cases,
    )  # fmt: skip


def _known(value: float | None) -> float | None:
    """A number; None, as JSON has it, where it is not defined."""
    return None if value is None or np.isnan(value) else float(value)


def _metric(group: _Cells, metric: str) -> ComparedMetric:
    values = group.values(metric, group.found)
    by_seed = class_mean(values)
    structures = next(iter(group.found.values()))[0].classes
    each = {name: float(np.mean(class_mean(values[..., [k]]))) for k, name in enumerate(structures)}
    return ComparedMetric(
        _known(float(by_seed.mean())), _known(float(by_seed.std(ddof=1))) if len(by_seed) > 1 else None,
        {name: _known(v) for name, v in each.items()},
    )  # fmt: skip


def _costs(group: _Cells, reference: _Cells | None) -> dict[str, Any]:
    """Time and memory, medians over seeds."""
    results = {seed: result for seed, (_, result) in group.found.items()}
    if not results:
        return {}
    everything = list(results.values())
    ratios = []
    for seed, result in results.items():
        if reference is not None and seed in reference.found:
            other = reference.found[seed][1]
            if other["device"] == result["device"]:  # else times can't be compared
                ratios.append(training_time(result, (result, other)) / training_time(other, (result, other)))
    memory = [r["peak_memory"] for r in everything]
    return {
        "iterations": everything[0]["training"].get("iterations"),
        "training_seconds": statistics.median(training_time(r, everything) for r in everything),
        "training_ratio": statistics.median(ratios) if ratios else None,
        "inference_seconds": statistics.median(r["inference"]["seconds"] / r["inference"]["cases"] for r in everything),
        **{n: max((m[n] for m in memory if m[n] is not None), default=None) for n in ("host_mib", "device_mib")},
    }


def _provenance(plan: Plan, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the numbers come from; no paths, and no names of cases."""
    versions: dict[str, list[str]] = {}
    for result in results:
        for name, value in result["versions"].items():
            if value not in versions.setdefault(name, []):
                versions[name].append(value)
    setting = plan.setting.to_dict(plan.data)
    return {
        "data": plan.data, "setting": setting, "seeds": list(plan.seeds), "counts": list(plan.counts),
        "pool": len(plan.parts.pool), "validation_cases": len(plan.parts.validation),
        "unlabelled": len(plan.unlabelled), "versions": {n: ", ".join(v) for n, v in versions.items()},
        "machines": sorted({f"{r['device']['kind']}: {r['device']['name']}" for r in results}),
    }  # fmt: skip
