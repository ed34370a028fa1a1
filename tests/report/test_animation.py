# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The README's animation: drawn from a run by the script beside it, and the one that is stored."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from monai_autoaug import augmenters
from monai_autoaug.data import read_datalist
from monai_autoaug.engines.folder import Run
from monai_autoaug.report.pictures import subject

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("animation", DOCS / "animation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", (0.0, 1.0))
    monkeypatch.setattr(module, "SEEDS", (0, 1))
    return module


@pytest.fixture
def demo(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run and its data as a demo has them."""
    (tmp_path / "run").symlink_to(runs["adversarial"])
    (tmp_path / "data").symlink_to(runs["adversarial"].parents[1] / "patient_files" / "data")
    return tmp_path


def test_frames_go_from_nothing_to_what_was_learned(script: ModuleType, demo: Path) -> None:
    learned = dict(augmenters.load(demo / "run" / "augmenters.pt"))
    before = {name: float(augmenter.strength) for name, augmenter in learned.items()}
    image, label = subject(Run(demo / "run"), read_datalist(demo / "data"))
    with torch.no_grad():
        still, moved = script.drawn(learned, image, label, 0)
    assert [panel.title for panel in still] == ["original", "affine", "deformed", "appearance"]
    for there, after in zip(still[1:], moved[1:], strict=True):
        assert torch.allclose(there.image, image, atol=1e-3)
        assert float((after.image - image).abs().max()) > 0.01
        assert there.caption == after.caption != ""
    assert {name: float(augmenter.strength) for name, augmenter in learned.items()} == before
    other, _ = subject(Run(demo / "run"), read_datalist(demo / "data"), number=1)
    assert other.shape != image.shape or not torch.equal(other, image)


def test_it_is_written_as_it_lasts(script: ModuleType, demo: Path) -> None:
    script.main(demo, demo / "some.gif")
    with Image.open(demo / "some.gif") as picture:
        assert picture.n_frames == 4
        lasting = []
        for number in range(4):
            picture.seek(number)
            lasting.append(picture.info["duration"])
        assert lasting == [script.HOLD[0.0], script.HOLD[1.0]] * 2


def test_the_stored_one_moves_and_is_small() -> None:
    file = DOCS / "images" / "augmentations.gif"
    assert file.stat().st_size < 1.5e6
    with Image.open(file) as picture:
        assert picture.n_frames >= 12
        assert picture.width <= 900
        assert picture.info["loop"] == 0
