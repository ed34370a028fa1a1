# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Turned and scaled views on a CPU, which need no grid, are those through a grid, which double precision still has."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from monai_autoaug.transforms import apply_view, coverage, operations_at_test_time, revert_view, views
from monai_autoaug.transforms.registry import Operation
from monai_autoaug.transforms.views import ViewGrids

AFFINE = [o for o in operations_at_test_time() if o.acts == "matrix"]
SHAPE = (12, 15, 10)


@pytest.mark.parametrize("operation", AFFINE, ids=[o.name for o in AFFINE])
@pytest.mark.parametrize("enlarge", [True, False])
def test_views_and_what_comes_back(operation: Operation, enlarge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    image, exact = torch.randn(2, 2, *SHAPE), torch.randn(2, 2, *SHAPE, dtype=torch.float64)
    exact.copy_(image)
    for padding in ("minimum", "zero"):
        there = apply_view(operation, image, enlarge=enlarge, padding=padding)
        expected = apply_view(operation, exact, enlarge=enlarge, padding=padding)
        torch.testing.assert_close(there.double(), expected, atol=1e-5, rtol=1e-5)
        back = revert_view(operation, there, SHAPE)
        torch.testing.assert_close(back.double(), revert_view(operation, expected, SHAPE), atol=2e-5, rtol=1e-5)
        seen = coverage(operation, there, SHAPE)
        torch.testing.assert_close(seen.double(), coverage(operation, expected, SHAPE), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(views, "identity_grid", None)  # none is made
    apply_view(operation, image, enlarge=enlarge)


def test_a_gradient_takes_a_grid() -> None:
    logits = torch.randn(1, 2, *SHAPE, requires_grad=True)
    revert_view(AFFINE[3], logits, SHAPE).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.any())


def test_what_was_prepared_in_inference_mode_serves_outside_of_it() -> None:
    image = torch.randn(1, 1, 9, 11, 13)  # of a size that no other test has
    with torch.inference_mode():
        first = apply_view(AFFINE[7], image)
    net = torch.nn.Conv3d(1, 1, 1)
    again = apply_view(AFFINE[7], image)
    net(again).sum().backward()
    assert torch.equal(first, again)
    assert not again.is_inference()


@pytest.mark.parametrize("operation", AFFINE, ids=[o.name for o in AFFINE])
def test_autocast_and_single_slices(operation: Operation) -> None:
    image = torch.randn(1, 1, *SHAPE)
    expected = apply_view(operation, image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply_view(operation, image), expected)
        assert torch.equal(revert_view(operation, expected, SHAPE), revert_view(operation, expected.clone(), SHAPE))
    for axis in range(3):
        shape = [n if a != axis else 1 for a, n in enumerate(SHAPE)]
        thin = torch.randn(1, 1, *shape)
        there, exact = (apply_view(operation, x, enlarge=False) for x in (thin, thin.double()))
        torch.testing.assert_close(there.double(), exact, atol=1e-5, rtol=1e-5)


def test_a_forward_derivative_takes_a_grid() -> None:
    logits = torch.randn(1, 2, *SHAPE)
    for operation in AFFINE:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits, torch.ones_like(logits))
            assert forward_ad.unpack_dual(revert_view(operation, dual, SHAPE)).tangent is not None


def test_operations_of_one_name_that_do_otherwise_are_told_apart() -> None:
    image = torch.rand(1, 1, *SHAPE)
    made = []
    for factor in (2.0, 0.5):
        mine = Operation("mine", "spatial", "matrix", partial(scaled, factor), 1, 1, moves_label=True)
        made.append(apply_view(mine, image, enlarge=False))
        exact = apply_view(mine, image.double(), enlarge=False)
        torch.testing.assert_close(made[-1].double(), exact, atol=1e-5, rtol=0)
    assert not torch.allclose(*made)


def scaled(factor: float, magnitude: torch.Tensor, dims: int) -> torch.Tensor:
    return factor * torch.eye(dims, dtype=magnitude.dtype, device=magnitude.device)[None]


def test_large_planes_are_not_kept() -> None:
    """A single one takes more than many small ones, and volumes are of many sizes."""
    views._kept_way.cache_clear()
    apply_view(AFFINE[0], torch.rand(1, 1, 2, 96, 96), enlarge=False)
    assert views._kept_way.cache_info().currsize == 0
    apply_view(AFFINE[0], torch.rand(1, 1, 2, 64, 64), enlarge=False)
    assert views._kept_way.cache_info().currsize == 1


def test_a_grid_that_is_too_large_to_be_kept_drives_none_out() -> None:
    grids = ViewGrids(1000)
    grids.get((1,), "a", lambda: torch.zeros(100))
    assert grids.get((2,), "b", lambda: torch.ones(10_000)).all()
    assert grids.size == 400
    assert grids.get((1,), "a", lambda: torch.ones(100)).sum() == 0
