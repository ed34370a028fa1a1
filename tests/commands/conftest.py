# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A small data set and a run on it, which the tests look at and don't change."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import SMALL, call
from click.testing import Result

from monai_autoaug.data import write_phantom


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("cli") / "data", cases=5, size=20, test=1)


@pytest.fixture(scope="session")
def run(data: Path) -> tuple[Path, Result]:
    folder = data.parent / "run"
    return folder, call("train", data, "--output", folder, *SMALL)
