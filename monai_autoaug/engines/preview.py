# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a training will be, told without training: its plan, and by a few real steps here its time and its memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.utils import set_determinism

from monai_autoaug.data import Case, DataList, read_datalist
from monai_autoaug.data.audit import Finding
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.fit import Fit
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.pace import Pace, measure_pace, measure_window, windows
from monai_autoaug.engines.plan import Plan, check_folders, check_unused, decide
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.random_states import random_states, restore_random_states
from monai_autoaug.engines.volumes import volumes
from monai_autoaug.memory import peak_memory
from monai_autoaug.methods.phases import spans
from monai_autoaug.policies import TestTimePolicy

__all__ = ["Preview", "preview", "rehearsed"]

_VALIDATION_OVERLAP, _OVERLAP = 0.25, 0.5  # of the windows, while training and at the end


@dataclass(frozen=True)
class Preview:
    """What a training will be.

    Args:
        plan: how the cases are split, and the size of patches.
        preprocessing: of the volumes.
        findings: what the audit warns of or notes.
        phases: epochs of each phase.
        parameters: of the segmentation network.
        device: "cpu" or "cuda".
        precision: that the networks run in.
        said: what the method says at the start.
        seconds: that each stage takes: "checking" (measured in whole), "preparing", "training", "validating" (while
            training) and "predicting"; evaluation and pictures are not in it.
        pace: what that was measured by.
        volumes_mib: of the preprocessed volumes, which stay in memory unless there is a cache.
        host_mib: of the process, with all volumes that stay in memory; None where the system doesn't tell.
        device_mib: of tensors on the GPU; None on the CPU.
    """

    plan: Plan
    preprocessing: Preprocessing
    findings: tuple[Finding, ...]
    phases: dict[str, int]
    parameters: int
    device: str
    precision: str
    said: tuple[str, ...]
    seconds: dict[str, float]
    pace: Pace
    volumes_mib: float
    host_mib: float | None
    device_mib: float | None

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def preview(options: TrainOptions, *, done: int = 0, listener: Listener = unheard) -> Preview:
    """Look ahead at a training: all that `train` does before it, a few of its steps, and nothing is written.

    What `train` would refuse is refused. The estimate is right for a machine that does nothing else; it is measured
    without worker processes, whose work is divided among them.

    Args:
        options: of the training.
        done: epochs that it has behind it, of a run that is to be resumed; its folder is then not looked at.
        listener: hears of each case that is looked at.

    Raises:
        ConfigError: an option can't work, or the folder holds a run already.
        DataError: the data set can't be used.

    >>> import tempfile
    >>> from monai_autoaug.data import write_phantom
    >>> data = write_phantom(tempfile.mkdtemp(), cases=3, size=16)
    >>> found = preview(TrainOptions(data, "run", method="none", epochs=2, network_options={"channels": [4, 8]}))
    >>> found.plan.counts, found.phases, sorted(found.seconds)
    ({'train': 2, 'validation': 1}, {'train': 2}, ['checking', 'predicting', 'preparing', 'training', 'validating'])
    """
    check_folders(options)
    if not done:
        check_unused(Run(options.output))
    began = time.perf_counter()
    datalist = read_datalist(options.data)
    plan, preprocessing, findings = decide(options, datalist, listener)
    checking = time.perf_counter() - began
    return rehearsed(plan, datalist, preprocessing, findings=findings, checking=checking, done=done, listener=listener)


def rehearsed(
    plan: Plan,
    datalist: DataList,
    preprocessing: Preprocessing,
    *,
    findings: Sequence[Finding] = (),
    checking: float = 0.0,
    done: int = 0,
    listener: Listener = unheard,
) -> Preview:
    """Measure a training whose plan is made, by a few steps on one or two of its cases.

    Global random states are afterwards as they were before.

    Args:
        plan: of the training.
        datalist: the data set.
        preprocessing: of the volumes.
        findings: of the audit.
        checking: seconds that this took.
        done: epochs that the training has behind it.
        listener: hears where the measurement is.
    """
    states = random_states()
    try:
        return _rehearsed(plan, datalist, preprocessing, findings, checking, done, listener)
    finally:
        restore_random_states(states)


