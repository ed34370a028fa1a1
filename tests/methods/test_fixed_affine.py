# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The fixed augmentations: what they draw, and within which bounds."""

from __future__ import annotations

import math

import pytest
import torch

from monai_autoaug.methods.fixed_affine import fixed_affine


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_light_shifts_by_whole_voxels_up_to_an_eighth(spatial_dims: int) -> None:
    image = torch.zeros(400, 1, *(32, 16, 8)[:spatial_dims])
    matrix = fixed_affine(image, "light", torch.Generator().manual_seed(0)).matrix
    assert matrix is not None
    assert torch.equal(matrix[:, :, :-1], torch.eye(spatial_dims).expand(400, -1, -1))
    for axis, most in enumerate((4, 2, 1)[:spatial_dims]):
        values, counts = matrix[:, axis, -1].unique(return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        assert int(counts.min()) > 400 / (2 * most + 1) / 2


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_strong_rotates_and_scales_too(spatial_dims: int) -> None:
    image = torch.zeros(2000, 1, *(32, 32, 32)[:spatial_dims])
    t = fixed_affine(image, "strong", torch.Generator().manual_seed(0))
    assert t.matrix is not None
    linear = t.matrix[:, :, :-1]
    factor = torch.linalg.det(linear) ** (1 / spatial_dims)
    assert 0.5 <= float(factor.min()) < 0.52
    assert 1.9 < float(factor.max()) <= 2.0001
    assert float(factor.log().mean()) == pytest.approx(0, abs=0.05)
    turn = linear / factor.view(-1, 1, 1)
    assert torch.allclose(turn @ turn.mT, torch.eye(spatial_dims).expand_as(turn), atol=1e-5)
    c, s = math.cos(math.radians(10.0)), math.sin(math.radians(10.0))
    least = c if spatial_dims == 2 else c * c - s**3  # of three rotations one after the other
    assert float(turn.diagonal(dim1=1, dim2=2).amin()) >= least - 1e-5
    assert float(t.matrix[:, :, -1].abs().max()) == 4


def test_rotations_are_of_physical_space() -> None:
    spacing = torch.tensor([[3.0, 1.0, 1.0]])
    t = fixed_affine(torch.zeros(1, 1, 8, 8, 8), "strong", torch.Generator().manual_seed(0), spacing=spacing)
    assert t.matrix is not None
    turn = spacing.T * t.matrix[0, :, :3] / spacing
    turn = turn / torch.linalg.det(turn) ** (1 / 3)
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-5)


def test_mirroring_is_of_the_named_axes_half_of_the_time() -> None:
    image = torch.zeros(400, 1, 16, 16)
    plain = fixed_affine(image, "strong", torch.Generator().manual_seed(0)).matrix
    t = fixed_affine(image, "strong", torch.Generator().manual_seed(0), mirror_axes=(1,))
    assert plain is not None
    assert t.matrix is not None
    mirrored = torch.linalg.det(t.matrix[:, :, :2]) < 0
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(t.matrix[:, :, [0, 2]], plain[:, :, [0, 2]])
    assert torch.equal(t.matrix[mirrored][:, :, 1], -plain[mirrored][:, :, 1])
