# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The generators of paper 001 in their own form: layers, identity, image and noise, bounds, files, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from monai_autoaug.augmenters import find, kinds, load, save
from monai_autoaug.augmenters.conditional import ConditionalAppearance, ConditionalAugmenter, ConditionalDeformation
from monai_autoaug.errors import ConfigError

FORMS = [ConditionalDeformation, ConditionalAppearance]
SHAPES = {3: (20, 28, 20), 2: (35, 50)}
each = pytest.mark.parametrize("form", FORMS)


def perturbed(form: type[ConditionalAugmenter], dims: int = 3, channels: int = 1, amount: float = 0.2,
              width: int = 4) -> ConditionalAugmenter:  # fmt: skip
    torch.manual_seed(0)
    augmenter = form(dims, channels, width=width)
    with torch.no_grad():
        for parameter in augmenter.last.parameters():
            parameter += amount * torch.randn_like(parameter)
    return augmenter


@each
def test_layers_are_those_of_the_paper(form: type[ConditionalAugmenter]) -> None:
    """Five convolutions for the noise, two for the image, three behind them and a last one; all with batch norm."""
    augmenter = form(2, 1, base=(7, 7))
    assert augmenter.first.weight.shape == (7 * 7 * 128, 100)
    convolutions = [m for m in augmenter.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [
        128, 64, 32, 16, 16, 16, 16, 16, 16, 16, 2 if form is ConditionalDeformation else 1,
    ]  # fmt: skip
    assert [m.kernel_size for m in convolutions] == [(3, 3)] * 10 + [(1, 1)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in augmenter.modules()) == 10


@each
@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_one_is_the_identity(form: type[ConditionalAugmenter], dims: int) -> None:
    coarse, mode = torch.randn(2, 1, *[5] * dims), "bilinear" if dims == 2 else "trilinear"
    image = nn.functional.interpolate(coarse, size=SHAPES[dims], mode=mode)
    label = nn.functional.one_hot((image[:, 0] > 0).long(), 2).movedim(-1, 1).float()
    with torch.no_grad():
        moved, soft = form(dims, 1, width=4)(image).apply_pair(image, label)
    assert soft is not None
    assert float((moved - image).abs().max()) <= 1e-5
    assert float((soft - label).abs().max()) <= 1e-5


@each
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_it_makes_depends_on_noise_and_image(form: type[ConditionalAugmenter], dims: int, channels: int) -> None:
    """Spec checks 14 and 31: any size, one field a sample; another image or noise, another field."""
    augmenter = perturbed(form, dims, channels).eval()
    image = torch.randn(2, channels, *SHAPES[dims])
    noise = augmenter.sample_noise(2, torch.Generator().manual_seed(1))
    fields = []
    for x, z in ((image, noise), (image, noise.flip(0)), (image.flip(2), noise)):
        with torch.no_grad():
            move = augmenter(x, z)
        fields.append(move.displacement if form is ConditionalDeformation else move.additive)
        assert fields[-1].shape == (2, dims if form is ConditionalDeformation else channels, *SHAPES[dims])
        assert float(fields[-1].abs().max()) > 0
    assert not torch.allclose(fields[0], fields[1])
    assert not torch.allclose(fields[0], fields[2])
    assert torch.equal(augmenter(image, noise).apply(image), augmenter(image, noise).apply(image))


def test_the_displacement_is_free_and_the_mask_bounded() -> None:
    image = torch.randn(2, 1, 20, 24)
    wild = perturbed(ConditionalDeformation, 2, amount=100.0)(image).displacement
    assert wild is not None
    assert float(wild.detach().abs().max()) > 24
    augmenter = ConditionalAppearance(2, 1, width=4, additive=0.7)
    nn.init.normal_(augmenter.last.weight, std=100.0)
    mask = augmenter(image).additive
    assert mask is not None
    assert 0.69 < float(mask.detach().abs().max()) <= 0.7
    assert perturbed(ConditionalDeformation, 2)(image).inverse() is None
    assert perturbed(ConditionalDeformation, 2)(image).padding == "border"


@each
def test_strength_goes_from_the_identity_to_what_it_learned(form: type[ConditionalAugmenter]) -> None:
    augmenter = perturbed(form, 2).eval()
    image, noise = torch.randn(1, 1, 5, 6), torch.randn(1, 100)
    image = nn.functional.interpolate(image, size=(20, 24), mode="bilinear")
    assert float(augmenter.strength) == 1
    whole = augmenter(image, noise).apply(image)
    augmenter.strength.fill_(0.0)
    assert torch.allclose(augmenter(image, noise).apply(image), image, atol=1e-5)
    assert not torch.allclose(whole, image, atol=1e-2)


@each
def test_a_file_holds_it(form: type[ConditionalAugmenter], tmp_path: Path) -> None:
    augmenter = perturbed(form, 2).eval()
    assert form.kind in kinds()
    assert find(form.kind) is form
    again = load(save(tmp_path / "augmenters.pt", {"a": augmenter}))["a"]
    image, noise = torch.randn(1, 1, 20, 24), torch.randn(1, 100)
    assert torch.equal(again(image, noise).apply(image), augmenter(image, noise).apply(image))


@each
def test_its_gradient_is_right(form: type[ConditionalAugmenter]) -> None:
    """Float64, central differences along a random direction of all parameters, through image and label."""
    augmenter = perturbed(form, 2).double().eval()
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    image = nn.functional.interpolate(coarse, size=(20, 24), mode="bicubic")
    label = torch.cat([image.sigmoid(), 1 - image.sigmoid()], 1)
    noise = torch.randn(1, 100, generator=generator, dtype=torch.float64)
    parameters = list(augmenter.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def value() -> torch.Tensor:
        moved, soft = augmenter(image, noise).apply_pair(image, label)
        assert soft is not None
        return (moved.sin() * soft[:, :1]).mean()

    found = torch.autograd.grad(value(), parameters)
    exact = float(torch.stack([(g * d).sum() for g, d in zip(found, direction, strict=True)]).sum())
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            values.append(float(value()))
    assert exact != 0
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(exact, rel=1e-3)


@each
@pytest.mark.parametrize("wrong", [{"width": 0}, {"noise_size": 0}, {"base": (2, 2)}, {"base": (0, 1, 1)}])
def test_sizes_that_can_t_be_are_refused(form: type[ConditionalAugmenter], wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1 and base 3 such numbers"):
        form(3, 1, **wrong)  # type: ignore[arg-type]  # on purpose


def test_a_bound_that_can_t_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="additive must be a number between"):
        ConditionalAppearance(3, 1, additive=-1.0)
