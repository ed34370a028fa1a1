# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Training operations against what the paper's code returns for the same magnitudes and the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from monai_autoaug.transforms import Reference, apply, training_cascades

VECTORS = np.load(Path(__file__).parents[1] / "data" / "vectors" / "training_operations.npz")
NAMES = [c.name for c in training_cascades()]
MARGIN = (8, 8, 8)


def given(key: str) -> Tensor:
    return torch.from_numpy(VECTORS[key].astype(np.float64)).float()


def image_and_label() -> tuple[Tensor, Tensor]:
    """The patch inside the larger one that rotations read, which is 0 around it."""
    image = F.pad(given("img")[None], (8,) * 6)
    label = F.one_hot(torch.from_numpy(VECTORS["lab"]).long(), 3).movedim(-1, 0)[None].float()
    background = F.one_hot(torch.zeros(33, 33, 33, dtype=torch.long), 3).movedim(-1, 0)[None].float()
    background[:, :, 8:-8, 8:-8, 8:-8] = label
    return image, background


def chosen(**operations: int) -> Tensor:
    return torch.tensor([[operations.get(name, 0) for name in NAMES]])


def run(quantile: float = 0.5, sign: int = 1, compat: bool = True, **operations: int) -> tuple[Tensor, Tensor]:
    return run_indices(chosen(**operations), quantile, sign, compat)


def run_indices(indices: Tensor, quantile: float, sign: int, compat: bool) -> tuple[Tensor, Tensor]:
    image, label = image_and_label()
    reference = Reference(given("ref")[None])
    moved, soft = apply(
        image, label, indices, training_cascades(), quantile=quantile, sign=sign, margin=MARGIN, reference=reference,
        noise=given("unit_noise")[None], compat=compat,
    )  # fmt: skip
    assert soft is not None
    return moved[0], soft[0].argmax(0)


def figures(image: Tensor) -> list[float]:
    return [float(image.mean()), float(image.std(correction=0)), float(image[0, 8, 8, 8])]


@pytest.mark.parametrize(
    ("cascade", "operation", "sign", "expected", "tolerance"),
    [
        ("gamma", 2, 1, (0.001034, 0.904542, 0.438371), 1e-4),
        ("invgamma", 2, 1, (0.089150, 0.896644, 0.556920), 1e-4),
        ("contrast", 2, -1, (0.039231, 0.778024, 0.429833), 1e-5),
        ("sharpen", 2, 1, (0.046132, 0.862782, 0.489506), 1e-4),
        ("sharpen", 5, 1, (0.046821, 1.044133, 0.648157), 1e-4),
        ("simulow", 3, 1, (0.056085, 0.857675, 0.425579), 1e-4),
    ],
)
def test_intensity(cascade: str, operation: int, sign: int, expected: tuple[float, ...], tolerance: float) -> None:
    moved, label = run(sign=sign, **{cascade: operation})
    assert figures(moved) == pytest.approx(expected, abs=tolerance)
    assert torch.allclose(moved, given(f"img_{cascade}_{operation}_q0.5_s{sign}"), atol=1e-5)
    assert torch.equal(label, torch.from_numpy(VECTORS["lab"]).long())


@pytest.mark.parametrize("key", ["gamma_3_q1.0_s1", "sharpen_6_q1.0_s1"])
def test_intensity_at_the_end_of_its_range(key: str) -> None:
    cascade, operation = key.split("_")[:2]
    assert torch.allclose(run(quantile=1.0, **{cascade: int(operation)})[0], given(f"img_{key}"), atol=2e-5)


def test_noise() -> None:
    expected = given("img") + 0.075 * given("unit_noise")
    assert torch.allclose(run(noise=2)[0], expected, atol=1e-6)


