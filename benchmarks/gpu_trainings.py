# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Iterations of nnU-Net trainings, stock and learned, one after the other on one synthetic data set (see `gpu`)."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from commands import ROOT, run

from monai_autoaug.data import write_phantom
from monai_autoaug.writing import write_text

__all__ = ["ARMS", "Arm", "features", "measure_arm", "prepare"]

NUMBER, NAME = 900, "Dataset900_Benchmark"
CASES = 6
_ROWS = 12  # of a profile
_UPDATES = 3  # of policies that are measured, each the only one of its iteration


@dataclass(frozen=True)
class Arm:
    """A training.

    Args:
        trainer: its class, nnU-Net's own or one of this package.
        few: with few worker processes instead of enough.
        options: of a trainer of this package; warm-ups are over, in which some players rest.
    """

    trainer: str = "nnUNetTrainer"
    few: bool = False
    options: dict[str, Any] = field(default_factory=dict)


WARM: dict[str, Any] = {"method_options": {"warm_up": 0}}
ARMS: dict[str, Arm] = {
    "stock": Arm(),
    "stock, few workers": Arm(few=True),
    "none": Arm("nnUNetTrainerAutoAugNone"),
    "random": Arm("nnUNetTrainerAutoAugRandom", options=WARM),
    "adversarial": Arm("nnUNetTrainerAutoAugAdversarial", options=WARM),
    "task_driven": Arm(
        "nnUNetTrainerAutoAugTaskDriven", options={"method_options": {"warm_up": 0, "unlabelled": False}}
    ),
    "joint_policy": Arm("nnUNetTrainerAutoAug"),
    "joint_policy, few workers": Arm("nnUNetTrainerAutoAug", few=True),
    "joint_policy, in workers": Arm("nnUNetTrainerAutoAug", options={"policy_place": "workers"}),
    "bilevel": Arm("nnUNetTrainerAutoAugBilevel"),
    "general_adversarial": Arm("nnUNetTrainerAutoAugGeneral"),
}


def features(arguments: argparse.Namespace) -> list[int]:
    """Channels of each stage, as nnU-Net plans them: halved until 4 voxels are left, at most 5 times."""
    halvings = min(5, max(arguments.patch.bit_length() - 3, 1))
    return [min(arguments.features * 2**k, 320) for k in range(halvings + 1)]


