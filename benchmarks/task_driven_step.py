# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Time and memory of a step in each phase of task_driven: ``python benchmarks/task_driven_step.py --output step.json``.

The plain step (method none), that of the affine baseline alone, and those of the phases in which a generator is learned
and in which the network trains on what both make, on the same batches of the same size in turn, in one process and one
thread. How time and memory are taken is told in `general_step`. ``--paper`` adds the paper's form of the networks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from general_step import memory
from joint_step import NETWORKS, FixedBatches, clock, losses

import monai_autoaug
from monai_autoaug import methods
from monai_autoaug.methods import Method, Task
from monai_autoaug.precision import Precision

# arm -> the method's options and its phase; None: the plain step
ARMS: dict[str, tuple[dict[str, Any], int] | None] = {
    "none": None,
    "affine": ({"augmentation": "none"}, 0),
    "deformation_learns": ({}, 0),
    "appearance_learns": ({}, 1),
    "network": ({}, 2),
}
PAPER_FORM: dict[str, tuple[dict[str, Any], int] | None] = {
    f"{name}_paper_form": ({"fidelity": "paper"}, number)
    for number, name in enumerate(("deformation_learns", "appearance_learns", "network"))
}


class WithUnlabelled(FixedBatches):
    """The second batch stands for unlabelled images, too."""

    def next(self, stream: str) -> Any:
        """The batch of a stream."""
        return super().next("train" if stream == "train" else "real")


def build(network: str, arm: str, arguments: argparse.Namespace) -> Method:
    """A method over a fresh network, as a host builds it, in one of its phases."""
    found = (ARMS | PAPER_FORM)[arm]
    name, (options, phase) = ("none", ({}, 0)) if found is None else ("task_driven", found)
    torch.manual_seed(0)
    module = NETWORKS[network]().to(arguments.device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.99, nesterov=True)
    precision = Precision(arguments.device, arguments.precision)
    task = Task(module, optimizer, losses, precision, clip=12.0, patch_size=tuple(arguments.patch),
                build=NETWORKS[network])  # fmt: skip
    method = methods.build(name, task, **options, **({"warm_up": 0} if found is not None else {}))
    for number in range(1, phase + 1):
        method.begin_phase(number)
    return method


def measure(network: str, arms: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and MiB a step of each arm, and ratios to the plain step (of time: of the same round)."""
    batches = WithUnlabelled(arguments.batch_size, tuple(arguments.patch), (0, 0, 0), arguments.device)
    built = {arm: build(network, arm, arguments) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(arguments.rounds + 1):
        for arm, method in built.items():
            start = clock(arguments.device)
            method.step(batches)
            if number:  # the first round warms up caches and workspaces
                seconds[arm].append(clock(arguments.device) - start)
    sizes = {arm: memory(lambda m=method: m.step(batches), arguments.device) for arm, method in built.items()}
    result: dict[str, Any] = {}
    for arm in arms:
        ratios = [a / b for a, b in zip(seconds[arm], seconds["none"], strict=True)]
        result[arm] = {
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
    parser.add_argument("--paper", action="store_true", help="the paper's form of the networks, too")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("task_driven_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = list(ARMS | (PAPER_FORM if arguments.paper else {}))
    report: dict[str, Any] = {
        "benchmark": "task_driven_step",
        "clock": "process CPU seconds, one thread" if arguments.device == "cpu" else "synchronised wall seconds",
        "memory": "kept by autograd" if arguments.device == "cpu" else "of the allocator, above what is held before",
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        "batch_size": arguments.batch_size, "patch": arguments.patch, "precision": arguments.precision,
        "rounds": arguments.rounds, "networks": {},
    }  # fmt: skip
    for network in arguments.networks:
        report["networks"][network] = measured = measure(network, arms, arguments)
        print(network)
        for arm, row in measured.items():
            print(f"  {arm:30s} {row['seconds']:8.3f} s {row['ratio']:6.2f} x {row['ratio_range']}"
                  f"  {row['mebibytes']:8.1f} MiB {row['memory_ratio']:6.2f} x")  # fmt: skip
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
