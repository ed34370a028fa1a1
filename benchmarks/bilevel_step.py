# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Time and memory of a step of the method bilevel: ``python benchmarks/bilevel_step.py --output bilevel_step.json``.

A plain step (method none), one of bilevel in which the augmenter rests, and those in which it is updated, in each of
the three ways to the derivative, are timed on the same batches in turn, in one process and one thread, by process CPU
time (wall time on a GPU, after synchronising). A ratio is the median over rounds of what J steps of bilevel take, one
of them with an update, over J plain steps of the same round. Memory is what a step adds at its largest to what is held
before it: on a GPU as its allocator counts it; on the CPU the bytes of all tensors that autograd keeps for a backward
(not of "jvp", whose dual numbers can't be counted).
``--unroll`` sets K; with K above 1 the steps that are gone back through are counted as K updates cost.
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
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.optim.hypergradient import MODES
from monai_autoaug.precision import Precision

INTERVALS = (1, 4, 10, 20)
NEVER = 10**9
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "resting": ("bilevel", {"update_every": NEVER}),
    "predefined": ("bilevel", {"augmentation": "predefined", "update_every": NEVER}),
    "invariant": ("bilevel", {"augmentation": "invariant", "transformations": "affine", "update_every": NEVER}),
    **{mode: ("bilevel", {"update_every": 1, "derivative": mode}) for mode in MODES},
}


class Batches(FixedBatches):
    """The same two batches for all arms; validation patches have no margin to lose."""

    def __init__(self, arguments: argparse.Namespace, margin: tuple[int, ...]) -> None:
        super().__init__(arguments.batch_size, tuple(arguments.patch), margin, arguments.device)
        self.batches["meta"] = self.batches["real"].rows(slice(0, arguments.meta_batch))

    def next(self, stream: str) -> Batch:
        """The batch of a stream."""
        return self.batches[stream]


def build(network: str, arm: str, arguments: argparse.Namespace) -> Method:
    """A method over a fresh network, as a host builds it."""
    name, options = ARMS[arm]
    if arm in MODES:
        options = options | {"unroll": arguments.unroll, "update_every": arguments.unroll}
    torch.manual_seed(0)
    module = methods.prepare(name, NETWORKS[network](), **options).to(arguments.device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.99, nesterov=True)
    task = Task(module, optimizer, losses, Precision(arguments.device, arguments.precision), clip=12.0)
    return methods.build(name, task, **options)


def memory_of(method: Method, batches: Batches, device: str) -> float:
    """MiB that a step, or the K steps of an update, add at most."""
    steps = method.update_every if isinstance(method, Bilevel) and method.update_every < NEVER else 1
    return memory(lambda: [method.step(batches) for _ in range(steps)], device)


def measure(network: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of step, ratios by J, memory."""
    plain, enlarged = Batches(arguments, (0, 0, 0)), Batches(arguments, tuple(arguments.margin))
    built = {arm: build(network, arm, arguments) for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(arguments.rounds + 1):
        for arm, method in built.items():
            start = clock(arguments.device)
            for _ in range(arguments.unroll if arm in MODES else 1):
                method.step(plain if arm == "none" else enlarged)
            if number:  # the first round warms up
                seconds[arm].append(clock(arguments.device) - start)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in NETWORKS[network]().parameters()),
        "seconds": {arm: round(statistics.median(s), 4) for arm, s in seconds.items()},
        "ratios": {},
        "mebibytes": {
            arm: round(memory_of(m, plain if arm == "none" else enlarged, arguments.device), 1)
            for arm, m in built.items()
            if arm != "jvp" or arguments.device != "cpu"  # dual numbers have no storage that could be counted there
        },
    }
    for arm in ("predefined", "invariant"):
        result["ratios"][arm] = _ratio([a / b for a, b in zip(seconds[arm], seconds["none"], strict=True)])
    for mode in MODES:
        for every in INTERVALS:
            if every >= arguments.unroll:
                rests = every - arguments.unroll
                rows = zip(seconds[mode], seconds["resting"], seconds["none"], strict=True)
                result["ratios"][f"{mode}_J{every}"] = _ratio([(m + rests * r) / (every * p) for m, r, p in rows])
    return result


def _ratio(values: list[float]) -> dict[str, Any]:
    """Median and range."""
    return {"ratio": round(statistics.median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--meta-batch", type=int, default=2)
    parser.add_argument("--unroll", type=int, default=1)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--margin", type=int, nargs=3, default=[0, 0, 0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("bilevel_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "benchmark": "bilevel_step",
        "clock": "process CPU seconds, one thread" if arguments.device == "cpu" else "synchronised wall seconds",
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        **{n: getattr(arguments, n) for n in ("batch_size", "meta_batch", "unroll", "patch", "margin", "precision",
                                              "rounds")},
        "networks": {},
    }  # fmt: skip
    for network in arguments.networks:
        report["networks"][network] = measured = measure(network, arguments)
        print(f"{network}, {measured['parameters'] / 1e6:.2f} M parameters")
        for arm, value in measured["seconds"].items():
            print(f"  {arm:25s} {value:8.3f} s  {measured['mebibytes'].get(arm, float('nan')):8.1f} MiB")
        for name, row in measured["ratios"].items():
            print(f"  {name:25s} {row['ratio']:6.2f} x  {row['range']}")
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
