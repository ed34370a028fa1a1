# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The benchmarks of pipelines, of the audit and of hypergradients run, in small."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from monai_autoaug.data.phantom import write_phantom

ROOT = Path(__file__).parents[1]


def benchmark(folder: Path, name: str, *arguments: object) -> tuple[dict[str, Any], str]:
    """The report and the table."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--output", "report.json"]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "report.json").read_text()), done.stdout


def test_pipelines_are_compared(tmp_path: Path) -> None:
    report, text = benchmark(tmp_path, "pipeline", "--quick", "--repeats", 1)
    assert list(report["sizes"]) == ["1x64", "1x128", "4x128"]
    for row in report["sizes"].values():
        assert row["read"] > row["patch"]
        peers = {
            "ours",
            "ours, channels",
            "ours, linear",
            "batchgeneratorsv2",
            "batchgeneratorsv2, nearest",
            "MONAI",
        }
        peers |= {"TorchIO"} if importlib.util.find_spec("torchio") else set()
        assert set(row["milliseconds"]) == peers
        assert all(one["mean"] > 0 for one in row["milliseconds"].values())
        found = row["ratios"]["as is"]
        assert found["holds"] == (found["ratio"] >= found["at least"])
        assert found["interval_95"][0] <= found["interval_95"][1]
    assert "| batchgeneratorsv2, nearest |" in text


def test_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torchio' else find(name, *rest)\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), "--quick", "--repeats", "1"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [*command, "--sizes", "1x64", "--pipelines", "ours", "TorchIO"], cwd=tmp_path, capture_output=True,
        env=dict(os.environ) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TorchIO is not installed" in done.stdout


def test_the_audit_is_timed_beside_reading(tmp_path: Path) -> None:
    report, text = benchmark(tmp_path, "audit", "--cases", 2, "--size", 16, "--workers", 1, 2, "--rounds", 1)
    assert report["volumes"] == 4
    assert report["mib"] > 0
    assert list(report["ways"]) == ["nibabel, one thread", "check, 1 worker", "check, 2 workers"]
    assert report["ways"]["nibabel, one thread"]["cpu_over_reading"]["median"] == 1
    assert "| check, 2 workers |" in text


def test_hypergradients_are_compared_with_exact_ones(tmp_path: Path) -> None:
    write_phantom(tmp_path / "data", cases=4, size=24, seed=0)
    words = "--networks monai_unet --batch-size 1 --patch 16 16 16 --steps 1 --rounds 1".split()
    report, text = benchmark(tmp_path, "hypergradient", "data", *words)
    row = report["networks"]["monai_unet"]
    for kind in ("weights", "augmenter"):
        found = row["accuracy"][kind]
        assert found["float64"]["jvp"]["error"] < 1e-6
        assert found["float32"]["double_backward"]["cosine"] > 0.99
        assert set(found["float32"]) == set(found["float64"])
    assert row["costs"]["plain"]["over plain"] == 1
    assert row["costs"]["augmenter, jvp"]["mib"] > 0
    assert "| weights, jvp |" in text
