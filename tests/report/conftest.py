# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures caught when they are written, and small runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_helpers import make_runs

from monai_autoaug.report.style import save


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of joint_policy, adversarial and random on the same cases, which the tests look at and don't change."""
    return make_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []

    def keep(picture: Figure, path: str | Path) -> Path:
        kept.append(picture)
        return save(picture, path)

    for module in ("augmentations", "predictions", "curves", "policy"):
        monkeypatch.setattr(f"monai_autoaug.report.{module}.save", keep)
    return kept
