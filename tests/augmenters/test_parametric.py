# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The augmenter that sees noise alone: its sizes and forms, its gradients, and what its amounts do to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_autoaug import augmenters
from monai_autoaug.augmenters import LearnedAugmentd, ParametricAugmenter, Tone, Transformation
from monai_autoaug.augmenters.tone import TONES
from monai_autoaug.errors import ConfigError, PolicyError

FORMS = ["default", "paper"]
ARMS = {"full": 16, "affine": 12, "translation": 3, "intensity": 4}


def image(dims: int = 3, channels: int = 1, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, channels, *[size] * dims, generator=generator).to(dtype)


@pytest.mark.parametrize("fidelity", FORMS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("arm", ARMS)
def test_parameters_of_every_arm(arm: str, dims: int, fidelity: str) -> None:
    made = ParametricAugmenter(dims, 2, transformations=arm, fidelity=fidelity)
    n = ARMS[arm] if dims == 3 else {"full": 10, "affine": 6, "translation": 2, "intensity": 4}[arm]
    assert made.noise_size == made.head.out_features == n
    move = made(image(dims, 2))
    assert (move.matrix is not None) == (arm != "intensity")
    assert (move.tone is not None) == (arm in ("full", "intensity"))
    if arm == "translation":
        assert move.matrix is not None
        assert torch.equal(move.matrix[:, :, :dims], torch.eye(dims).expand(3, dims, dims))
        assert float(move.matrix[:, :, dims].abs().min()) > 0
    assert move.apply(image(dims, 2)).shape == image(dims, 2).shape
    if arm == "intensity":
        label = torch.eye(3)[torch.randint(3, (3, *[8] * dims))].movedim(-1, 1)
        assert torch.equal(move.apply_label(label), label)


@pytest.mark.parametrize(("size", "widths"), [
    ("small", (12, 12, 120, 12)), ("medium", (100, 64, 32, 12)), ("large", (100, 512, 1024, 124, 512, 12)),
])  # fmt: skip
def test_sizes_are_the_papers(size: str, widths: tuple[int, ...]) -> None:
    made = ParametricAugmenter(3, 1, transformations="affine", size=size)
    layers = [*made.hidden, made.head]
    assert [layers[0].in_features, *(m.out_features for m in layers)] == list(widths)
    assert made.sample_noise(5).shape == (5, widths[0])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_a_fresh_one_is_a_centred_distribution(size: str, arm: str) -> None:
    """Spread out over noise, not one constant transformation; its width is what was asked for."""
    for start in (0.1, 0.4):
        made = ParametricAugmenter(3, 1, transformations=arm, size=size, start=start).eval()
        raw = made.raw(made.sample_noise(4000, torch.Generator().manual_seed(1)))
        assert torch.allclose(raw.std(0), torch.full_like(raw[0], start), rtol=0.15)
        assert float(raw.mean(0).abs().max()) < 0.12 * start


def test_the_papers_start_is_torchs() -> None:
    torch.manual_seed(3)
    made = ParametricAugmenter(3, 1, transformations="affine", fidelity="paper")
    torch.manual_seed(3)
    layers = [torch.nn.Linear(a, b) for a, b in ((12, 12), (12, 120), (120, 12))]
    for own, other in zip([*made.hidden, made.head], layers, strict=True):
        assert torch.equal(own.weight, other.weight)
        assert torch.equal(own.bias, other.bias)


@pytest.mark.parametrize("fidelity", FORMS)
def test_the_image_makes_no_difference(fidelity: str) -> None:
    made = ParametricAugmenter(3, 1, fidelity=fidelity)
    noise = made.sample_noise(3)
    a, b = made(image(), noise), made(image() * 7 + 3, noise)
    assert a.matrix is not None
    assert b.matrix is not None
    assert a.tone is not None
    assert b.tone is not None
    assert torch.equal(a.matrix, b.matrix)
    assert torch.equal(a.tone.amount, b.tone.amount)


@pytest.mark.parametrize("fidelity", FORMS)
@pytest.mark.parametrize("arm", ARMS)
def test_the_same_noise_is_the_same_transformation_whatever_the_batch(arm: str, fidelity: str) -> None:
    """Dropout, order and voxel noise are in it."""
    made = ParametricAugmenter(3, 1, transformations=arm, fidelity=fidelity)
    noise, x = made.sample_noise(3, torch.Generator().manual_seed(0)), image()
    whole = made(x, noise).apply(x)
    assert torch.equal(whole, made(x, noise).apply(x))
    rows = torch.cat([made(x[i : i + 1], noise[i : i + 1]).apply(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(whole, rows, atol=1e-5)
    assert torch.allclose(made(x, noise).rows(slice(1, 2)).apply(x[1:2]), whole[1:2], atol=1e-5)
    assert not torch.allclose(whole, made(x, made.sample_noise(3)).apply(x), atol=1e-4)


@pytest.mark.parametrize("fidelity", FORMS)
def test_without_strength_it_is_the_identity(fidelity: str) -> None:
    made = ParametricAugmenter(3, 1, fidelity=fidelity)
    made.strength.zero_()
    assert torch.allclose(made(image()).apply(image()), image(), atol=2e-6)


def test_determinants_are_positive_whatever_the_network_says() -> None:
    made = ParametricAugmenter(3, 1, transformations="affine", start=2.0)
    torch.nn.init.normal_(made.head.weight, std=3.0)
    noise = made.sample_noise(10_000, torch.Generator().manual_seed(0))
    move = made(torch.zeros(1, 1, 8, 8, 8).expand(10_000, 1, 8, 8, 8), noise)
    assert move.matrix is not None
    assert bool((torch.linalg.det(move.matrix[:, :, :3]) > 0).all())


def test_the_papers_matrix_is_the_identity_plus_the_output_in_unit_coordinates() -> None:
    made = ParametricAugmenter(2, 1, transformations="affine", fidelity="paper").eval()
    torch.nn.init.zeros_(made.head.weight)
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor([0.5, 0.25, 1.0, 0.0, -3.0, 0.5]))  # beyond any tanh
    move = made(torch.zeros(1, 1, 9, 5))  # half extents 4 and 2
    assert move.matrix is not None
    assert torch.allclose(move.matrix[0], torch.tensor([[1.5, 0.25 * 4 / 2, 4.0], [0.0, -2.0, 1.0]]))
    assert move.padding == "zero"
    moved = made(torch.ones(1, 1, 9, 5)).apply(torch.ones(1, 1, 9, 5))
    assert float(moved.min()) == 0.0


def test_the_papers_translation_and_full_arms_are_squashed() -> None:
    for arm in ("translation", "full"):
        made = ParametricAugmenter(2, 1, transformations=arm, fidelity="paper").eval()
        torch.nn.init.constant_(made.head.bias, 50.0)
        move = made(torch.zeros(1, 1, 9, 5))
        assert move.matrix is not None
        assert torch.allclose(move.matrix[0, :, 2], torch.tensor([4.0, 2.0]), atol=1e-4)


def test_the_papers_dropout_is_off_when_it_is_applied() -> None:
    made = ParametricAugmenter(3, 1, transformations="affine", fidelity="paper")
    noise = made.sample_noise(1000, torch.Generator().manual_seed(0))
    x = noise[:, :12].div(2**0.5).erf()
    plain = x
    for layer in made.hidden:
        plain = layer(plain).relu()
    assert torch.allclose(made.eval().raw(noise), made.head(plain), atol=1e-6)
    trained = made.train().raw(noise)
    assert not torch.allclose(trained, made.raw(noise, keep_all=True))
    first = made.hidden[0](x).relu()
    kept = noise[:, 12:24].div(2**0.5).erf() > -0.6
    assert 0.77 < float(kept.float().mean()) < 0.83
    second = made.hidden[1](first * kept / 0.8).relu() * (noise[:, 24:144].div(2**0.5).erf() > -0.6) / 0.8
    assert torch.allclose(trained, made.head(second), atol=1e-6)
    assert ParametricAugmenter(3, 1, transformations="affine").draws == 0  # ours has none


@pytest.mark.parametrize("fidelity", FORMS)
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_against_central_differences(dims: int, arm: str, fidelity: str) -> None:
    """Of a smooth function of image and label with respect to the network's last layer, in float64."""
    made = ParametricAugmenter(dims, 1, transformations=arm, fidelity=fidelity).double()
    noise = made.sample_noise(3, torch.Generator().manual_seed(0)).double()
    x = torch.nn.functional.interpolate(image(dims, size=4, dtype=torch.float64), scale_factor=2, mode="nearest")
    label = torch.stack([x[:, 0].sigmoid(), 1 - x[:, 0].sigmoid()], 1)

    def value() -> Tensor:
        moved, soft = made(x, noise).apply_pair(x, label)
        assert soft is not None
        return (moved.sin() * torch.arange(1, moved[0].numel() + 1).view(moved[0].shape).cos()).mean() + (
            soft[:, :1] * moved.cos()
        ).mean()

    parameters = [made.head.bias, made.head.weight]
    gradients = torch.autograd.grad(value(), parameters)
    h = 1e-6
    for p, g in zip(parameters, gradients, strict=True):
        d = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * h * d
                ends.append(float(value()))
                p -= sign * h * d
        assert float((g * d).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=2e-4, abs=1e-9)
    assert all(bool((g != 0).any(dim=-1).all()) for g in gradients)


# --- tones ----------------------------------------------------------------------------------------------------------


def test_what_each_amount_does() -> None:
    x = image(3, 2)
    mean = x.flatten(2).mean(2).view(3, 2, 1, 1, 1)

    def toned(which: str, amount: float, **more: Any) -> Tensor:
        amounts = torch.zeros(3, 4)
        amounts[:, TONES.index(which)] = amount
        return Tone(amounts, torch.arange(3), **more)(x)

    assert torch.allclose(toned("brightness", 0.5), x + 0.5, atol=2e-6)
    assert torch.allclose(toned("contrast", 0.3), mean + (x - mean) * torch.tensor(0.3).exp(), atol=3e-6)
    assert torch.allclose(toned("contrast", 0.3, plain=True), mean + (x - mean) * 1.3, atol=3e-6)
    gamma = toned("gamma", 0.4)
    assert torch.allclose(gamma.flatten(2).mean(2), x.flatten(2).mean(2), atol=1e-5)
    assert torch.allclose(gamma.flatten(2).std(2), x.flatten(2).std(2), rtol=1e-4)
    assert not torch.allclose(gamma, x, atol=0.05)
    assert torch.equal(gamma.flatten(2).argsort(2), x.flatten(2).argsort(2))  # monotone
    added = toned("noise", 0.2) - x
    assert float(added.std()) == pytest.approx(0.2, rel=0.1)
    assert not torch.allclose(added[0], added[1], atol=1e-3)
    assert torch.allclose(added, toned("noise", 0.2) - x)


def test_the_order_is_each_samples_own() -> None:
    x, amounts, seed = image(), torch.tensor([[0.5, 0.6, 0.3, 0.4]]).expand(3, 4), torch.arange(3)
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]])
    mixed = Tone(amounts, seed, order)(x)
    assert torch.allclose(mixed[::2], Tone(amounts, seed)(x)[::2], atol=1e-6)
    by_hand = x[1:2]
    for which in (3, 2, 1, 0):
        one = torch.zeros(1, 4)
        one[0, which] = amounts[0, which]
        by_hand = Tone(one, seed[1:2])(by_hand)
    assert torch.allclose(mixed[1:2], by_hand, atol=1e-5)
    assert not torch.allclose(mixed[1], Tone(amounts, seed)(x)[1], atol=1e-2)  # noise before or behind the others


