# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The benchmark for GPUs runs, in small, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALL = ["stock", "stock, few workers", "none", "random", "adversarial", "task_driven", "joint_policy",
       "joint_policy, few workers", "joint_policy, in workers", "bilevel", "general_adversarial"]  # fmt: skip


def benchmark(folder: Path, *arguments: object) -> str:
    words = "--device cpu --iterations 2 --features 2 --work work --output gpu.json".split()
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")} | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(("arms", "patch"), [
    (["stock", "joint_policy", "bilevel"], 16), pytest.param(ALL, 32, marks=pytest.mark.long)
])  # fmt: skip
def test_every_part_is_measured_and_kept(arms: list[str], patch: int, tmp_path: Path) -> None:
    text = benchmark(tmp_path, "--patch", patch, "--arms", *arms)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["trainings"]) == arms
    for name, row in report["trainings"].items():
        assert "error" not in row, (name, row)
        assert row["seconds"]["median"] > 0
        assert 0 <= row["waiting"] <= 1
        assert row["profile"]["largest"][0]["ms"] > 0
        learns = name.startswith(("joint_policy", "bilevel"))
        assert ("update_seconds" in row) == learns
        if learns:
            plain = row["seconds"]["mean"]
            whole = plain + (row["update_seconds"]["median"] - plain) / row["update_every"]
            assert row["seconds_of_training"] == pytest.approx(whole, abs=1e-4)
            assert row["update_every"] > 1
        assert f"| {name} | {row['workers']} |" in text
    assert {"training policy, nnU-Net's preset", "augmenter, affine", "nnU-Net's own, one core"} <= report[
        "augmentation"
    ].keys()
    for method in ("joint_policy", "bilevel"):
        rows = report["hypergradients"][method]
        assert rows["float32, exact, double_backward"]["relative_difference"] == 0
        assert rows["float32, exact, jvp"]["relative_difference"] < 1e-2
        assert rows["bfloat16, double_backward"]["cosine"] > 0.5
    before = (tmp_path / "gpu.json").read_bytes()
    benchmark(tmp_path, "--patch", patch, "--arms", *arms)
    assert (tmp_path / "gpu.json").read_bytes() == before  # nothing is missing