def test_brightness_as_meant_and_as_coded() -> None:
    image = given("img")
    assert torch.allclose(run(1.0, compat=True, bmul=3)[0], 0.75 * image, atol=1e-6)
    assert torch.allclose(run(1.0, compat=True, badd=3)[0], 1.05 * (image + 0.3), atol=1e-6)
    assert torch.allclose(run(1.0, compat=False, bmul=3)[0], 1.30 * image, atol=1e-6)
    assert torch.allclose(run(1.0, compat=False, badd=3)[0], image + 0.3, atol=1e-6)
    assert torch.allclose(run(0.5, -1, compat=True, bmul=2)[0], image / 0.925, atol=1e-6)
    assert torch.allclose(run(0.5, -1, compat=True, badd=2)[0], (image - 0.15) / 1.025, atol=1e-6)


def test_scale() -> None:
    moved, label = run(scale=3)
    mean, std, centre = figures(moved)
    assert (mean, std) == pytest.approx((0.025399, 0.604050), abs=1e-4)
    assert centre == pytest.approx(0.495324, abs=1e-4)
    assert torch.allclose(moved, given("img_scale_3_q0.5_s1"), atol=1e-4)
    assert label.flatten().bincount().tolist() == [4562, 270, 81]
    assert torch.equal(label, torch.from_numpy(VECTORS["lab_scale_3_q0.5_s1"]).long())


@pytest.mark.parametrize(
    ("cascade", "counts"), [("rotF", [4172, 617, 124]), ("rotS", [4181, 604, 128]), ("rotL", [4168, 617, 128])]
)
def test_rotation(cascade: str, counts: list[int]) -> None:
    moved, label = run(**{cascade: 2})
    assert label.flatten().bincount().tolist() == counts
    assert torch.equal(label, torch.from_numpy(VECTORS[f"lab_{cascade}_2_q0.5_s1"]).long())
    operation = training_cascades()[NAMES.index(cascade)][2]
    # the paper's matrix multiplies rows of coordinates, ours columns
    assert torch.allclose(operation(torch.tensor([15.0]), 3)[0].T, given(f"mtx_{cascade}_2_q0.5_s1"), atol=1e-6)
    if cascade == "rotF":
        assert torch.allclose(moved, given("img_rotF_2_q0.5_s1"), atol=1e-4)


def test_rotation_the_other_way() -> None:
    assert torch.equal(run(sign=-1, rotL=2)[1], torch.from_numpy(VECTORS["lab_rotL_2_q0.5_s-1"]).long())


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("cascade", "axes", "k"), [("rotF", (1, 2), 1), ("rotS", (0, 2), 3), ("rotL", (0, 1), 1)])
def test_quarter_turns_are_exact(cascade: str, axes: tuple[int, int], k: int, sign: int, compat: bool) -> None:
    moved, label = run(sign=sign, compat=compat, **{cascade: 4})
    assert np.array_equal(moved[0].numpy(), np.rot90(VECTORS["img"][0], sign * k, axes))
    assert np.array_equal(label.numpy(), np.rot90(VECTORS["lab"], sign * k, axes))


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize(("cascade", "axis"), [("mirrorS", 0), ("mirrorF", 1), ("mirrorA", 2)])
def test_mirrors_are_exact(cascade: str, axis: int, compat: bool) -> None:
    moved, label = run(compat=compat, **{cascade: 1})
    assert np.array_equal(moved[0].numpy(), np.flip(VECTORS["img"][0], axis))
    assert np.array_equal(label.numpy(), np.flip(VECTORS["lab"], axis))


@pytest.mark.parametrize(
    ("name", "expected", "counts"),
    [
        ("all1", (0.107008, 0.887576, 0.610201), [4274, 528, 111]),
        ("mix", (0.188757, 1.013449, 0.604477), [4537, 314, 62]),
    ],
)
def test_composition_in_order_of_execution(name: str, expected: tuple[float, ...], counts: list[int]) -> None:
    indices = torch.ones(1, 15, dtype=torch.int64) if name == "all1" else torch.from_numpy(VECTORS["sel_mix"])[None]
    moved, label = run_indices(indices, 0.5, 1, True)
    assert figures(moved) == pytest.approx(expected, abs=1e-3)
    assert torch.allclose(moved, given(f"img_{name}"), atol=1e-3)
    assert label.flatten().bincount().tolist() == counts
    assert torch.equal(label, torch.from_numpy(VECTORS[f"lab_{name}"]).long())