def _rehearsed(
    plan: Plan, datalist: DataList, preprocessing: Preprocessing, findings: Sequence[Finding], checking: float,
    done: int, listener: Listener,
) -> Preview:  # fmt: skip
    options = plan.options
    listener(Progress("measuring", 0, 2))
    sample = _Sample(plan, datalist, preprocessing)
    listener(Progress("measuring", 1, 2))
    set_determinism(seed=options.seed)
    alone = replace(options, workers=0)
    fit = Fit(Run(options.output), alone, preprocessing, plan.patch_size, plan.margin, unheard)
    if fit.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fit.device)
    fit.prepare(sample.train, meta=sample.meta, resampled=sample.resampled, unlabelled=sample.unlabelled)
    said = tuple(fit.method.announcement())
    pace = measure_pace(fit.trainer, options)
    window = measure_window(fit.network, len(preprocessing.channels), plan.patch_size, fit.precision)
    listener(Progress("measuring", 2, 2))
    phases = fit.method.phases
    epochs = {p.name: len(range(max(s.start, done), s.stop))
              for p, s in zip(phases, spans(phases, options.epochs), strict=True)}  # fmt: skip
    views = fit.method.policies().get("test_time")
    seconds = _seconds(plan, preprocessing, sample.seconds, pace, window, epochs, views)
    cases = sum(len(part) for part in (*plan.split, plan.unlabelled))
    kept = 0.0 if options.cache is not None else max(cases - sample.count, 0) * sample.mib
    memory = peak_memory(fit.device)
    return Preview(
        plan, preprocessing, tuple(findings), epochs, fit.parameters, fit.device.type,
        str(fit.precision.dtype).removeprefix("torch."), said, {"checking": checking, **seconds}, pace,
        cases * sample.mib, None if memory["host_mib"] is None else memory["host_mib"] + kept, memory["device_mib"],
    )  # fmt: skip


class _Sample:
    """A few of a run's volumes, preprocessed, and what that took.

    Args:
        plan: of the run.
        datalist: the data set.
        preprocessing: of the volumes.
    """

    def __init__(self, plan: Plan, datalist: DataList, preprocessing: Preprocessing) -> None:
        self._datalist, self._preprocessing = datalist, preprocessing
        self.count, self.seconds, self.mib = 0, 0.0, 0.0
        self.resampled = min(plan.resampled, 1)
        self.train = self._items(plan.split.train[: 1 + self.resampled])
        self.meta = self._items(plan.split.meta[:1]) or None
        self.unlabelled = self._items(plan.unlabelled[:1]) or None

    def _items(self, cases: Sequence[Case]) -> list[Any]:
        if not cases:
            return []
        began = time.perf_counter()
        items: Any = volumes(self._datalist, cases, self._preprocessing)
        spent, found = time.perf_counter() - began, list(items)
        mib = sum(t.nbytes for item in found for t in item.values() if isinstance(t, torch.Tensor)) / 1024**2
        # means over all that were prepared
        before, self.count = self.count, self.count + len(found)
        self.seconds = (self.seconds * before + spent) / self.count
        self.mib = (self.mib * before + mib) / self.count
        return found


def _seconds(
    plan: Plan, preprocessing: Preprocessing, preparing: float, pace: Pace, window: float, epochs: dict[str, int],
    views: object,
) -> dict[str, float]:  # fmt: skip
    """Seconds of each stage but the first."""
    options, shape = plan.options, preprocessing.median_shape
    validated = len(plan.split.validation)
    left = sum(epochs.values())
    times = math.ceil(left / options.validation_interval)
    once = window * windows(shape, plan.patch_size, _VALIDATION_OVERLAP)
    last = window * windows(shape, plan.patch_size, _OVERLAP)
    # where views were learned all is predicted without them, too
    passes = views.z + 1 if isinstance(views, TestTimePolicy) else 1
    cases = sum(len(part) for part in (*plan.split, plan.unlabelled))
    training = sum(pace.epoch(name, options) * count for name, count in epochs.items()) + pace.finishing
    return {
        "preparing": preparing * cases,
        "training": training,
        "validating": once * validated * times,
        "predicting": (preparing + last * passes) * validated,
    }
