# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What learned policies cost on nnU-Net's network: ``python benchmarks/policy_cost.py --output policy_cost.json``.

Three questions, all arms in turn in one process and one thread, by process CPU time (wall time on a GPU, after
synchronising); medians over rounds of ratios within a round:

- training: steps of joint_policy that update nothing and steps that update the policies, over the plain step on the
  same patches; at the default schedule of a training of ``--steps`` steps this makes the ratio of total training times.
  Its parts are told apart: our augmentation (and nnU-Net's own beside it, which runs in workers), learning for
  training, learning for test time, and what an epoch's end adds.
- memory: the highest sum of what torch's allocator holds in a step, over that at its beginning, with an update and
  without; on a CPU by torch's profiler, so without the workspaces of oneDNN.
- views: 8 views inside the network over nnU-Net's predictor with its 8-fold mirroring, for the start of the preset,
  for the 8 most expensive views (interpolation there and back) and for 8 random ones.

A part is written when it is done; with ``--parts`` the others stay in the output file, if it is of the same settings
and machine, with the code that each was measured with.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import code_version
from joint_step import nnunet_network
from policy_parts import EPOCH, INTERVALS, measure_memory, measure_training, measure_views

import monai_autoaug
from monai_autoaug.optim.hypergradient import MODES
from monai_autoaug.writing import write_text

BARS = {"training": 1.15, "memory": 2.0, "views": 1.0}  # at most


def verdicts(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was asked for beside what was found; the memory is that of the finite-difference probe."""
    found = {}
    default = report.get("training", {}).get("arms", {}).get("both policies, jvp")
    probe = report.get("memory", {}).get("training policy, finite_difference")
    if default is not None:
        found["training"] = default["total"]["median"]
    if probe is not None:
        found["memory"] = probe["ratio"]
    if "views" in report:
        found["views"] = max(row["median"] for row in report["views"]["ratios"].values())
    return {
        name: {"found": value, "at most": BARS[name], "holds": value <= BARS[name]} for name, value in found.items()
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines: list[str] = []
    if "training" in report:
        part = report["training"]
        lines += [f"{name}: {value['median']:.1%} of a plain step" for name, value in part["plain step"].items()]
        lines += ["", f"| learning | an update, plain steps | every | total | {' | '.join(map(str, INTERVALS))} |",
                  "|---" * (4 + len(INTERVALS)) + "|"]  # fmt: skip
        for name, row in part["arms"].items():
            by = " | ".join(f"{v:.2f}" for v in row["total by update_every"].values())
            an, total = row["an update"]["median"], row["total"]["median"]
            lines.append(f"| {name} | {an:.2f} | {row['update_every']} | {total:.3f} | {by} |")
    if "memory" in report:
        lines += ["", "| step | MiB | over plain |", "|---|---|---|"]
        lines += [f"| {name} | {row['mib']} | {row['ratio']:.2f} |" for name, row in report["memory"].items()]
    if "views" in report:
        lines += ["", "| 8 views | over 8-fold mirroring |", "|---|---|"]
        lines += [f"| {name} | {row['median']:.3f} |" for name, row in report["views"]["ratios"].items()]
    lines += ["", "| asked for | found | at most | holds |", "|---|---|---|---|"]
    for name, row in report["verdicts"].items():
        lines.append(f"| {name} | {row['found']:.3f} | {row['at most']} | {'yes' if row['holds'] else 'no'} |")
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": measure_training, "memory": measure_memory, "views": measure_views,
}  # fmt: skip


def former(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The parts that a file holds, if they were measured with these settings."""
    if not file.exists():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if any(content.get(name) != value for name, value in settings.items()):
        return {}
    return {name: content[name] for name in (*PARTS, "code") if name in content}


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--derivatives", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--margin", type=int, nargs=3, help="default: a quarter of the patch, as in nnU-Net's host")
    parser.add_argument("--steps", type=int, default=1000 * EPOCH, help="planned steps, which set the default schedule")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("policy_cost.json"))
    arguments = parser.parse_args()
    arguments.margin = arguments.margin or [n // 4 for n in arguments.patch]
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "benchmark": "policy_cost",
        "clock": "process CPU seconds, one thread" if arguments.device == "cpu" else "synchronised wall seconds",
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        "batch_size": arguments.batch_size, "patch": arguments.patch, "margin": arguments.margin,
        "steps": arguments.steps, "precision": arguments.precision,
        "parameters": sum(p.numel() for p in nnunet_network().parameters()),
    }  # fmt: skip
    report |= former(arguments.output, report)
    for part in arguments.parts:
        report[part] = PARTS[part](arguments)
        report.setdefault("code", {})[part] = code_version()
        report["verdicts"] = verdicts(report)
        write_text(arguments.output, json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
