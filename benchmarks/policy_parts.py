# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The measurements of `policy_cost`: training, memory, views."""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from joint_step import clock, losses, nnunet_network
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.nnunet.test_time import attach, learn
from monai_autoaug.policies import TestTimePolicy
from monai_autoaug.precision import Precision

FROZEN: dict[str, Any] = {"learn_training": False, "test_time": False}
LEARNING: dict[str, dict[str, Any]] = {"training policy": {"test_time": False}, "both policies": {}}
EPOCH = 250  # steps, nnU-Net's
ALIKE = 6  # plain and frozen steps of a round: they count in full, an update by one over the steps between two
INTERVALS = (1, 5, 10, 20, 40)  # steps between two updates, beside the default
STOCK = "nnU-Net's augmentation"


class FixedBatches:
    """The same patches for all arms; those that a policy augments have a margin around them.

    Args:
        size: patches of a training batch.
        meta: patches of a meta-validation batch.
        patch: voxels.
        margin: voxels at each end of each axis.
        device: where they are.
    """

    def __init__(self, size: int, meta: int, patch: tuple[int, ...], margin: tuple[int, ...], device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        whole = tuple(n + 2 * m for n, m in zip(patch, margin, strict=True))
        self.batches = {}
        for stream, count in (("train", size), ("meta", meta)):
            image = torch.randn(count, 1, *whole, generator=generator)
            label = nn.functional.one_hot(_blobs(image), 3).movedim(-1, 1).float()
            batch = Batch(image, label, case=("",) * count, spacing=torch.ones(count, 3), margin=margin)
            self.batches[stream] = batch.to(device)

    def next(self, stream: str) -> Batch:
        """The batch of a stream."""
        return self.batches[stream]


def _blobs(image: Tensor) -> Tensor:
    """Labels 0, 1 and 2 that cover neighbouring voxels; every other patch has a foreground label at its centre."""
    smooth = nn.functional.avg_pool3d(image, 7, 1, 3)[:, 0]
    label = (smooth > 0.04).long() + (smooth > 0.08).long()
    d, h, w = (n // 2 for n in label.shape[1:])
    label[::2, d, h, w] = 1
    return label


def build(options: dict[str, Any] | None, arguments: argparse.Namespace) -> Method:
    """The plain method, or joint_policy, over a fresh network."""
    torch.manual_seed(0)
    network = nnunet_network().to(arguments.device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.99, nesterov=True)
    task = Task(
        network, optimizer, losses, Precision(arguments.device, arguments.precision), clip=12.0, steps=arguments.steps,
        patch_size=tuple(arguments.patch),
    )  # fmt: skip
    return methods.build("none", task) if options is None else methods.build("joint_policy", task, **options)


class Stopwatch:
    """Times by name, the first round not counted: it warms up caches and workspaces."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, dict[str, list[float]]()
        self.warm = False

    def time(self, name: str, what: Callable[[], object]) -> None:
        """Run and time it."""
        self.in_turn({name: what}, 1)

    def in_turn(self, what: dict[str, Callable[[], object]], times: int) -> None:
        """Run several one after the other, so many times, and note the mean of the times of each."""
        spent = dict.fromkeys(what, 0.0)
        for _ in range(times):
            for name, one in what.items():
                start = clock(self.device)
                one()
                spent[name] += clock(self.device) - start
        if self.warm:
            for name, seconds in spent.items():
                self.seconds.setdefault(name, []).append(seconds / times)

    def ratios(self, function: Callable[[dict[str, float]], float]) -> dict[str, Any]:
        """Median and range over rounds of a figure of the times of one round."""
        rounds = [dict(zip(self.seconds, row, strict=True)) for row in zip(*self.seconds.values(), strict=True)]
        values = [function(row) for row in rounds]
        return {"median": round(statistics.median(values), 3), "range": [round(f(values), 3) for f in (min, max)]}


def stock_augmentation(arguments: argparse.Namespace) -> Callable[[], None]:
    """nnU-Net's own augmentation of a batch, as one of its workers does it."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    turn = (-math.pi / 6, math.pi / 6)
    transforms = nnUNetTrainer.get_training_transforms(tuple(arguments.patch), turn, None, (0, 1, 2), False, [False])
    read = [int(n) for n in get_patch_size(arguments.patch, turn, turn, turn, (0.85, 1.25))]
    image = torch.randn(1, *read)
    label = _blobs(image[None]).to(torch.int16)

    def augment() -> None:
        for _ in range(arguments.batch_size):
            transforms(image=image.clone(), segmentation=label.clone())

    return augment


def learner(options: dict[str, Any], arguments: argparse.Namespace) -> JointPolicy:
    """A method that updates its policies in the next step, in the dearer of its forms."""
    method = build(options, arguments)
    assert isinstance(method, JointPolicy)
    method.views_help = True  # the training policy is judged on views
    return method


def measure_training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of step, and what they make of a training."""
    size, patch, device = arguments.batch_size, tuple(arguments.patch), arguments.device
    plain, frozen, augment = build(None, arguments), build(FROZEN, arguments), stock_augmentation(arguments)
    arms = {f"{name}, {mode}": learner({**options, "derivative": mode}, arguments)
            for mode in arguments.derivatives for name, options in LEARNING.items()}  # fmt: skip
    bare = FixedBatches(size, plain.meta_batch, patch, (0,) * len(patch), device)
    enlarged = FixedBatches(size, plain.meta_batch, patch, tuple(arguments.margin), device)
    watch = Stopwatch(device)
    for number in range(arguments.rounds + 1):
        watch.warm = number > 0
        watch.in_turn({"plain": lambda: plain.step(bare), "frozen": lambda: frozen.step(enlarged)}, ALIKE)
        for name, method in arms.items():
            method.steps = method.settled  # the policies are updated in this one
            watch.time(name, lambda method=method: method.step(enlarged))  # type: ignore[misc]
            watch.time(f"{name}, epoch", lambda method=method: method.on_epoch(0))  # type: ignore[misc]
            method.views_help = True
        watch.in_turn({STOCK: augment}, 10)
    return {
        "rounds": arguments.rounds,
        "seconds": {name: round(statistics.median(v), 4) for name, v in watch.seconds.items()},
        "plain step": {
            "our augmentation": watch.ratios(lambda s: s["frozen"] / s["plain"] - 1),
            STOCK + ", in workers": watch.ratios(lambda s: s[STOCK] / s["plain"]),
        },
        "arms": {name: _totals(watch, name, arms[name].schedule.update_every) for name in arms},
    }  # fmt: skip


def _totals(watch: Stopwatch, name: str, default: int) -> dict[str, Any]:
    """An update in plain steps, and total training time over the plain one's by the steps between two updates."""

    def total(every: int, s: dict[str, float]) -> float:
        step = s["frozen"] + (s[name] - s["frozen"]) / every + s[f"{name}, epoch"] / EPOCH
        return step / s["plain"]

    return {
        "an update": watch.ratios(lambda s: (s[name] - s["frozen"]) / s["plain"]),
        "update_every": default,
        "total": watch.ratios(partial(total, default)),
        "total by update_every": {str(k): watch.ratios(partial(total, k))["median"] for k in INTERVALS},
    }


def peak(step: Callable[[], object], device: str) -> int:
    """Bytes that torch's allocator held at most in a step, over those before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    memory = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return int(max(m["Total Allocated"] for m in memory) - before)


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peaks of a plain step and of steps with an update, in MiB and over the plain step's."""
    size, patch, device = arguments.batch_size, tuple(arguments.patch), arguments.device
    plain, frozen = build(None, arguments), build(FROZEN, arguments)
    bare = FixedBatches(size, plain.meta_batch, patch, (0,) * len(patch), device)
    enlarged = FixedBatches(size, plain.meta_batch, patch, tuple(arguments.margin), device)
    steps: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.step(bare), "frozen": lambda: frozen.step(enlarged),
    }  # fmt: skip
    for mode in arguments.derivatives:
        for name, options in LEARNING.items():
            method = learner({**options, "derivative": mode}, arguments)

            def update(method: JointPolicy = method) -> None:
                method.steps = method.settled
                method.step(enlarged)

            steps[f"{name}, {mode}"] = update
    found = {}
    for name, step in steps.items():
        step()  # momentum buffers
        found[name] = peak(step, device)
    return {n: {"mib": round(b / 2**20, 1), "ratio": round(b / found["plain"], 3)} for n, b in found.items()}


def measure_views(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prediction of a patch with 8 views in the network, over nnU-Net's predictor with 8-fold mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    patch, device = tuple(arguments.patch), torch.device(arguments.device)
    torch.manual_seed(0)
    network = attach(nnunet_network()).to(device).eval()
    image = torch.randn(1, 1, *patch, device=device)
    start = TestTimePolicy.preset("nnunet", level="patch", patch_size=patch)
    dear = [k for k, o in enumerate(start.operations) if o.acts == "matrix"]
    chosen = {
        "start of the preset": None, "8 with interpolation": dear[:: len(dear) // 8][:8],
        "8 random ones": torch.randperm(len(start.operations), generator=torch.Generator().manual_seed(0))[:8].tolist(),
    }  # fmt: skip
    predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=device)
    predictor.network = network
    watch = Stopwatch(arguments.device)
    for number in range(arguments.rounds + 1):
        watch.warm = number > 0
        learn(network, None)
        predictor.allowed_mirroring_axes = (0, 1, 2)
        watch.time("mirroring", lambda: predictor._internal_maybe_mirror_and_predict(image))
        predictor.allowed_mirroring_axes = None
        for name, places in chosen.items():
            learn(network, _with_top(start, places))
            watch.time(name, lambda: predictor._internal_maybe_mirror_and_predict(image))
    return {
        "rounds": arguments.rounds,
        "seconds": {name: round(statistics.median(v), 4) for name, v in watch.seconds.items()},
        "ratios": {name: watch.ratios(lambda s, name=name: s[name] / s["mirroring"]) for name in chosen},  # type: ignore[misc]
    }


def _with_top(policy: TestTimePolicy, places: list[int] | None) -> TestTimePolicy:
    """The policy with these views on top."""
    made = copy.deepcopy(policy)
    if places is not None:
        with torch.no_grad():
            made.logits[places] += 10.0
    return made
