# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What training costs on a GPU: ``python benchmarks/gpu.py --output gpu.json``, on a machine that has one.

nnU-Net's network of its 3d_fullres size (31 M parameters) on patches of 128 x 128 x 128 voxels, batches of 2, mixed
precision, all of it synthetic data that is made first. In wall seconds, each arm alone on the machine:

- trainings: iterations of stock nnU-Net with enough and with few worker processes, and of our trainer of each method;
  what of them is waiting for patches, GPU utilisation (nvidia-smi), peak memory, and the largest kernels. Where
  policies or augmenters learn now and then, an update is measured apart, and "seconds of training" has its share in
  it at the default schedule. All are measured as they come: nnU-Net compiles its network where it can;
  ``--no-compile`` switches that off for all.
- augmentation: milliseconds a batch, ours on the device, nnU-Net's own on one core.
- hypergradients: of joint_policy and bilevel in float16 and bfloat16, in each way to the derivative, beside exact
  float32.

Each arm is written when it is done, and an arm that fails leaves its message; the same command makes what is missing.
``--device cpu --patch 32 --iterations 2`` tries all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import code_version
from gpu_parts import measure_augmentation, measure_hypergradients
from gpu_trainings import ARMS, measure_arm, prepare

import monai_autoaug
from monai_autoaug.precision import DTYPES
from monai_autoaug.writing import write_text

PARTS = ("trainings", "augmentation", "hypergradients")
_SETTINGS = ("device", "patch", "batch_size", "features", "iterations", "warm_up", "enough", "few", "compile", "rounds")


def machine(device: str) -> dict[str, Any]:
    """What it was measured on, without names of hosts."""
    found: dict[str, Any] = {
        "processor": f"{platform.machine()} {platform.processor()}".strip(), "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
    }  # fmt: skip
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_mib": properties.total_memory // 2**20}
    return found


def versions() -> dict[str, str | None]:
    """Of what takes part."""
    from importlib.metadata import version

    named = {name: version(name) for name in ("monai", "nnunetv2", "batchgeneratorsv2")}
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "monai_autoaug": monai_autoaug.__version__, **named}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines: list[str] = []
    trainings = report.get("trainings", {})
    stock = trainings.get("stock", {}).get("seconds_of_training")
    if trainings:
        lines += ["| training | workers | s an iteration | s of training | over stock | waiting | GPU % | peak MiB |",
                  "|---" * 8 + "|"]  # fmt: skip
    for name, row in trainings.items():
        if "error" in row:
            lines.append(f"| {name} | | {row['error'].splitlines()[0][:80]} | | | | | |")
            continue
        peak = row["peak_mib_with_updates"] or {"allocated": "-"}
        seconds = row["seconds_of_training"]
        ratio = f"{seconds / stock:.2f}" if stock else ""
        lines.append(
            f"| {name} | {row['workers']} | {row['seconds']['median']:.3f} | {seconds:.3f} | {ratio} |"
            f" {row['waiting']:.0%} | {row['gpu_utilisation_percent'] or '-'} | {peak['allocated']} |"
        )
    if "augmentation" in report:
        lines += ["", "| augmentation of a batch | ms | range |", "|---|---|---|"]
        for name, row in report["augmentation"].items():
            lines.append(f"| {name} | {row['ms']:.1f} | {row['least']:.1f} to {row['most']:.1f} |")
    if "hypergradients" in report:
        lines += ["", "| hypergradient | difference | cosine | s a step | peak MiB |", "|---" * 5 + "|"]
        for method, rows in report["hypergradients"].items():
            for name, row in rows.items():
                lines.append(
                    f"| {method}, {name} | {row['relative_difference']:.1e} | {row['cosine']:.4f} |"
                    f" {row['step_seconds']:.3f} | {row['peak_mib'] or '-'} |"
                )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The command's options; what depends on the machine is filled in."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="trainings")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--patch", type=int, default=128, help="voxels a side, a power of 2")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--features", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--iterations", type=int, default=100, help="of a training that are measured")
    parser.add_argument("--warm-up", type=int, help="iterations before them; default: a quarter of them")
    parser.add_argument("--rounds", type=int, help="of the other parts; default: a tenth of the iterations")
    parser.add_argument("--enough", type=int, default=max(min(cores - 2, 12), 1), help="worker processes")
    parser.add_argument("--few", type=int, default=min(2, max(cores - 2, 1)), help="worker processes")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--work", type=Path, default=Path("gpu_work"), help="data and logs")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    if arguments.patch < 8 or arguments.patch & (arguments.patch - 1):
        parser.error(f"--patch must be a power of 2, at least 8, got {arguments.patch}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU; try it with --device cpu --patch 32 --iterations 2")
    arguments.warm_up = arguments.iterations // 4 if arguments.warm_up is None else arguments.warm_up
    arguments.rounds = max(arguments.iterations // 10, 2) if arguments.rounds is None else arguments.rounds
    # float16 on a CPU is refused: it has no kernels worth using
    arguments.precisions = [d for d in DTYPES if arguments.device != "cpu" or d != "float16"]
    return arguments


def former(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a file holds that was measured with these settings by this code; what has failed is tried again."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(content.get(name) != value for name, value in settings.items()):
        return {}
    found = {name: content[name] for name in PARTS if name in content}
    if "trainings" in found:
        found["trainings"] = {n: row for n, row in found["trainings"].items() if "error" not in row}
    return found


def main() -> None:
    """Measure what is missing, print and write JSON."""
    arguments = parse()
    os.environ["nnUNet_compile"] = "t" if arguments.compile else "f"
    report: dict[str, Any] = {
        "benchmark": "gpu", "clock": "wall seconds", "code": code_version(), "machine": machine(arguments.device),
        "versions": versions(), "settings": {name: getattr(arguments, name) for name in _SETTINGS},
    }  # fmt: skip
    report |= former(arguments.output, report)

    def keep() -> None:
        write_text(arguments.output, json.dumps(report, indent=1) + "\n")

    if "trainings" in arguments.parts:
        rows = report.setdefault("trainings", {})
        missing = [name for name in arguments.arms if name not in rows]
        if missing:
            given = prepare(arguments)
        for name in missing:
            try:
                rows[name] = measure_arm(name, given, arguments)
            except Exception as error:  # an arm without memory enough must not cost the others
                rows[name] = {"error": f"{type(error).__name__}: {error}"}
            keep()
    others: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "augmentation": measure_augmentation, "hypergradients": measure_hypergradients,
    }  # fmt: skip
    for name, measure in others.items():
        if name in arguments.parts and name not in report:
            report[name] = measure(arguments)
            keep()
    print(markdown(report))


if __name__ == "__main__":
    main()
