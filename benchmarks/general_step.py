# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Time and memory of one step of general_adversarial: ``python benchmarks/general_step.py --output general_step.json``.

The plain step (method none) and rows of the paper's tables are timed on the same batches of the same size in turn, in
one process and one thread, by process CPU time (wall time on a GPU, after synchronising). The ratio is the median over
rounds of a step's time over the plain step's of the same round. Memory is what a step adds at its largest to what is
held before it: on a GPU as its allocator counts it; on the CPU the bytes of all tensors that autograd keeps for a
backward, the largest of the step's backwards. "l_doubled" trains on every patch as it is and transformed, as the paper
does; by default half of each batch is transformed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from joint_step import NETWORKS, FixedBatches, clock, losses
from torch import Tensor

import monai_autoaug
from monai_autoaug import methods
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.general_comparisons import general_comparison
from monai_autoaug.precision import Precision

ARMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    **{row: general_comparison(row) for row in ("b", "c", "g", "h", "l", "strong")},
    "l_doubled": general_comparison("l", doubled=True),
}
PAPER_FORM: dict[str, dict[str, Any] | None] = {"l_paper_form": general_comparison("l", fidelity="paper")}


def build(network: str, arm: str, arguments: argparse.Namespace) -> Method:
    """A method over a fresh network, as a host builds it."""
    options = (ARMS | PAPER_FORM)[arm]
    name, given = ("none", {}) if options is None else ("general_adversarial", options)
    torch.manual_seed(0)
    module = methods.prepare(name, NETWORKS[network](), **given).to(arguments.device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.99, nesterov=True)
    precision = Precision(arguments.device, arguments.precision)
    task = Task(module, optimizer, losses, precision, clip=12.0, patch_size=tuple(arguments.patch))
    return methods.build(name, task, **given)


class Kept:
    """Bytes of the tensors that autograd keeps, each storage once, and the most of them at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.counts: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> _Held:
        """Count a tensor as long as autograd holds it."""
        return _Held(tensor, self)

    @staticmethod
    def unpack(held: _Held) -> Tensor:
        """Give it back."""
        return held.tensor


class _Held:
    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self.kept, storage = tensor, kept, tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        kept.counts[self.key] = kept.counts.get(self.key, 0) + 1
        if kept.counts[self.key] == 1:
            kept.now += self.size
            kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.counts[self.key] -= 1
        if not self.kept.counts[self.key]:
            self.kept.now -= self.size


def memory(step: Callable[[], object], device: str) -> float:
    """MiB that a step adds at its largest."""
    if device == "cpu":
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            step()
        return kept.most / 2**20
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(network: str, arms: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and MiB a step of each arm, and ratios to the plain step (of time: of the same round)."""
    batches = FixedBatches(arguments.batch_size, tuple(arguments.patch), (0, 0, 0), arguments.device)
    built = {arm: build(network, arm, arguments) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(arguments.rounds + 1):
        for arm, method in built.items():
            start = clock(arguments.device)
            for _ in range(arguments.steps):
                method.step(batches)
            if number:  # the first round warms up caches and workspaces
                seconds[arm].append((clock(arguments.device) - start) / arguments.steps)
    sizes = {arm: memory(lambda m=method: m.step(batches), arguments.device) for arm, method in built.items()}
    parameters = sum(p.numel() for p in NETWORKS[network]().parameters())
    result: dict[str, Any] = {"parameters": parameters, "arms": {}}
    for arm in arms:
        ratios = [a / b for a, b in zip(seconds[arm], seconds["none"], strict=True)]
        result["arms"][arm] = {
            "seconds": round(statistics.median(seconds[arm]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "mebibytes": round(sizes[arm], 1),
            "memory_ratio": round(sizes[arm] / sizes["none"], 3),
        }
    return result


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS | PAPER_FORM))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("general_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = list(dict.fromkeys(["none", *arguments.arms]))
    report: dict[str, Any] = {
        "benchmark": "general_step",
        "clock": "process CPU seconds, one thread" if arguments.device == "cpu" else "synchronised wall seconds",
        "memory": "kept by autograd" if arguments.device == "cpu" else "of the allocator, above what is held before",
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        "batch_size": arguments.batch_size, "patch": arguments.patch, "precision": arguments.precision,
        "rounds": arguments.rounds, "networks": {},
    }  # fmt: skip
    for network in arguments.networks:
        report["networks"][network] = measured = measure(network, arms, arguments)
        print(f"{network}, {measured['parameters'] / 1e6:.2f} M parameters")
        for arm, row in measured["arms"].items():
            print(f"  {arm:15s} {row['seconds']:8.3f} s {row['ratio']:6.2f} x {row['ratio_range']}"
                  f"  {row['mebibytes']:8.1f} MiB {row['memory_ratio']:6.2f} x")  # fmt: skip
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
