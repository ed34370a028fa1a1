# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A copy of the bundle that a test file is about, and a few cases for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_helpers import some_cases, synthetic_cases, writable


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy to write into of the bundle that the test's module names, or its parameter."""
    named = getattr(request, "param", None)
    return writable(request.module.BUNDLE if named is None else named, tmp_path)


@pytest.fixture
def data(hippocampus: Path, tmp_path: Path) -> Path:
    """A few real cases."""
    return some_cases(hippocampus, tmp_path / hippocampus.name)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few synthetic cases."""
    return synthetic_cases(tmp_path_factory.mktemp("synthetic"))
