# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What all tests share: slow forms on demand, one thread, fixed seeds, and the folder of real data."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable

DATA = "MONAI_AUTOAUG_TEST_DATA"

# tests run side by side, one process a core; more threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the slow forms of tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow forms out unless ``--long`` is given; they count as deselected, not as skipped."""
    if config.getoption("--long"):
        return
    slow = [item for item in items if item.get_closest_marker("long")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Global random numbers start anew in every test, so that a test's result doesn't depend on those before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # code under test may use the global generator
    torch.manual_seed(0)
    Randomizable.R.seed(0)  # what MONAI's transforms draw from until set_random_state gives them one of their own
    return 0


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that holds the public data sets, which are not part of this project."""
    folder = os.environ.get(DATA)
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"the environment variable {DATA} names no folder of public data sets (got {folder!r})"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def hippocampus(test_data: Path) -> Path:
    """Task04_Hippocampus of the Medical Segmentation Decathlon (CC-BY-SA 4.0): MRI, two structures, about 35x50x35."""
    folder = test_data / "Task04_Hippocampus"
    if not (folder / "dataset.json").is_file():
        pytest.fail(f"{DATA} is set, but there is no {folder.name}/dataset.json in it")
    return folder
