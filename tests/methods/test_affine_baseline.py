# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The affine augmentation of paper 001: what it draws, how often, in which space."""

from __future__ import annotations

import math

import pytest
import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.affine_baseline import AFFINE_PARTS, affine_baseline, check_affine

SHAPE = {2: (12, 16), 3: (12, 16, 10)}


def drawn(parts: tuple[str, ...], dims: int = 3, count: int = 400, **options: object) -> torch.Tensor:
    move = affine_baseline(torch.zeros(count, 1, *SHAPE[dims]), parts, torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]  # of a test
    assert move.matrix is not None
    assert float(move.matrix[:, :, -1].abs().max()) == 0  # nothing is shifted
    return move.matrix[:, :, :-1]


def angles(linear: torch.Tensor) -> torch.Tensor:
    trace = linear.diagonal(dim1=1, dim2=2).sum(1)
    return torch.rad2deg(((trace - (linear.shape[1] - 2)) / 2).clamp(-1, 1).acos())


@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_are_of_up_to_15_degree_or_of_multiples_of_45(dims: int) -> None:
    small, turns = angles(drawn(("rotation",), dims)), angles(drawn(("turn",), dims))
    assert 14 < float(small.max()) <= 15.001
    # float32 knows small angles of a matrix badly
    assert set((turns / 45).round().int().tolist()) == {0, 1, 2, 3, 4}
    assert float((turns - (turns / 45).round() * 45).abs().max()) < 0.1


def test_rotations_of_volumes_are_about_one_axis_each() -> None:
    matrix = drawn(("rotation",))
    fixed = ((matrix.diagonal(dim1=1, dim2=2) - 1).abs() < 1e-6).sum(1)
    assert set(fixed.tolist()) == {1, 3}  # one axis stays where it is, or all of them
    about = (matrix.diagonal(dim1=1, dim2=2)[fixed == 1] - 1).abs().argmin(1)
    assert set(about.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("dims", [2, 3])
def test_scales_are_alike_along_all_axes_and_flips_of_one(dims: int) -> None:
    factor = 1 / drawn(("scaling",), dims).diagonal(dim1=1, dim2=2)
    assert torch.equal(factor, factor[:, :1].expand_as(factor))
    assert 0.9 <= float(factor.min()) < 0.91
    assert 1.09 < float(factor.max()) <= 1.1
    for axis, number in ((-1, dims - 1), (0, 0)):
        signs = drawn(("flip",), dims, flip_axis=axis).diagonal(dim1=1, dim2=2)
        assert set(signs[:, number].tolist()) == {-1.0, 1.0}
        assert set(signs[:, [k for k in range(dims) if k != number]].flatten().tolist()) == {1.0}


def test_each_patch_is_left_as_it_is_or_has_one_of_four_happen_to_it() -> None:
    matrix = drawn(AFFINE_PARTS, count=4000)
    determinant = torch.linalg.det(matrix)
    still = (matrix - torch.eye(3)).abs().flatten(1).amax(1) < 1e-6
    flipped, scaled = (determinant + 1).abs() < 1e-4, (determinant.abs() - 1).abs() > 1e-4
    assert float(flipped.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(scaled.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert not bool((flipped & scaled).any())
    assert float(still.float().mean()) == pytest.approx(0.2 + 0.2 * 2 / 9, abs=0.02)  # turns by 0 and 360 degree too
    assert float((drawn(()) - torch.eye(3)).abs().max()) == 0


def test_leaving_a_part_out_does_not_change_what_the_others_draw() -> None:
    both, one = drawn(("scaling", "flip")), drawn(("scaling",))
    # where both have drawn a scale it is the same one
    scaled = [(torch.linalg.det(m).abs() - 1).abs() > 1e-4 for m in (both, one)]
    common = scaled[0] & scaled[1]
    assert bool(common.any())
    assert torch.equal(both[common], one[common])


def test_rotations_are_rotations_in_physical_space() -> None:
    spacing = torch.tensor([[1.0, 1.0, 2.5]]).expand(50, 3)
    matrix = drawn(("turn",), count=50, spacing=spacing)
    physical = matrix * spacing[:, :, None] / spacing[:, None, :]
    product = physical @ physical.transpose(1, 2)
    assert float((product - torch.eye(3)).abs().max()) < 1e-5
    assert float((matrix @ matrix.transpose(1, 2) - torch.eye(3)).abs().max()) > 1
    quarter = torch.tensor(math.pi / 4)
    assert bool(torch.isclose(matrix[:, 0, 0].abs(), quarter.cos(), atol=1e-5).any())


@pytest.mark.parametrize("part", ["rotation", "turn"])
def test_thick_slices_are_rotated_within_themselves(part: str) -> None:
    """As in the paper, whose slices are 5 to 10 mm apart; each sample by its own spacing."""
    spacing = torch.tensor([[1.0, 6.0, 1.5], [1.0, 2.9, 1.0]]).repeat(100, 1)
    about = drawn((part,), count=200, spacing=spacing)
    still = (about - torch.eye(3)).abs() < 1e-6
    stays = still.all(1) & still.all(2)  # axes that nothing happens to
    assert bool(stays[0::2, 1].all())
    assert not bool(stays[0::2, 0].all())
    assert not bool(stays[1::2, 1].all())


def test_what_can_t_be_is_refused() -> None:
    check_affine(AFFINE_PARTS, -1, 3)
    with pytest.raises(ConfigError, match="affine is a list of rotation, scaling, turn, flip"):
        check_affine(("shear",), -1, 3)
    with pytest.raises(ConfigError, match="at most once"):
        check_affine(("flip", "flip"), -1, 3)
    with pytest.raises(ConfigError, match="flip_axis must be between -2 and 1, got 2"):
        check_affine((), 2, 2)
