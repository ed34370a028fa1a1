# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How long a comparison will take: by the cells that are done, or else by a few steps of the plain network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_autoaug import methods
from monai_autoaug.engines.options import TrainOptions, find_device
from monai_autoaug.engines.segmentation import build_network, choose_patch_size, downsampling
from monai_autoaug.evaluation.comparison.arms import Arm
from monai_autoaug.evaluation.comparison.cells import Cell
from monai_autoaug.evaluation.comparison.planning import Plan

__all__ = ["FACTORS", "Estimate", "estimate", "plain_step"]

# time of a training step relative to that of method "none" on the same batch, with this package's defaults: what its
# own benchmarks measured on a CPU, rounded; a guess that is right within a factor of two elsewhere
FACTORS = {"none": 1.0, "random": 1.2, "adversarial": 2.0, "task_driven": 2.0, "general_adversarial": 2.2,
           "joint_policy": 1.3, "bilevel": 1.4}  # fmt: skip
_PREDICTION = 0.1  # of the training time: predicting and evaluating
_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """How long the cells that are left will take.

    Args:
        seconds: by cell name; without those of which nothing is known.
        basis: what the numbers come from, in words.
        unknown: cells of which nothing is known.
    """

    seconds: dict[str, float]
    basis: str
    unknown: int

    @property
    def total(self) -> float:
        """Seconds of all cells that are known, one after the other."""
        return sum(self.seconds.values())


def estimate(plan: Plan, device: str = "auto") -> Estimate:
    """Time of the cells that are left.

    Args:
        plan: of the comparison.
        device: that this process would train on.
    """
    left = [cell for cell in plan.cells() if not plan.place(cell).done]
    measured = _measured(plan)
    step = None
    if not measured and plan.setting.host == "monai":
        step = plain_step(plan, device)
    seconds: dict[str, float] = {}
    for cell in left:
        known = _of_cell(cell, measured) if measured else _by_step(cell, step)
        if known is not None:
            seconds[cell.name] = known
    basis = "the cells that are done"
    if not measured:
        basis = f"{_STEPS} steps of the plain network; right within a factor of two"
    if not measured and step is None:
        basis = "nothing yet: nnU-Net plans the network first; ask again when a cell is done"
    return Estimate(seconds, basis, len(left) - len(seconds))


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


def _of_cell(cell: Cell, measured: Mapping[tuple[str, int], list[float]]) -> float | None:
    """By cells of the same arm; or of others, by what methods usually take relative to each other."""
    same = [s for (arm, _), spent in measured.items() if arm == cell.arm.name for s in spent]
    if same:
        return statistics.median(same)
    others = list(measured)
    if not others:
        return None
    known = {name: _factor_of(name, cell.setting.host) for name, _ in others}
    plain = statistics.median(s / known[arm] for (arm, _), spent in measured.items() for s in spent)
    return plain * _factor(cell.arm)


def _factor(arm: Arm) -> float:
    """Of an arm's step; one that learns nothing takes what its draws take."""
    options = arm.method_options
    idle = options.get("augmentation") in ("none", "light", "strong", "elastic", "contrast", "predefined", "flip")
    if arm.method == "joint_policy" and not options.get("learn_training", True):
        return 1.15
    return 1.1 if idle else FACTORS.get(arm.method, 2.0)


def _factor_of(name: str, host: str) -> float:
    return _factor(Arm.find(name, host))


def _by_step(cell: Cell, step: float | None) -> float | None:
    if step is None:
        return None
    options = cell.config["options"]
    iterations = options.get("epochs", TrainOptions.epochs) * options.get("iterations", TrainOptions.iterations)
    return step * iterations * _factor(cell.arm) * (1 + _PREDICTION)


def plain_step(plan: Plan, device: str = "auto") -> float:
    """Seconds of a training step of the network alone, on random patches of the size that trainings will have.

    Args:
        plan: of a comparison with host "monai".
        device: see `engines.options.find_device`.
    """
    options = TrainOptions(data=plan.datalist.folder, output=plan.folder, method="none", **plan.setting.options)
    where = find_device(device)
    outputs = plan.datalist.num_outputs
    with torch.random.fork_rng(devices=[]):
        network = methods.prepare(
            "none", build_network(options.network, len(plan.datalist.channels), outputs, **options.network_options)
        ).to(where)
        size = options.patch_size or choose_patch_size(
            _median_shape(plan), downsampling(options.network, options.network_options)
        )
        patches = torch.randn(options.batch_size, len(plan.datalist.channels), *size, device=where)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate)
    times = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        optimizer.zero_grad()
        output = network(patches)
        (output[0] if isinstance(output, (list, tuple)) else output).float().pow(2).mean().backward()
        optimizer.step()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        times.append(time.perf_counter() - begin)
    return min(times)


def _median_shape(plan: Plan) -> tuple[int, ...]:
    """Of the images of some training cases, resampled to their median voxel size; headers alone are read."""
    by_name = {case.name: case for case in plan.datalist.training}
    headers: list[Any] = [nib.load(by_name[name].images[0]).header for name in plan.parts.pool[:20]]
    zooms = np.array([header.get_zooms()[:3] for header in headers])
    spacing = plan.setting.options.get("spacing") or np.median(zooms, axis=0)
    shapes = np.array([header.get_data_shape()[:3] for header in headers]) * zooms / np.asarray(spacing)
    return tuple(int(round(n)) for n in np.median(shapes, axis=0))
