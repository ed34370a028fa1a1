# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Random elastic deformations and random contrast: against torch's bicubic interpolation and the formula itself."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.methods.fixed_fields import random_contrast, random_elastic


def test_the_field_is_torchs_bicubic_one_of_three_points_an_axis() -> None:
    shape = (20, 28)
    move = random_elastic(torch.zeros(3, 1, *shape), torch.Generator().manual_seed(0))
    points = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    points = points * torch.tensor(shape).view(1, 2, 1, 1) * 10 / 224
    wanted = torch.nn.functional.interpolate(points, size=shape, mode="bicubic", align_corners=True)
    assert move.displacement is not None
    torch.testing.assert_close(move.displacement, wanted)


def test_of_volumes_it_goes_through_its_points_and_is_as_strong_as_in_the_paper() -> None:
    shape = (9, 13, 11)
    move = random_elastic(torch.zeros(200, 1, *shape), torch.Generator().manual_seed(0))
    assert move.displacement is not None
    points = move.displacement[:, :, ::4, ::6, ::5]
    assert points.shape == (200, 3, 3, 3, 3)
    relative = points.std(dim=(0, 2, 3, 4)) / torch.tensor(shape)
    torch.testing.assert_close(relative, torch.full((3,), 10 / 224), rtol=0.05, atol=0)
    image = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(200, 1, *shape)
    assert float((move.apply(image) - image).abs().max()) > 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_contrast_and_brightness_are_the_papers(dims: int) -> None:
    image = torch.randn(300, 2, *(12, 10, 8)[:dims]) * 3 + 5
    changed = random_contrast(image, torch.Generator().manual_seed(0)).apply(image)
    axes = tuple(range(2, image.ndim))
    factor = changed.std(dim=axes) / image.std(dim=axes)
    assert 0.8 <= float(factor.min()) < 0.82
    assert 1.18 < float(factor.max()) <= 1.2001
    shift = (changed - image).mean(dim=axes) / image.std(dim=axes, correction=0) / 4.107  # of the 2-98 % range
    assert -0.1001 <= float(shift.min()) < -0.098
    assert 0.098 < float(shift.max()) <= 0.1001
    normal = torch.distributions.Normal(0.0, 1.0)
    assert float(2 * normal.icdf(torch.tensor(0.98))) == pytest.approx(4.107, abs=1e-3)
    assert not torch.allclose(factor[:, 0], factor[:, 1])  # each channel by itself


def test_a_flat_patch_stays_finite() -> None:
    image = torch.full((2, 1, 8, 8), 3.0)
    torch.testing.assert_close(random_contrast(image, torch.Generator().manual_seed(0)).apply(image), image)
