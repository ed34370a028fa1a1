# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What augmentation at training time costs: ``python benchmarks/pipeline.py --output pipeline.json``.

The default pipeline of this package (joint_policy's preset, as nnU-Net's host applies it), that of nnU-Net
(batchgeneratorsv2 as nnUNetTrainer composes it), and the same operations by MONAI's and TorchIO's transforms make
training samples of the same volumes, in turn, in one process and one thread, by process CPU time. What is measured is
a patch as a loader reads it -> a patch as a network is trained on it. Draw n has the seed n in all of them; they draw
different things from it.

Labels are where pipelines differ most, so it is said which of them a comparison is of:

- soft: interpolated one-hot channels, as our losses take them (ours)
- linear: the label of the highest of these channels (batchgeneratorsv2's default, "ours, linear")
- nearest: that of the nearest voxel ("batchgeneratorsv2, nearest", MONAI, TorchIO); ours can't, so it is compared doing
  more than they do

"ours" is what the trainers do on a CPU, in workers or beside the network: from label values, without a grid where that
can be. "ours, channels" is what they do there with regions, unknown voxels, a mask or a cascade's channels: every
channel of the label is resampled, without a grid where that can be.

A ratio is the mean of a peer over ours, for the same draws; the interval is a bootstrap over draws, the range is over
repeats of all draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import code_version
from pipeline_peers import PIPELINES, read_size
from torch import Tensor, nn

from monai_autoaug.writing import write_text

SIZES = {"1x64": (1, 64, 60), "1x128": (1, 128, 24), "4x128": (4, 128, 16)}  # channels, patch, draws
NEEDS = {"batchgeneratorsv2": "batchgeneratorsv2", "MONAI": "monai", "TorchIO": "torchio"}
CLASSES = 3
# ours, peer, at least how many times as fast, by channels
COMPARISONS = {
    "as is": ("ours", "batchgeneratorsv2", {1: 3.0, 4: 1.0}),
    "like for like, both linear": ("ours, linear", "batchgeneratorsv2", {1: 1.5, 4: 1.0}),
    "linear to nearest": ("ours, linear", "batchgeneratorsv2, nearest", {}),
    "channels to as is": ("ours, channels", "batchgeneratorsv2", {}),
    "linear to MONAI's nearest": ("ours, linear", "MONAI", {}),
    "linear to TorchIO's nearest": ("ours, linear", "TorchIO", {}),
}


def volume(channels: int, size: int) -> tuple[Tensor, Tensor]:
    """A smooth image with fine noise (C, D, H, W), and three labels of neighbouring voxels (1, D, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, 8, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)[0]
    label = (smooth[:1] > 0.6).short() + (smooth[:1] > 1.2).short()
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator), label


def measure(names: list[str], channels: int, patch: int, draws: int, repeats: int) -> dict[str, np.ndarray]:
    """Milliseconds (repeats, draws) of each pipeline, in turn."""
    made = {name: PIPELINES[name](patch, channels, CLASSES) for name in names}
    whole = volume(channels, read_size(patch))
    cut = {name: [_centre(x, getattr(one, "reads", x.shape[-1])) for x in whole] for name, one in made.items()}
    found = {name: np.zeros((repeats, draws)) for name in names}
    for name, pipeline in made.items():  # warm up
        for number in range(min(4, draws)):
            pipeline(10_000 + number, *(x.clone() for x in cut[name]))
    for repeat in range(repeats):
        for number in range(draws):
            for k in range(len(names)):
                name = names[(k + number + repeat) % len(names)]
                given = [x.clone() for x in cut[name]]  # a pipeline may work in place, and each has its own
                start = time.process_time()
                made[name](number, *given)
                found[name][repeat, number] = 1e3 * (time.process_time() - start)
    return found


def _centre(x: Tensor, size: int) -> Tensor:
    """The middle (C, size, size, size) of a volume, as a loader hands it over."""
    first = (x.shape[-1] - size) // 2
    return x[(slice(None), *[slice(first, first + size)] * 3)].contiguous()


def ratio(ours: np.ndarray, peer: np.ndarray) -> dict[str, Any]:
    """Mean of the peer over ours, with its interval over draws and its range over repeats."""
    a, b = np.median(ours, 0), np.median(peer, 0)
    chosen = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    low, high = np.quantile(b[chosen].mean(1) / a[chosen].mean(1), [0.025, 0.975])
    by_repeat = peer.mean(1) / ours.mean(1)
    return {
        "ratio": round(float(b.mean() / a.mean()), 2),
        "interval_95": [round(float(low), 2), round(float(high), 2)],
        "range over repeats": [round(float(f(by_repeat)), 2) for f in (np.min, np.max)],
        "ratio of medians": round(float(np.median(b) / np.median(a)), 2),
    }


def figures(milliseconds: np.ndarray) -> dict[str, float]:
    """Of a sample: mean, median and spread over draws."""
    draws = np.median(milliseconds, 0).tolist()
    quarters = statistics.quantiles(draws, n=4) if len(draws) > 1 else draws * 3
    return {
        "mean": round(statistics.fmean(draws), 2), "median": round(statistics.median(draws), 2),
        "sd": round(statistics.pstdev(draws), 2),
        "quarter": round(quarters[0], 2), "three quarters": round(quarters[2], 2),
        "max": round(max(draws), 2),
    }  # fmt: skip


def rows(found: dict[str, np.ndarray], channels: int) -> dict[str, Any]:
    """The comparisons of one size, with what was asked for."""
    made: dict[str, Any] = {}
    for name, (mine, peer, targets) in COMPARISONS.items():
        if mine in found and peer in found:
            made[name] = ratio(found[mine], found[peer])
            if channels in targets:
                made[name] |= {"at least": targets[channels], "holds": made[name]["ratio"] >= targets[channels]}
    return made


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    sizes = report["sizes"]
    names = list(dict.fromkeys(n for size in sizes.values() for n in size["milliseconds"]))
    lines = [f"| ms a sample, mean (median) | {' | '.join(sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    for name in names:
        cells = [size["milliseconds"].get(name) for size in sizes.values()]
        shown = ["" if c is None else f"{c['mean']:.1f} ({c['median']:.1f})" for c in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines += ["", f"| times as fast [95 % over draws] | {' | '.join(sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    for name in COMPARISONS:
        cells = [size["ratios"].get(name) for size in sizes.values()]
        shown = ["" if c is None else _cell(c) for c in cells]
        if any(shown):
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    verdict = f"; {row['at least']:g} was asked for{'' if row['holds'] else ': missed'}" if "at least" in row else ""
    return f"{row['ratio']:.2f} [{row['interval_95'][0]:.2f}, {row['interval_95'][1]:.2f}]{verdict}"


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--pipelines", nargs="+", default=list(PIPELINES), choices=list(PIPELINES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draws", type=int, help="samples a repeat; default: by size, 60, 24 and 16")
    parser.add_argument("--quick", action="store_true", help="patches of 16 voxels and 3 draws: does it run?")
    parser.add_argument("--output", type=Path, default=Path("pipeline.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    absent = [n for n in arguments.pipelines for peer, m in NEEDS.items()
              if n.startswith(peer) and importlib.util.find_spec(m) is None]  # fmt: skip
    for name in absent:
        print(f"{name} is not installed: its column is left out")
    names = [n for n in arguments.pipelines if n not in absent]
    report: dict[str, Any] = {
        "benchmark": "pipeline", "clock": "process CPU milliseconds, one thread",
        "machine": f"{platform.machine()} {platform.processor()}".strip(), "code": code_version(),
        "versions": {m: version(m) for m in ("torch", "monai_autoaug", "nnunetv2", *NEEDS.values())
                     if importlib.util.find_spec(m) is not None},
        "classes": CLASSES, "repeats": arguments.repeats, "sizes": {},
    }  # fmt: skip
    for size in arguments.sizes:
        channels, patch, draws = SIZES[size]
        patch, draws = (16, 3) if arguments.quick else (patch, arguments.draws or draws)
        found = measure(names, channels, patch, draws, arguments.repeats)
        report["sizes"][size] = {
            "patch": patch, "read": read_size(patch), "draws": draws,
            "milliseconds": {n: figures(v) for n, v in found.items()}, "ratios": rows(found, channels),
        }  # fmt: skip
        write_text(arguments.output, json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
