# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Long runs hold no more memory, files, threads and processes than short ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import begin, ended, needs_kill, server, steady, taken
from run_helpers import rows

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import train
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions

pytestmark = needs_kill
# both have a second stream, one with workers that begin anew each epoch
METHODS: dict[str, dict[str, Any]] = {
    "adversarial": {"method_options": {"warm_up": 0, "width": 2}},
    "bilevel": {"method_options": {"update_every": 1}},
}


def observed(data: Path, folder: Path, method: str, epochs: int, iterations: int) -> None:
    """Train with workers, and note after each epoch what is held."""
    noted = []

    def listen(progress: Any) -> None:
        if progress.stage == "training" and progress.done and progress.done % iterations == 0:
            noted.append(taken())

    options = TrainOptions(
        data, folder, method=method, epochs=epochs, iterations=iterations, validation_cases=1, validation_interval=2,
        batch_size=2, patch_size=(8, 8, 8), network_options={"channels": [2, 4]}, device="cpu", workers=2,
        **METHODS[method],
    )  # fmt: skip
    train(options, listener=listen)
    (folder / "noted.json").write_text(json.dumps(noted))


@pytest.mark.parametrize(("method", "epochs", "iterations", "memory"), [
    ("adversarial", 12, 8, 6.0), ("bilevel", 12, 8, 6.0),
    pytest.param("adversarial", 80, 25, 12.0, marks=pytest.mark.long),
    pytest.param("bilevel", 80, 25, 12.0, marks=pytest.mark.long),
])  # fmt: skip
def test_nothing_grows_over_many_steps(
    method: str, epochs: int, iterations: int, memory: float, tmp_path: Path
) -> None:
    data, run = write_phantom(tmp_path / "data", cases=5, size=16), Run(tmp_path / "run")
    ended(begin(server(), observed, data, run.folder, method, epochs, iterations))
    assert len(rows(run)) == epochs
    noted = json.loads((run.folder / "noted.json").read_text())
    assert noted[0]["processes"] >= 3
    steady(noted, memory)