def test_paper_order_is_random_and_ours_is_not() -> None:
    orders = ParametricAugmenter(2, 1, transformations="intensity", fidelity="paper")(torch.zeros(64, 1, 4, 4)).tone
    assert orders is not None
    assert orders.order is not None
    assert len({tuple(row) for row in orders.order.tolist()}) > 10
    fixed = ParametricAugmenter(2, 1, transformations="intensity")(torch.zeros(2, 1, 4, 4)).tone
    assert fixed is not None
    assert fixed.order is None


def test_a_tone_leaves_further_channels_alone() -> None:
    x = image(3, 3)
    t = Transformation((8, 8, 8), tone=Tone(torch.full((3, 4), 0.3)))
    moved, _ = t.apply_pair(x, None, still=1)
    assert torch.equal(moved[:, 2], x[:, 2])
    assert not torch.allclose(moved[:, :2], x[:, :2], atol=1e-2)


def test_a_tone_is_measured_moved_and_has_no_inverse() -> None:
    t = Transformation((4, 4), tone=Tone(torch.tensor([[0.1, -0.2, 0.3, -0.4]]), torch.zeros(1, dtype=torch.long)))
    expected = dict(zip(TONES, (0.1, 0.2, 0.3, 0.4), strict=True))
    assert {n: round(float(v), 4) for n, v in t.magnitude().items()} == expected
    assert float(t.regularization()) == pytest.approx((0.01 + 0.04 + 0.09 + 0.16) / 4)
    assert t.inverse() is None
    half = t.to(torch.float64)
    assert half.tone is not None
    assert half.tone.amount.dtype == torch.float64
    assert half.tone.seed is not None
    assert half.tone.seed.dtype == torch.long


