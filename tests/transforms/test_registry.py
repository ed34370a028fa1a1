# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""One test over every row: identity at the neutral value, labels, batches, half precision, seeds, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from monai_autoaug.transforms import (
    Cascade,
    Operation,
    apply,
    apply_view,
    extra_cascades,
    intensity,
    operations_at_test_time,
    spatial,
    training_cascades,
)

ROWS = [o for c in (*training_cascades(), *extra_cascades().values()) for o in c.operations]
FLAT = [o for c in (*training_cascades(2), *extra_cascades().values()) for o in c.operations]
every = pytest.mark.parametrize("operation", ROWS, ids=lambda o: f"{o.cascade}-{o.name}")
SHAPE = (14, 14, 14)


def data(batch: int = 2, shape: tuple[int, ...] = SHAPE, channels: int = 2) -> tuple[Tensor, Tensor]:
    """A smooth image and the one-hot label of its brightness."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(batch, channels, *[max(2, n // 3) for n in shape], generator=generator)
    image = F.interpolate(coarse, size=shape, mode="trilinear" if len(shape) == 3 else "bilinear", align_corners=True)
    label = F.one_hot((image[:, 0] > 0).long() + (image[:, 0] > 0.7).long(), 3).movedim(-1, 1).float()
    return image, label


def only(operation: Operation) -> Cascade:
    return Cascade("one", (Operation("identity"), operation))


def run(
    operation: Operation, image: Tensor, label: Tensor | None, seed: int = 0, **more: object
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.ones(len(image), 1, dtype=torch.int64)
    moved, soft = apply(image, label, chosen, [only(operation)], generator=generator, **more)  # type: ignore[arg-type]
    return moved, soft if soft is not None else torch.empty(0)


@every
def test_identity_at_the_neutral_magnitude(operation: Operation) -> None:
    image, label = data()
    if operation.neutral is None:
        assert operation.acts == "permutation"  # flips and quarter turns
        return
    # the quantile of a range that is one number: infinity minus infinity is none
    value = min(operation.neutral, 1e6)
    moved, soft = run(dataclasses.replace(operation, low=value, high=value), image, label)
    assert torch.allclose(moved, image, atol=2e-6)
    assert torch.allclose(soft, label, atol=2e-6)


@every
def test_labels_stay_labels(operation: Operation) -> None:
    image, label = data()
    moved, soft = run(operation, image, label)
    assert moved.shape == image.shape
    assert torch.allclose(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-5)
    assert float(soft.min()) > -1e-6
    assert set(soft.argmax(1).unique().tolist()) <= {0, 1, 2}
    assert torch.equal(soft, label) == (not operation.moves_label)
    assert (operation.acts == "nothing") == torch.equal(moved, image)


@every
def test_batch_of_one_is_a_part_of_a_batch_of_many(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    image, label = data(3)
    quantile, sign = torch.tensor([[0.2], [0.5], [0.9]]), torch.tensor([[1], [-1], [1]])

    def results(part: slice) -> tuple[Tensor, Tensor]:
        def draws(like: Tensor, shape: tuple[int, ...], generator: object, *, normal: bool = True) -> Tensor:
            return torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(1))[part]

        monkeypatch.setattr(intensity, "random_like", draws)
        monkeypatch.setattr(spatial, "random_like", draws)
        return run(operation, image[part], label[part], quantile=quantile[part], sign=sign[part])

    many = results(slice(0, 3))
    for i in range(3):
        one = results(slice(i, i + 1))
        assert torch.allclose(one[0], many[0][i : i + 1], atol=1e-5)
        assert torch.allclose(one[1], many[1][i : i + 1], atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(operation: Operation, dtype: torch.dtype) -> None:
    image, label = data()
    image = image.to(dtype)
    half, soft = run(operation, image, label)
    full, expected = run(operation, image.float(), label)
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))
    assert torch.equal(soft, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(operation, image.float(), label)[0], full)


@every
def test_the_seed_decides(operation: Operation) -> None:
    image, label = data()
    first, again = run(operation, image, label, 5), run(operation, image, label, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    if operation.low != operation.high:
        # a resolution that is a whole number of voxels may be drawn twice
        assert not all(torch.equal(run(operation, image, None, seed)[0], first[0]) for seed in range(6, 12))


@every
def test_gradient_reaches_image_and_label(operation: Operation) -> None:
    image, label = data()
    image[0] = 0.5  # a patch outside the body has one value everywhere
    image, label = image.requires_grad_(), label.requires_grad_()
    moved, soft = run(operation, image, label)
    (moved.square().sum() + soft.square().sum()).backward()
    for x in (image, label):
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())
        assert float(x.grad[1].abs().sum()) > 0


@pytest.mark.parametrize("operation", [o for o in ROWS if o.acts in ("values", "matrix")], ids=lambda o: o.name)
def test_gradient_of_the_magnitude(operation: Operation) -> None:
    """What may be learned one day stays a tensor; resolutions are whole numbers of voxels and have no gradient."""
    image, _ = data(1)
    quantile = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(image.shape, dtype=torch.float64)

    def value(q: Tensor) -> Tensor:
        return (weight * run(operation, image.double(), None, quantile=q, sign=1)[0]).sum()

    result = value(quantile)
    if result.requires_grad:
        result.backward()
    with torch.no_grad():
        slope = (value(quantile + 1e-6) - value(quantile - 1e-6)) / 2e-6
    if "low_resolution" in operation.name or "gibbs" in operation.name:
        assert quantile.grad is None or float(quantile.grad) == 0
    else:
        assert quantile.grad is not None
        assert float(quantile.grad) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("operation", FLAT, ids=lambda o: f"{o.cascade}-{o.name}")
def test_slices(operation: Operation) -> None:
    image, label = data(2, (12, 10))
    moved, soft = run(operation, image, label)
    assert moved.shape == image.shape
    assert torch.allclose(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-5)


@pytest.mark.parametrize("view", operations_at_test_time(), ids=lambda v: v.name)
def test_views_in_half_precision_and_batches(view: Operation) -> None:
    image, _ = data(3, (8, 9, 10))
    many = apply_view(view, image, generator=torch.Generator().manual_seed(0))
    half = apply_view(view, image.bfloat16(), generator=torch.Generator().manual_seed(0))
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), many, atol=0.05)
    if view.kind != "noise":
        assert torch.allclose(apply_view(view, image[1:2]), many[1:2], atol=1e-5)
