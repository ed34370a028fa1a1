# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How long a comparison will take: by the cells that are done, and a few real steps of the arms that have none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.pace import STEPS
from monai_autoaug.engines.parts import split_cases
from monai_autoaug.engines.plan import fit_preprocessing, make_plan
from monai_autoaug.engines.preview import Preview, rehearsed
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.evaluation.comparison.arms import Arm
from monai_autoaug.evaluation.comparison.cells import Cell
from monai_autoaug.evaluation.comparison.planning import Plan

__all__ = ["FACTORS", "Estimate", "estimate"]

# nnU-Net alone, which can't be tried before it has planned the network: time of a training step relative to that of
# method "none" on the same batch, with this package's defaults; what its own benchmarks measured on a CPU, rounded: a
# guess that is right within a factor of two elsewhere
FACTORS = {"none": 1.0, "random": 1.2, "adversarial": 2.0, "task_driven": 2.0, "general_adversarial": 2.2,
           "joint_policy": 1.3, "bilevel": 1.4}  # fmt: skip
_SAMPLE = 8  # training cases that steps are tried on


@dataclass(frozen=True)
class Estimate:
    """How long the cells that are left will take.

    Args:
        seconds: by cell name; without those of which nothing is known.
        basis: what the numbers come from, in words.
        unknown: cells of which nothing is known.
        host_mib: of the largest cell that was tried; None: none was, or the system doesn't tell.
        device_mib: likewise of tensors on the GPU.
    """

    seconds: dict[str, float]
    basis: str
    unknown: int
    host_mib: float | None = None
    device_mib: float | None = None

    @property
    def total(self) -> float:
        """Seconds of all cells that are known, one after the other."""
        return sum(self.seconds.values())


def estimate(plan: Plan, device: str = "auto", *, listener: Listener = unheard) -> Estimate:
    """Time of the cells that are left.

    Args:
        plan: of the comparison.
        device: that this process would train on.
        listener: hears of each arm that is tried.
    """
    left = [cell for cell in plan.cells() if not plan.place(cell).done]
    measured = _measured(plan)
    if plan.setting.host == "nnunet":
        return _of_nnunet(left, measured)
    known = {arm for arm, _ in measured}
    wanted = [arm for arm in plan.arms if arm.name not in known and any(cell.arm.name == arm.name for cell in left)]
    tried: dict[str, Preview] = {}
    for number, arm in enumerate(wanted):
        listener(Progress("measuring", number, len(wanted)))
        tried[arm.name] = _try(plan, arm, device)
    listener(Progress("measuring", len(wanted), len(wanted)))
    seconds, memory = {}, []
    for cell in left:
        found = tried.get(cell.arm.name)
        if found is None:
            seconds[cell.name] = statistics.median(_same(cell, measured))
        else:
            seconds[cell.name] = _time(plan, cell, found)
            memory.append(_memory(plan, cell, found))
    by = ["the cells that are done"] if len(tried) < len({cell.arm.name for cell in left}) or not left else []
    by += [f"{STEPS} real steps of {'each arm' if not by else 'each arm that has none'}"] if tried else []
    on_device = [found.device_mib for found in tried.values() if found.device_mib is not None]
    return Estimate(
        seconds, " and ".join(by), 0, max((m for m in memory if m is not None), default=None),
        max(on_device, default=None),
    )  # fmt: skip


def _measured(plan: Plan) -> dict[tuple[str, int], list[float]]:
    """(arm, number of cases) -> seconds of its cells that are done, prediction included."""
    found: dict[tuple[str, int], list[float]] = {}
    for cell in plan.cells():
        folder = plan.place(cell)
        if folder.done:
            result = folder.read()[1]
            spent = float(result["training"]["seconds"]) + float(result["inference"]["seconds"])
            found.setdefault((cell.arm.name, cell.cases), []).append(spent)
    return found


def _same(cell: Cell, measured: Mapping[tuple[str, int], list[float]]) -> list[float]:
    """Seconds of cells of the same arm."""
    return [s for (arm, _), spent in measured.items() if arm == cell.arm.name for s in spent]


def _try(plan: Plan, arm: Arm, device: str) -> Preview:
    """A few steps of an arm on some of the training cases."""
    cell = plan.cell(arm, plan.counts[0], plan.seeds[0])
    by_name = {case.name: case for case in plan.datalist.training}
    sample = [by_name[name] for name in (*plan.parts.pool[:_SAMPLE], *plan.parts.validation[:1])]
    some = replace(plan.datalist, training=tuple(sample))
    options = TrainOptions(
        data=plan.datalist.folder, output=plan.folder, method=arm.method, method_options=arm.method_options,
        validation_cases=1, device=device, **cell.config["options"],
    )  # fmt: skip
    parts = split_cases(options, some)
    preprocessing = fit_preprocessing(options, some, parts)
    unlabelled = plan.unlabelled[:1] if arm.learns_from_unlabelled else ()
    return rehearsed(make_plan(options, parts, preprocessing, unlabelled), some, preprocessing)


def _time(plan: Plan, cell: Cell, found: Preview) -> float:
    """Seconds of a cell: what was tried, with as many cases as it has."""
    validation, test = len(plan.parts.validation), len(plan.parts.test)
    tried, seconds = sum(found.plan.counts.values()), found.seconds
    cases = cell.cases + validation + (len(plan.unlabelled) if cell.arm.learns_from_unlabelled else 0)
    one = len(found.plan.split.validation)
    return (
        seconds["preparing"] / tried * cases
        + seconds["training"]
        + seconds["validating"] / one * validation
        + seconds["predicting"] / one * (validation + test)
    )


def _memory(plan: Plan, cell: Cell, found: Preview) -> float | None:
    """MiB of a cell: what was tried, with as many volumes as it keeps."""
    if found.host_mib is None:
        return None
    tried = sum(found.plan.counts.values())
    more = cell.cases + len(plan.parts.validation) - tried
    more += len(plan.unlabelled) if cell.arm.learns_from_unlabelled else 0
    return found.host_mib + max(more, 0) * found.volumes_mib / tried


def _of_nnunet(left: list[Cell], measured: Mapping[tuple[str, int], list[float]]) -> Estimate:
    """By the cells that are done: of the same arm, or of others by what methods take relative to each other."""
    if not measured:
        basis = "nothing yet: nnU-Net plans the network first; ask again when a cell is done"
        return Estimate({}, basis, len(left))
    factors = {name: _factor(Arm.find(name, "nnunet")) for name, _ in measured}
    plain = statistics.median(s / factors[arm] for (arm, _), spent in measured.items() for s in spent)
    seconds = {}
    for cell in left:
        same = _same(cell, measured)
        seconds[cell.name] = statistics.median(same) if same else plain * _factor(cell.arm)
    return Estimate(seconds, "the cells that are done", 0)


def _factor(arm: Arm) -> float:
    """Of an arm's step; one that learns nothing takes what its draws take."""
    options = arm.method_options
    idle = options.get("augmentation") in ("none", "light", "strong", "elastic", "contrast", "predefined", "flip")
    if arm.method == "joint_policy" and not options.get("learn_training", True):
        return 1.15
    return 1.1 if idle else FACTORS.get(arm.method, 2.0)
