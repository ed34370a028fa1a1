# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Throughput of ``monai-autoaug check``: ``python benchmarks/audit.py --output audit.json``.

A data set of smooth noisy images (int16) and labels (uint8) is written as .nii.gz in nnU-Net's layout. Its audit, with
each number of workers, and nothing but reading the same files with nibabel are timed in turn, several rounds of them.
Workers are threads, so wall time says what they gain, if the machine has nothing else to do; CPU time of the process
says what the audit costs over reading, whatever else runs. The files are in the system's cache: disks are not measured.
MiB are of the voxels in memory, not of the compressed files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from commands import code_version
from scipy.ndimage import zoom

import monai_autoaug
from monai_autoaug.data import read_datalist
from monai_autoaug.data.audit import audit, refused
from monai_autoaug.writing import write_text

READING = "nibabel, one thread"


def write_data(folder: Path, cases: int, size: int) -> list[Path]:
    """A data set that nothing is wrong with; returns its volumes."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    files = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    coarse = max(2, size // 16)
    for number in range(cases):
        smooth = zoom(rng.standard_normal((coarse,) * 3), size / coarse, order=1)
        image = (1000 + 200 * smooth + 20 * rng.standard_normal(smooth.shape)).astype(np.int16)
        label = (smooth > 0.5).astype(np.uint8) + (smooth > 1.0).astype(np.uint8)
        for array, file in (
            (image, f"imagesTr/case_{number:03d}_0000.nii.gz"),
            (label, f"labelsTr/case_{number:03d}.nii.gz"),
        ):
            nib.save(nib.Nifti1Image(array, affine), folder / file)
            files.append(folder / file)
    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1, "two": 2}, "numTraining": cases,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    write_text(folder / "dataset.json", json.dumps(description))
    return files


def read_all(files: list[Path]) -> int:
    """Read every voxel; returns how many bytes they are."""
    return sum(np.asarray(nib.load(file).dataobj).nbytes for file in files)


def measure(folder: Path, files: list[Path], workers: list[int], rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a pass over the data set by each way, and what that makes in a second."""
    datalist = read_datalist(folder)

    def check(count: int) -> None:
        findings = audit(datalist, workers=count)
        if refused(findings):
            raise RuntimeError(f"the data set was meant to be in order, but: {[f.reason for f in findings]}")

    ways: dict[str, Callable[[], object]] = {READING: lambda: read_all(files)}
    ways |= {f"check, {n} worker{'s' if n > 1 else ''}": (lambda n=n: check(n)) for n in workers}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if number:  # the first round imports and fills the system's cache
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    voxels = read_all(files)
    return {"volumes": len(files), "mib": round(voxels / 2**20, 3),
            "compressed_mib": round(sum(f.stat().st_size for f in files) / 2**20, 3),
            "ways": {name: _row(name, seconds, len(files), voxels / 2**20) for name in ways}}  # fmt: skip


def _row(name: str, seconds: dict[str, list[tuple[float, float]]], volumes: int, mib: float) -> dict[str, Any]:
    """Medians, with the range over rounds."""
    wall, cpu = ([s[k] for s in seconds[name]] for k in (0, 1))
    over = [a[1] / b[1] for a, b in zip(seconds[name], seconds[READING], strict=True)]
    middle = statistics.median(wall)
    return {
        "wall_seconds": round(middle, 4), "wall_range": [round(f(wall), 4) for f in (min, max)],
        "cpu_seconds": round(statistics.median(cpu), 4),
        "volumes_per_second": round(volumes / middle, 2), "mib_per_second": round(mib / middle, 1),
        "mib_per_cpu_second": round(mib / statistics.median(cpu), 1),
        "cpu_over_reading": {
            "median": round(statistics.median(over), 2), "range": [round(f(over), 2) for f in (min, max)]
        },
    }  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        "| way | volumes a second | MiB a second | MiB a CPU second | CPU time over reading |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["ways"].items():
        low, high = row["cpu_over_reading"]["range"]
        lines.append(
            f"| {name} | {row['volumes_per_second']:.1f} | {row['mib_per_second']:.0f} |"
            f" {row['mib_per_cpu_second']:.0f} | {row['cpu_over_reading']['median']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=32, help="images, each with a label: two volumes")
    parser.add_argument("--size", type=int, default=128, help="voxels along each axis")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("audit.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "benchmark": "audit", "clock": "wall and process CPU seconds",
        "machine": f"{platform.machine()} {platform.processor()}".strip(), "cores": os.cpu_count(),
        "load_average": [round(n, 1) for n in os.getloadavg()],
        "versions": {"nibabel": nib.__version__, "numpy": np.__version__, "monai_autoaug": monai_autoaug.__version__},
        "code": code_version(), "size": arguments.size, "rounds": arguments.rounds,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        files = write_data(Path(folder), arguments.cases, arguments.size)
        report |= measure(Path(folder), files, arguments.workers, arguments.rounds)
    write_text(arguments.output, json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
