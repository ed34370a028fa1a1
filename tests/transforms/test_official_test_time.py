# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views at test time against what the paper's code returns, and where a prediction comes back to.

The paper's code resamples by cubic splines, which have no counterpart in ``grid_sample``: affine views are compared in
their shape and in the positions that they read, there and back; all others voxel by voxel. What it returns is known for
a volume of even sizes; for one of odd sizes, the shapes are. Its whole inference is compared with what it is said to
do, written out: an image with the prediction that it gives is not there.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_autoaug.engines import TestTimePolicyInferer
from monai_autoaug.policies import TestTimePolicy
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


@named("view", EXACT, ids=lambda v: v.name)
def test_views_that_move_voxels_move_them_as_the_papers_code_does(view: Operation) -> None:
    """Bit for bit, and so does its inverse, which gives its input again."""
    seen = apply_view(view, volume())
    assert np.array_equal(seen[0, :, ::4, ::4, ::4].numpy(), VECTORS[f"fwd_even_{view.index}"])
    assert np.array_equal(revert_view(view, seen, (28, 26, 24))[0].numpy(), VECTORS["in_even"])


def coordinates(shape: tuple[int, ...]) -> Tensor:
    """A volume of coordinates, and a channel of ones, which tells what has been read from outside."""
    ramps = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    return torch.stack([*ramps, torch.ones(shape, dtype=torch.float64)])[None]


def spline(image: NDArray[np.float64], places: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A volume at the positions that a view of coordinates shows, 0 outside; and which of them are in it."""
    where = places[0].numpy()
    inside = where[3] > 1 - 1e-9
    return np.where(inside, scipy.ndimage.map_coordinates(image, where[:3], order=3), 0), inside


@named("view", AFFINE, ids=lambda v: v.name)
def test_affine_views_read_where_the_papers_code_reads(view: Operation) -> None:
    """Its cubic spline, at our positions of the view, and then at those of its way back."""
    shape, every = (28, 26, 24), (slice(None, None, 4),) * 3
    there = apply_view(view, coordinates(shape), compat=True)
    seen, inside = spline(VECTORS["in_even"][0].astype(float), there)
    assert inside[every].sum() > 60
    assert np.abs(seen[every] - VECTORS[f"fwd_even_{view.index}"][0])[inside[every]].max() < 1e-5
    back, within = spline(seen, revert_view(view, coordinates(seen.shape), shape, compat=True))
    assert within[every].sum() > 150
    assert np.abs(back[every] - VECTORS[f"rev_even_{view.index}"][0])[within[every]].max() < 1e-5


@named(("index", "expected"), [(9, (39, 36, 33)), (15, (27, 32, 31))])
def test_shapes_of_odd_sizes(index: int, expected: tuple[int, ...]) -> None:
    assert canvas(VIEWS[index], (27, 25, 23)) == expected


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


def in_windows(net: nn.Module, image: Tensor, size: int = 8) -> Tensor:
    """Logits in windows half a window apart, each weighted by a Gaussian of an eighth of it."""
    axis = torch.exp(-((torch.arange(size) - (size - 1) / 2) ** 2) / (2 * (size / 8) ** 2))
    weight = torch.einsum("i,j,k->ijk", axis, axis, axis).clamp(min=1e-3)
    total, count = torch.zeros(1, 3, *image.shape[2:]), torch.zeros(image.shape[2:])
    for start in itertools.product(*[range(0, n - size + 1, size // 2) for n in image.shape[2:]]):
        at = tuple(slice(a, a + size) for a in start)
        total[(..., *at)] += weight * net(image[(..., *at)])
        count[at] += weight
    return total / count


@named(
    "weights",
    [{0: 1.0}, dict.fromkeys((0, 29, 30, 31), 0.25), dict.fromkeys((0, 29, 30, 31, 34, 37, 40, 83), 0.125),
     {0: 0.1, 30: 0.2, 33: 0.3, 36: 0.15, 38: 0.05, 45: 0.12, 61: 0.08}],
    ids=["none", "four", "eight", "unequal"],
)  # fmt: skip
def test_whole_inference(weights: dict[int, float]) -> None:
    """Each view of the whole volume goes through the windows; logits come back and are averaged by weight."""
    net = nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 1, 12, 16, 8)
    expected = torch.zeros(1, 3, 12, 16, 8)
    for index, weight in weights.items():
        output = in_windows(net, apply_view(VIEWS[index], x))
        expected += weight * revert_view(VIEWS[index], output, (12, 16, 8))
    logits = torch.tensor(list(weights.values())).log()
    policy = TestTimePolicy([VIEWS[k] for k in weights], logits, z=len(weights))
    windows = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian", padding_mode="constant")
    assert torch.allclose(TestTimePolicyInferer(windows, policy)(x, net), expected, atol=1e-5)


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