def prepare(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write, plan and preprocess the data set where it isn't there; its plans and its description.

    Volumes are half as large again as a patch, of one channel and three structures.
    """
    work = arguments.work.resolve()
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    folder, size = work / "preprocessed" / NAME, 3 * arguments.patch // 2
    mark = folder / "prepared.json"
    if not mark.exists() or json.loads(mark.read_text(encoding="utf-8")) != size:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(work / "raw" / NAME, ignore_errors=True)
        write_phantom(work / "raw" / NAME, cases=CASES, size=size, layout="nnunet")
        module, entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "plan_and_preprocess_entry"
        processes = str(min(arguments.enough, CASES))
        words = ["-d", str(NUMBER), "-c", "3d_fullres", "-npfp", processes, "-np", processes]
        # planning fails without a process
        environment = os.environ | {"nnUNet_n_proc_DA": "1", "PYTHONPATH": str(ROOT)}
        run(
            [sys.executable, "-c", f"from {module} import {entry}; {entry}()", *words],
            environment,
            work / "logs" / "prepare.log",
        )
        write_text(mark, json.dumps(size))
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    channels = features(arguments)
    stages, configuration = len(channels), plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [arguments.patch] * 3, "batch_size": arguments.batch_size}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages, "features_per_stage": channels, "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)], "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }  # fmt: skip
    return plans, json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def measure_arm(name: str, given: tuple[dict[str, Any], dict[str, Any]], arguments: argparse.Namespace) -> Any:
    """Seconds an iteration of a training, what of them is waiting, memory, utilisation, and where the time goes."""
    arm, (plans, description) = ARMS[name], deepcopy(given)
    os.environ["nnUNet_n_proc_DA"] = str(arguments.few if arm.few else arguments.enough)
    plans["continue_training"] = False
    plans["configurations"]["3d_fullres"]["autoaug"] = dict(arm.options)
    log = arguments.work / "logs" / f"{name.replace(', ', '_').replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        trainer = _trainer(arm.trainer)(plans, "3d_fullres", 0, description, torch.device(arguments.device))
        trainer.disable_checkpointing = True
        try:
            trainer.on_train_start()
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            return _measured(trainer, arguments)
        finally:
            _end(trainer)
            del trainer
            gc.collect()
            if arguments.device != "cpu":
                torch.cuda.empty_cache()


def _trainer(name: str) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from monai_autoaug.nnunet.trainers import TRAINERS

    return nnUNetTrainer if name == "nnUNetTrainer" else TRAINERS[name]


def _end(trainer: Any) -> None:
    """End its workers."""
    if hasattr(trainer, "_close_streams"):
        trainer._close_streams()
    for name in ("dataloader_train", "dataloader_val"):
        loader = getattr(trainer, name, None)
        if hasattr(loader, "_finish"):  # nnU-Net's, with workers
            loader._finish()


def _measured(trainer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    gpu = arguments.device != "cpu"
    for _ in range(arguments.warm_up):
        _iterate(trainer)
    with contextlib.ExitStack() as stack:
        utilisation = stack.enter_context(_utilisation()) if gpu else None
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        rows = [_iterate(trainer) for _ in range(arguments.iterations)]
    plain = [r for r in rows if not r["updated"]]
    found: dict[str, Any] = {
        "workers": int(os.environ["nnUNet_n_proc_DA"]), "compiled": _compiled(trainer),
        "iterations": len(rows), "seconds": _spread([r["seconds"] for r in plain]),
        "waiting": round(sum(r["waiting"] for r in rows) / sum(r["seconds"] for r in rows), 4),
        "gpu_utilisation_percent": utilisation.mean() if utilisation is not None else None,
        "peak_mib": _peak(gpu),
    }  # fmt: skip
    found |= _updates(trainer, [r for r in rows if r["updated"]], found["seconds"]["mean"])
    found["peak_mib_with_updates"] = _peak(gpu)
    return found | {"profile": _profile(trainer, gpu)}


def _iterate(trainer: Any) -> dict[str, Any]:
    """One iteration, as nnU-Net's loop makes it; its step ends with reading the loss, which waits for the GPU."""
    method = getattr(trainer, "method", None)
    before = getattr(method, "updates", 0)
    start = time.perf_counter()
    batch = next(trainer.dataloader_train)
    there = time.perf_counter()
    trainer.train_step(batch)
    end = time.perf_counter()
    return {"seconds": end - start, "waiting": there - start, "updated": getattr(method, "updates", 0) > before}


def _updates(trainer: Any, rows: list[dict[str, Any]], plain: float) -> dict[str, Any]:
    """Where policies or augmenters learn apart from the network: an update, and what it is of a whole training."""
    method = getattr(trainer, "method", None)
    if not hasattr(method, "updates"):
        return {"seconds_of_training": plain}
    schedule = getattr(method, "schedule", method)
    for _ in range(_UPDATES if not rows else 0):
        method.steps = method.settled  # the policies are updated in this one
        rows.append(_iterate(trainer))
    rows = [r for r in rows if r["updated"]]
    found: dict[str, Any] = {"update_every": schedule.update_every, "seconds_of_training": plain}
    if rows:
        found["update_seconds"] = _spread([r["seconds"] for r in rows])
        every = found["update_seconds"]["median"] - plain
        found["seconds_of_training"] = round(plain + every / schedule.update_every, 5)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {"mean": float("nan"), "median": float("nan"), "least": float("nan"), "most": float("nan")}
    found = {"mean": statistics.fmean(values), "median": statistics.median(values), "least": min(values),
             "most": max(values)}  # fmt: skip
    return {name: round(value, 5) for name, value in found.items()}


def _compiled(trainer: Any) -> bool:
    return any(hasattr(m, "_orig_mod") for m in (trainer.network, getattr(getattr(trainer, "task", None), "call", 0)))


def _peak(gpu: bool) -> dict[str, float] | None:
    if not gpu:
        return None
    torch.cuda.synchronize()
    both = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {name: round(value / 2**20, 1) for name, value in both.items()}


class _Utilisation:
    """What nvidia-smi has said."""

    def __init__(self) -> None:
        self.percent: list[float] = []

    def mean(self) -> float | None:
        """Over the time, in percent; None: it has said nothing."""
        return round(statistics.fmean(self.percent), 1) if self.percent else None


@contextlib.contextmanager
def _utilisation() -> Iterator[_Utilisation]:
    """Ask nvidia-smi five times a second how much of the time kernels run."""
    found, command = _Utilisation(), shutil.which("nvidia-smi")
    if command is None:
        yield found
        return
    words = [command, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200", "-i",
             str(torch.cuda.current_device())]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield found
    finally:
        process.terminate()
        said = process.communicate()[0].split()
        found.percent = [float(word) for word in said if word.replace(".", "", 1).isdigit()]


def _profile(trainer: Any, gpu: bool, iterations: int = 3) -> dict[str, Any]:
    """What most of the time goes into: kernels on a GPU, operators on a CPU, in ms an iteration."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if gpu else [kinds.CPU]
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(iterations):
            _iterate(trainer)
    wall = time.perf_counter() - start
    spent = {}
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        if microseconds and (not gpu or event.device_type == torch.autograd.DeviceType.CUDA):
            spent[event.key] = spent.get(event.key, 0.0) + microseconds / 1000 / iterations
    largest = sorted(spent.items(), key=lambda item: -item[1])[:_ROWS]
    return {
        "ms": round(1000 * wall / iterations, 3), "busy_ms": round(sum(spent.values()), 3),
        "largest": [{"name": name[:120], "ms": round(ms, 3)} for name, ms in largest],
    }  # fmt: skip
