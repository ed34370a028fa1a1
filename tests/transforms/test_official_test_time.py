# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views at test time against what the paper's code returns, and where a prediction comes back to.

The paper's code resamples by cubic splines, which have no counterpart in ``grid_sample``: affine views are compared in
their shape and in the positions that they read.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from monai_autoaug.transforms import Operation, Reference, apply_view, canvas, operations_at_test_time, revert_view
from monai_autoaug.transforms.spatial import enlarged_size

FOLDER = Path(__file__).parents[1] / "data" / "vectors"
VECTORS = np.load(FOLDER / "test_time_operations.npz")
SHIFTS = json.loads((FOLDER / "test_time_registration.json").read_text(encoding="utf-8"))
VIEWS = operations_at_test_time()
EXACT = [v for v in VIEWS if v.exactly_invertible and v.moves_label] + [VIEWS[0]]
AFFINE = [v for v in VIEWS if v.acts == "matrix"]
named = pytest.mark.parametrize


def volume() -> Tensor:
    return torch.from_numpy(VECTORS["in_even"])[None]


@named("view", VIEWS, ids=lambda v: v.name)
def test_shapes(view: Operation) -> None:
    expected = tuple(VECTORS["shapes"][view.index])
    assert canvas(view, (28, 26, 24)) == expected
    assert tuple(apply_view(view, volume()).shape[2:]) == expected


@named("index", [*range(41, 77), 80, 81, 82])
def test_values(index: int) -> None:
    x = volume()
    seen = apply_view(VIEWS[index], x, reference=Reference(x[..., ::4, ::4, ::4]), compat=True)
    expected = torch.from_numpy(VECTORS[f"fwd_even_{index}"])
    assert torch.allclose(seen[0, :, ::4, ::4, ::4], expected, atol=1e-3)


@named("index", [1, 9, 15, 27])
def test_affine_views_read_where_the_papers_code_reads(index: int) -> None:
    """Its cubic spline, at the positions that our view of a volume of coordinates shows."""
    shape = (28, 26, 24)
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij"))[None]
    seen = apply_view(VIEWS[index], torch.cat([ramps, torch.ones_like(ramps[:, :1])], 1), compat=True)
    where, inside = seen[0, :3, ::3, ::3, ::3].numpy(), seen[0, 3, ::3, ::3, ::3].numpy() > 1 - 1e-9
    spline = scipy.ndimage.map_coordinates(VECTORS["in_even"][0].astype(float), where, order=3)
    assert inside.sum() > 100
    assert np.abs(spline - VECTORS[f"fwd_even_{index}"][0])[inside].max() < 1e-3


def test_noise_views_are_random_and_follow_the_generator() -> None:
    for view in VIEWS[77:80]:
        a, b = (apply_view(view, volume(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
        assert float((a - volume()).std()) == pytest.approx(view.low, rel=0.05)


@named("shape", [(8, 6, 4), (9, 7, 5)])
@named("view", EXACT, ids=lambda v: v.name)
def test_exact_views_come_back_bit_for_bit(view: Operation, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape)
    assert torch.equal(revert_view(view, apply_view(view, x), shape), x)


def test_there_are_fourteen_exact_views() -> None:
    assert sorted(v.index for v in EXACT) == [0, *range(29, 41), 83]


def shift(view: Operation, shape: tuple[int, ...], compat: bool) -> Tensor:
    """Voxels along each axis by which the middle of a volume of coordinates comes back wrong."""
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"))[None]
    back = revert_view(view, apply_view(view, ramps, compat=compat), shape, compat=compat)
    middle = (slice(None), slice(None), *[slice(n // 2 - 3, n // 2 + 3) for n in shape])
    return (back - ramps)[middle].mean(dim=(0, 2, 3, 4))


@named("shape", [(24, 24, 24), (25, 24, 23)])
@named("view", AFFINE, ids=lambda v: v.name)
def test_affine_views_come_back_where_they_were(view: Operation, shape: tuple[int, ...]) -> None:
    assert float(shift(view, shape, False).abs().max()) < 1e-3


@named("case", ["64_idx9", "64_idx10", "64_idx15", "63_idx1", "63_idx11", "63_idx28"])
def test_the_papers_code_is_off_by_up_to_more_than_a_voxel(case: str) -> None:
    size, index = case.split("_idx")
    off = shift(VIEWS[int(index)], (int(size),) * 3, True)
    assert off.abs().tolist() == pytest.approx([abs(s) for s in SHIFTS[case]], abs=2e-3)


def test_a_view_can_keep_its_size() -> None:
    x = torch.randn(1, 2, 12, 12, 12)
    for view in AFFINE[::5]:
        seen = apply_view(view, x, enlarge=False)
        assert seen.shape == x.shape
        assert revert_view(view, seen, (12, 12, 12)).shape == x.shape


@named(
    ("shape", "degrees", "factor", "expected"),
    [
        ((64, 64, 64), (30, 5, 5), 1.05, (72, 91, 91)),
        ((64, 64, 64), (5, 5, 30), 1.2, (104, 104, 83)),
        ((64, 64, 32), (30, 30, 30), 1.5, (131, 131, 89)),
        ((64, 64, 32), (30, 5, 5), 1.05, (72, 74, 62)),
        ((17, 17, 17), (30, 5, 5), 1.05, (19, 24, 24)),
        ((64, 32), (30,), 1.05, (74, 62)),
    ],
)
def test_patch_size_that_rotations_need(
    shape: tuple[int, ...], degrees: tuple[float, ...], factor: float, expected: tuple[int, ...]
) -> None:
    assert enlarged_size(shape, degrees, factor) == expected
