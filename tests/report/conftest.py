# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures caught when they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from monai_autoaug.report.style import save


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
