# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Known answers of the geometry: shifts, rotations, determinants, folding, inverses, precision, sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F  # noqa: N812

from monai_autoaug.augmenters import Transformation
from monai_autoaug.transforms import geometry

ZERO = torch.zeros(1, 3)
SHAPES = [(40, 56, 40), (35, 50, 36), (64, 64, 64), (7, 9), (20, 1, 12)]


def smooth(shape: tuple[int, ...], batch: int = 1, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, *[max(1, n // 4) for n in shape], generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear" if len(shape) == 3 else "bilinear", align_corners=True)


def one_hot(x: torch.Tensor, classes: int = 3) -> torch.Tensor:
    index = (x[:, 0] * 2).round().long().remainder(classes)
    return F.one_hot(index, classes).movedim(-1, 1).float()


def velocity(shape: tuple[int, ...], amplitude: float, spacing: int, batch: int, seed: int = 0) -> torch.Tensor:
    """Uniform draws every ``spacing`` voxels, spread linearly over a grid of half the resolution."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [(n - 1) // spacing + 1 for n in shape]
    draws = (torch.rand(batch, len(shape), *coarse, generator=generator) * 2 - 1) * amplitude
    return geometry.upsample_field(draws, tuple(-(-n // 2) for n in shape))


def random_affine(batch: int, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    draw = torch.randn(batch, 12, generator=torch.Generator().manual_seed(seed)) * spread
    return geometry.affine_matrix(draw[:, :3], draw[:, 3:6], draw[:, 6:9], draw[:, 9:])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, -3])
def test_a_shift_of_whole_voxels_is_a_roll(axis: int, voxels: int) -> None:
    x = smooth((20, 24, 16))
    translation = ZERO.clone()
    translation[0, axis] = voxels
    matrix = geometry.affine_matrix(ZERO, ZERO, ZERO, translation)
    moved = Transformation((20, 24, 16), matrix=matrix).apply(x)
    inner = (slice(None), slice(None), *[slice(4, -4)] * 3)
    assert torch.allclose(moved[inner], x.roll(-voxels, dims=2 + axis)[inner], atol=1e-5)


@pytest.mark.parametrize(("axis", "dims"), [(0, (3, 4)), (1, (4, 2)), (2, (2, 3))])
def test_a_quarter_turn_is_rot90(axis: int, dims: tuple[int, int]) -> None:
    x = smooth((17, 17, 17))
    angle = ZERO.clone()
    angle[0, axis] = math.pi / 2
    moved = Transformation((17, 17, 17), matrix=geometry.affine_matrix(angle, ZERO, ZERO, ZERO)).apply(x)
    # positions that are read turn by +90 degree, so the content turns the other way, as with translations
    assert torch.allclose(moved, torch.rot90(x, -1, dims), atol=1e-4)


def test_affine_agrees_with_scipy() -> None:
    x = smooth((18, 22, 14), seed=3)
    matrix = random_affine(1, 0.15, seed=4)
    moved = Transformation((18, 22, 14), matrix=matrix).apply(x)[0, 0].numpy()
    centre = (np.array([18, 22, 14]) - 1) / 2
    linear, shift = matrix[0, :, :3].numpy().astype(float), matrix[0, :, 3].numpy().astype(float)
    offset = centre + shift - linear @ centre
    expected = scipy.ndimage.affine_transform(
        x[0, 0].numpy().astype(float), linear, offset, order=1, mode="grid-constant", cval=float(x.min())
    )
    assert np.abs(moved - expected).max() < 1e-4


def test_rotations_act_in_physical_space() -> None:
    """A quarter turn between axes of 1 mm and 2 mm maps a line of 8 mm on a line of 8 mm."""
    angle = torch.tensor([[0.0, 0.0, math.pi / 2]])
    matrix = geometry.affine_matrix(angle, ZERO, ZERO, ZERO, torch.tensor([[1.0, 2.0, 5.0]]))
    assert torch.allclose(matrix[0, :, :3] @ torch.tensor([8.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0]), atol=1e-5)


def test_determinant_is_positive_for_any_parameters() -> None:
    matrices = random_affine(10_000, 3.0)
    # float64, since the question is the sign and not the rounding of a determinant of 1e-8
    draw = torch.randn(10_000, 12, generator=torch.Generator().manual_seed(0)).double() * 3
    exact = geometry.affine_matrix(draw[:, :3], draw[:, 3:6], draw[:, 6:9], draw[:, 9:])
    assert matrices.dtype == torch.float32
    determinant = torch.linalg.det(exact[:, :, :3])
    assert bool((determinant > 0).all())
    assert torch.allclose(determinant.log(), draw[:, 3:6].sum(1), atol=1e-6)


def test_velocity_fields_do_not_fold() -> None:
    shape = (40, 56, 40)
    v = velocity(shape, 4.0, 8, batch=100)
    for chunk in v.split(10):
        grid = geometry.compose(None, geometry.integrate(chunk, shape, steps=7), shape, like=chunk)
        assert float(geometry.jacobian_determinant(grid).amin()) > 0


def test_jacobian_of_a_known_map() -> None:
    matrix = geometry.affine_matrix(ZERO, torch.tensor([[0.1, 0.2, -0.4]]), ZERO, ZERO)
    grid = geometry.compose(matrix, None, (6, 5, 4), like=matrix)
    assert torch.allclose(geometry.jacobian_determinant(grid), torch.tensor(math.exp(-0.1)), atol=1e-5)


def test_inverse_of_affine() -> None:
    matrix = random_affine(50, 0.3).double()
    inverse = geometry.invert_affine(matrix)
    points = torch.randn(50, 9, 3).double() * 20
    assert torch.allclose(geometry.affine_grid(inverse, geometry.affine_grid(matrix, points)), points, atol=1e-5)
    assert torch.allclose(inverse[:, :, :3] @ matrix[:, :, :3], torch.eye(3).double(), atol=1e-5)


def test_inverse_of_a_field_is_right_to_a_tenth_of_a_voxel() -> None:
    shape = (40, 56, 40)
    v = velocity(shape, 4.0, 8, batch=4)
    forward = Transformation(shape, velocity=v, displacement=geometry.integrate(v, shape, steps=7))
    back = forward.inverse()
    assert back is not None
    first = forward.grid()
    second = first + geometry.sample_field(back.displacement, first, shape).movedim(1, -1)
    error = (second - geometry.identity_grid(shape)).norm(dim=-1)
    assert float(error.mean()) < 0.1


def test_inverse_of_the_whole_transformation() -> None:
    shape = (40, 56, 40)
    x = smooth(shape, 2, seed=5)
    v = velocity(shape, 2.0, 8, batch=2)
    t = Transformation(
        shape, matrix=random_affine(2, 0.05), velocity=v, displacement=geometry.integrate(v, shape),
        additive=smooth((10, 14, 10), 2, seed=6),
    )  # fmt: skip
    back = t.inverse()
    assert back is not None
    inner = (slice(None), slice(None), *[slice(10, -10)] * 3)
    gone, returned = (t.apply(x) - x)[inner].abs().mean(), (back.apply(t.apply(x)) - x)[inner].abs().mean()
    assert float(returned) < 0.1 * float(gone)
    assert Transformation(shape, displacement=v).inverse() is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_labels_follow_exactly_and_sum_to_one(shape: tuple[int, ...], channels: int) -> None:
    batch, d = 1 if channels == 4 else 2, len(shape)
    x = smooth(shape, batch, channels)
    label = one_hot(x)
    v = velocity(shape, 2.0, 8, batch)
    matrix = torch.eye(d, d + 1).repeat(batch, 1, 1)
    matrix[:, 0, 1] = 0.2
    matrix[:, -1, -1] = 3.0
    t = Transformation(shape, matrix=matrix, velocity=v, displacement=geometry.integrate(v, shape))
    moved, soft = t.apply_pair(x, label)
    assert moved.shape == x.shape
    assert torch.allclose(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-6)
    # an image painted with the label values, 0 outside, must equal the soft label's mean value
    values = torch.arange(3.0).view(1, 3, *[1] * d)
    painted = (label * values).sum(1, keepdim=True)
    assert torch.allclose(t.apply(painted), (soft * values).sum(1, keepdim=True), atol=1e-5)
    assert torch.equal(soft, t.apply_label(label))


def test_border_padding_keeps_labels_inside() -> None:
    x, shape = torch.ones(1, 1, 8, 8, 8) * 3, (8, 8, 8)
    label = torch.cat([torch.zeros_like(x), torch.ones_like(x)], 1)
    far = geometry.affine_matrix(ZERO, ZERO, ZERO, torch.tensor([[4.0, 0, 0]]))
    for padding in ("minimum", "border"):
        moved, soft = Transformation(shape, matrix=far, padding=padding).apply_pair(x, label)
        assert torch.equal(moved, x)  # the minimum of a constant is the constant
        assert float(soft[:, 1, 5:].abs().max()) == 0
        assert float(soft[:, 0, 5:].min()) == 1


def test_outside_is_the_minimum_and_never_zero() -> None:
    x = smooth((10, 10, 10)) + 7
    far = geometry.affine_matrix(ZERO, ZERO, ZERO, torch.tensor([[20.0, 0, 0]]))
    moved = Transformation((10, 10, 10), matrix=far).apply(x)
    assert torch.allclose(moved, x.amin())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_grids_stay_float32_in_half_precision(dtype: torch.dtype, rounding: float) -> None:
    shape = (40, 56, 40)
    x = smooth(shape).clamp(-2, 2)
    matrix = random_affine(1, 0.05)
    t = Transformation(shape, matrix=matrix)
    exact = t.apply(x.to(dtype).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = t.apply(x.to(dtype))
        assert t.grid().dtype == torch.float32
    assert low.dtype == dtype
    assert float((low.float() - exact).abs().max()) <= rounding * 2  # |x| <= 2, half a unit in the last place


def test_margin_cuts_after_warping() -> None:
    x = smooth((20, 20, 20))
    t = Transformation((20, 20, 20), matrix=random_affine(1, 0.05), displacement=velocity((20, 20, 20), 1.0, 4, 1))
    assert torch.equal(t.apply(x, margin=(2, 3, 0)), t.apply(x)[:, :, 2:-2, 3:-3])


def test_gradients_of_all_parameters() -> None:
    """Central differences in float64 through matrix, velocity field and image."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 6, 7, 5).double().requires_grad_()
    parameters = (torch.rand(1, 9).double() * 0.1).requires_grad_()
    shift = (torch.rand(1, 3).double() * 0.3 + 0.1).requires_grad_()
    v = (torch.rand(1, 3, 3, 3, 3).double() * 0.5).requires_grad_()

    def loss(x: torch.Tensor, p: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        matrix = geometry.affine_matrix(p[:, :3], p[:, 3:6], p[:, 6:], s, torch.tensor([[1.0, 1.5, 2.0]]))
        t = Transformation((6, 7, 5), matrix=matrix, velocity=v, displacement=geometry.integrate(v, (6, 7, 5), steps=3))
        return (t.apply(x, margin=(1, 1, 1)).sin() * torch.linspace(0, 1, 3).double()).sum() + t.regularization()

    assert torch.autograd.gradcheck(loss, (x, parameters, shift, v), eps=1e-6, atol=1e-5, nondet_tol=1e-9)
