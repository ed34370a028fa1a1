# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Strengths in mm and folding voxels, against transformations of which they are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_autoaug.augmenters import AffineAugmenter, Augmenter, Transformation
from monai_autoaug.methods.sample_file import Patch
from monai_autoaug.report.measure import displacement_mm, logged_figures, measured_figures
from monai_autoaug.transforms.geometry import identity_grid

SPACING = (2.0, 1.0, 1.0)


def patch() -> Patch:
    label = torch.zeros(2, 12, 12, 12)
    label[0] = 1
    return Patch(torch.zeros(1, 12, 12, 12), label, (2, 2, 2), SPACING, "RAS", ("a",), False, (4, 4, 4))


class Fixed(Augmenter):
    """The same transformation each time."""

    kind = "fixed"

    def __init__(self, **parts: Tensor) -> None:
        super().__init__(3, 1, noise_size=2)
        self.parts = parts

    def forward(self, image: Tensor, noise: Any = None, *, spacing: Any = None) -> Transformation:
        return Transformation(tuple(image.shape[2:]), **self.parts)  # type: ignore[arg-type]

    def options(self) -> dict[str, Any]:
        return {}


def values(augmenter: Augmenter) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in measured_figures(augmenter, patch(), draws=3)}


def test_a_shift_is_as_long_as_it_is_in_mm() -> None:
    matrix = torch.eye(3, 4)[None].clone()
    matrix[0, :, 3] = torch.tensor([1.5, 2.0, 0.0])  # 3 mm and 2 mm
    found = values(Fixed(matrix=matrix))
    for name in ("mean displacement", "95th percentile of displacement", "largest displacement"):
        assert found[name]["value"] == pytest.approx(13**0.5, rel=1e-4)
        assert found[name]["unit"] == "mm"
    assert found["folding voxels"]["value"] == 0
    assert not found["folding voxels"]["bad"]
    assert found["smallest volume"]["value"] == pytest.approx(1, abs=1e-4)


def test_folding_voxels_are_counted_at_full_resolution() -> None:
    field = torch.zeros(1, 3, 12, 12, 12)
    field[0, 0, 6:] = -3.0  # two planes of voxels behind each other change places
    found = values(Fixed(displacement=field))
    # of the 8 x 8 x 8 voxels without margin, forward differences: one plane of 7 x 7, in each of three draws
    assert found["folding voxels"]["value"] == 3 * 7 * 7
    assert found["folding voxels"]["bad"]
    assert f"of {3 * 7**3} in 3 draws" in found["folding voxels"]["hint"]
    assert found["largest displacement"]["value"] == pytest.approx(6.0, abs=1e-3)


def test_changes_of_intensity_are_in_standard_deviations() -> None:
    mask = torch.zeros(1, 1, 12, 12, 12)
    mask[:, :, :6] = -0.5
    found = values(Fixed(additive=mask))
    assert found["mean change of intensity"]["value"] == pytest.approx(0.25)
    assert found["largest change of intensity"]["value"] == pytest.approx(0.5)
    assert "mean displacement" not in found
    assert values(Fixed(additive=mask * 0))["mean change of intensity"]["bad"]  # collapsed to the identity


def test_an_augmenter_is_measured_where_it_has_collapsed() -> None:
    augmenter = AffineAugmenter(3, 1).eval()
    augmenter.strength.fill_(0.0)
    found = values(augmenter)
    assert found["mean displacement"]["value"] == pytest.approx(0, abs=1e-4)
    assert found["mean displacement"]["bad"]
    augmenter.strength.fill_(1.0)
    assert values(augmenter)["mean displacement"]["value"] > 0.1
    assert not values(augmenter)["mean displacement"]["bad"]


def test_displacements_know_the_size_of_voxels() -> None:
    grid = identity_grid((3, 4, 5)).clone()
    grid[..., 0] += 1
    assert displacement_mm(grid, (2.5, 1.0, 1.0)).unique().tolist() == [2.5]


def test_the_log_tells_the_rest() -> None:
    row = {"epoch": 3, "affine_saturation": 0.5, "affine_noise_share": 0.9, "deformation_noise_share": 0.1,
           "affine_rotation": float("nan")}  # fmt: skip
    found = {figure["name"]: figure for figure in logged_figures(row, "affine")}
    assert set(found) == {"parameters at their bounds", "variation due to noise"}
    assert found["parameters at their bounds"]["bad"]
    assert not found["variation due to noise"]["bad"]
    assert not found["variation due to noise"]["measured"]
    (other,) = logged_figures(row, "deformation")
    assert other["bad"]
