# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Choosing per sample: one resampling, shapes, margins, references, errors, users' own operations."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms import Cascade, Operation, Reference, apply, execution, extra_cascades, training_cascades

CASCADES = training_cascades()
NAMES = [c.name for c in CASCADES]


def chosen(*samples: dict[str, int]) -> Tensor:
    return torch.tensor([[sample.get(name, 0) for name in NAMES] for sample in samples])


def label_of(image: Tensor) -> Tensor:
    return F.one_hot((image[:, 0] > 0).long(), 2).movedim(-1, 1).float()


def smooth(*shape: int) -> Tensor:
    coarse = torch.randn(shape[0], shape[1], *[max(2, n // 4) for n in shape[2:]])
    return F.interpolate(coarse, size=shape[2:], mode="trilinear", align_corners=True)


def test_samples_get_what_they_chose() -> None:
    x = smooth(4, 1, 8, 8, 8)
    sample = [{}, {"mirrorS": 1}, {"bmul": 3}, {"rotL": 4, "mirrorA": 1}]
    moved, label = apply(x, label_of(x), chosen(*sample), CASCADES, quantile=0.0, sign=1)
    assert label is not None
    assert torch.equal(moved[0], x[0])
    assert torch.equal(moved[1], x[1].flip(1))
    assert torch.allclose(moved[2], 1.2 * x[2])
    assert torch.equal(moved[3], x[3].rot90(1, (1, 2)).flip(3))
    assert torch.equal(label[3], label_of(x)[3].rot90(1, (1, 2)).flip(3))


def test_only_those_who_chose_are_resampled_and_once() -> None:
    x = smooth(4, 1, 8, 8, 8)
    sample = [{"scale": 1, "rotF": 2, "rotS": 1, "rotL": 3}, {}, {"rotL": 1}, {"mirrorS": 1, "rotF": 4}]
    with mock.patch.object(execution, "resample", wraps=execution.resample) as resample:
        apply(x, label_of(x), chosen(*sample), CASCADES, generator=torch.Generator().manual_seed(0))
    assert resample.call_count == 1
    assert len(resample.call_args.args[0]) == 2


def test_field_and_matrix_are_one_resampling() -> None:
    x = smooth(2, 1, 16, 16, 16)
    cascades = (*CASCADES, extra_cascades()["elastic"])
    indices = torch.cat([chosen({"scale": 2}, {"scale": 2}), torch.tensor([[2], [0]])], 1)
    with mock.patch.object(execution, "resample", wraps=execution.resample) as resample:
        moved, _ = apply(x, None, indices, cascades, quantile=0.5, sign=1)
    assert [len(call.args[0]) for call in resample.call_args_list] == [1, 1]  # each sample once
    alone, _ = apply(x[1:], None, chosen({"scale": 2}), CASCADES, quantile=0.5, sign=1)
    assert torch.equal(moved[1:], alone)
    assert float((moved[0] - apply(x[:1], None, indices[1:], cascades, quantile=0.5, sign=1)[0]).abs().max()) > 0.01


@pytest.mark.parametrize("shape", [(8, 10, 12), (8, 8, 12), (7, 10, 10)])
def test_quarter_turns_keep_the_shape_of_a_batch(shape: tuple[int, int, int]) -> None:
    """Where a quarter turn would change it, the turned volume is read within the same frame."""
    x = smooth(3, 1, *shape)
    indices = chosen({"rotF": 4}, {"rotS": 4, "rotL": 4}, {})
    moved, label = apply(x, label_of(x), indices, CASCADES, sign=1)
    assert label is not None
    assert moved.shape == x.shape
    turned = x[:1].rot90(1, (3, 4))
    inner = min(shape[1], shape[2]) // 2 - 1
    if (shape[1] - shape[2]) % 2 == 0:  # otherwise the two frames are half a voxel apart
        frames = [slice(None), *[slice(n // 2 - inner, n // 2 + inner) for n in shape[1:]]]
        swapped = [slice(None), *[slice(n // 2 - inner, n // 2 + inner) for n in (shape[2], shape[1])]]
        assert torch.allclose(
            moved[:1, 0][tuple([slice(None), *frames])], turned[:, 0][tuple([slice(None), *swapped])], atol=1e-5
        )
    assert torch.allclose(label.sum(1), torch.ones_like(label[:, 0]), atol=1e-5)


def test_margin_fills_the_corners() -> None:
    x = 1 + torch.zeros(1, 1, 24, 24, 24)
    x[..., 0] = -9.0  # would be read as the outside
    indices = chosen({"rotL": 3})
    moved, _ = apply(x[..., 1:-1], None, indices, CASCADES, quantile=1.0, margin=(6, 6, 5))
    assert moved.shape[2:] == (12, 12, 12)
    assert torch.allclose(moved, torch.ones_like(moved), atol=1e-5)
    still, _ = apply(x, None, chosen({}), CASCADES, margin=(6, 6, 6))
    assert torch.equal(still, x[:, :, 6:-6, 6:-6, 6:-6])


def test_outside_is_dark_and_background() -> None:
    x = torch.full((1, 1, 8, 8, 8), 3.0)
    x[0, 0, 4, 4, 4] = 1.0
    label = torch.zeros(1, 3, 8, 8, 8)
    label[:, 1] = 1
    moved, soft = apply(x, label, chosen({"scale": 5}), CASCADES, quantile=1.0, sign=1)
    assert soft is not None
    assert float(moved[0, 0, 0, 0, 0]) == 1.0
    assert soft[0, :, 0, 0, 0].tolist() == [1, 0, 0]
    _, known = apply(x, label, chosen({"scale": 5}), CASCADES, quantile=1.0, sign=1, outside=(0, 0, 1))
    assert known is not None
    assert known[0, :, 0, 0, 0].tolist() == [0, 0, 1]
    old, _ = apply(x, None, chosen({"scale": 5}), CASCADES, quantile=1.0, sign=1, compat=True)
    assert float(old[0, 0, 0, 0, 0]) == 0.0


@pytest.mark.parametrize("figures", [True, False])
def test_reference_moves_with_the_image(figures: bool) -> None:
    """Contrast after brightness: about the shifted mean, clipped to the shifted range."""
    x, volume = torch.randn(2, 1, 6, 6, 6), torch.randn(2, 1, 500)
    reference = Reference(volume)
    if figures:
        r = reference
        reference = Reference(minimum=r.minimum, maximum=r.maximum, mean=r.mean, std=r.std)
    moved, _ = apply(
        x, None, chosen({"badd": 3, "contrast": 3}, {}), CASCADES, quantile=1.0, sign=1, reference=reference
    )
    mean = volume[0].mean() + 0.3
    expected = ((x[0] + 0.3 - mean) * 1.3 + mean).clamp(volume[0].min() + 0.3, volume[0].max() + 0.3)
    assert torch.allclose(moved[0], expected, atol=1e-5)
    assert torch.equal(moved[1], x[1])


def test_gamma_keeps_the_moments_of_the_reference() -> None:
    volume = torch.randn(1, 1, 4000).exp()
    patch = volume[:, :, :512].view(1, 1, 8, 8, 8)
    gamma = CASCADES[NAMES.index("gamma")][3]
    assert gamma.moves_reference
    whole, _ = apply(volume[..., None, None], None, chosen({"gamma": 3}), CASCADES, quantile=1.0, sign=1)
    part, _ = apply(patch, None, chosen({"gamma": 3}), CASCADES, quantile=1.0, sign=1, reference=Reference(volume))
    assert torch.allclose(part.flatten(), whole.flatten()[:512], atol=1e-4)
    assert float(whole.mean()) == pytest.approx(float(volume.mean()), abs=1e-4)
    assert float(whole.std()) == pytest.approx(float(volume.std()), abs=1e-4)


def test_half_the_signs_are_negative_and_quantiles_are_uniform() -> None:
    x = torch.ones(2000, 1, 1, 1, 1)
    moved, _ = apply(
        x, None, chosen({"badd": 3}).expand(2000, 15), CASCADES, generator=torch.Generator().manual_seed(0)
    )
    shift = (moved - 1).flatten()
    assert float((shift > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(shift.abs().mean()) == pytest.approx(0.25, abs=0.003)
    assert 0.2 <= float(shift.abs().min()) < 0.201 < 0.299 < float(shift.abs().max()) <= 0.3001


def test_choices_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2, 1, 4, 4, 4)
    with pytest.raises(ConfigError, match=r"\(2, 15\), got \(2, 3\)"):
        apply(x, None, torch.zeros(2, 3, dtype=torch.int64), CASCADES)
    with pytest.raises(ConfigError, match="mirrorS has operations 0 to 1"):
        apply(x, None, chosen({"mirrorS": 2}, {}), CASCADES)


def test_a_user_adds_an_operation_in_three_lines() -> None:
    threshold = Operation(
        "threshold", "intensity", "values", lambda x, m, context: (x > m.view(-1, 1, 1, 1, 1)).float(), 0, 1
    )
    cascades = [Cascade("threshold", (Operation("identity"), threshold))]
    moved, _ = apply(
        torch.tensor([0.2, 0.8]).view(1, 1, 2, 1, 1), None, torch.ones(1, 1, dtype=torch.int64), cascades, quantile=0.5
    )
    assert moved.flatten().tolist() == [0, 1]