# --- files, the dictionary transform, refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", FORMS)
def test_saved_and_loaded_it_is_the_same(fidelity: str, tmp_path: Path) -> None:
    given = {"gamma": 0.5} if fidelity == "default" else {}
    made = ParametricAugmenter(2, 1, transformations="full", size="medium", fidelity=fidelity, **given)
    file = augmenters.save(tmp_path / "augmenters.pt", {"parametric": made})
    again = augmenters.load(file)["parametric"]
    noise, x = made.sample_noise(3), image(2)
    assert torch.equal(made.eval()(x, noise).apply(x), again(x, noise).apply(x))
    assert again.options() == made.options()


def test_as_a_dictionary_transform_it_inverts_labels_alone() -> None:
    made = ParametricAugmenter(3, 1, start=1.0)
    augment = LearnedAugmentd(["image", "label"], {"parametric": made}, allow_missing_keys=True)
    augment.set_random_state(seed=0)
    x, y = MetaTensor(image(size=12)[0]), MetaTensor((image(size=12)[0] > 0).to(torch.uint8))
    out = augment({"image": x, "label": y})
    assert not torch.allclose(out["image"], x, atol=1e-2)
    back = augment.inverse({"label": out["label"]})["label"]
    assert float((back == y).float().mean()) > float((out["label"] == y).float().mean())
    with pytest.raises(PolicyError, match="labels alone"):
        augment.inverse({"image": out["image"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"transformations": "colour"}, "transformations must be one of"), ({"size": "huge"}, "size must be one of"),
     ({"fidelity": "loose"}, "fidelity must be"), ({"rotation": 200.0}, "rotation"), ({"start": 0.0}, "start must")],
)  # fmt: skip
def test_what_cant_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParametricAugmenter(3, 1, **options)
