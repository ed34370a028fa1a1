# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Everything that is said of volumes holds for images: augmenters, one resampling, methods with 2D networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import Fixed, build, freeze, moved
from monai.networks.nets import UNet
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from monai_autoaug.augmenters import AffineAugmenter, AppearanceAugmenter, DeformationAugmenter, TrunkAugmenter

KINDS: list[type[TrunkAugmenter]] = [AffineAugmenter, DeformationAugmenter, AppearanceAugmenter]
SHAPE = (20, 27)


def unet2d(norm: Any = "INSTANCE") -> nn.Module:
    return UNet(2, 1, 3, (4, 8, 16), (2, 2), num_res_units=1, norm=norm)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(2, 1, 5, 6, generator=generator)
    image = nn.functional.interpolate(coarse, size=SHAPE, mode="bilinear", align_corners=True)
    return image, nn.functional.one_hot((image[:, 0] > 0).long(), 2).movedim(-1, 1).float()


def perturbed(kind: type[TrunkAugmenter], fidelity: str) -> TrunkAugmenter:
    torch.manual_seed(0)
    augmenter = kind(2, 1, fidelity=fidelity)
    augmenter.strength.fill_(1.0)
    with torch.no_grad():
        for parameter in augmenter.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return augmenter.eval()


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_augmenter_of_images_is_the_identity(kind: type[TrunkAugmenter], fidelity: str) -> None:
    image, label = pair()
    made = kind(2, 1, fidelity=fidelity)(image)
    new, soft = made.apply_pair(image, label)
    assert soft is not None
    assert float((new - image).abs().max()) <= 1e-5
    assert float((soft - label).abs().max()) <= 1e-5
    assert float(made.regularization()) == 0


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_image_and_label_are_read_where_the_grid_says(kind: type[TrunkAugmenter], fidelity: str) -> None:
    """Against scipy's linear interpolation; what lies outside is left out."""
    image, label = pair()
    with torch.no_grad():
        made = perturbed(kind, fidelity)(image)
        new, soft = made.apply_pair(image, label)
    assert soft is not None
    assert torch.allclose(soft.sum(1), torch.ones(2, *SHAPE), atol=1e-5)
    if not made.moves_geometry:
        assert made.additive is not None
        assert float((new - image).abs().max()) > 0.01
        assert torch.equal(soft, label)
        return
    grid = made.grid() + torch.tensor([(n - 1) / 2 for n in SHAPE])
    assert float((made.magnitude()["displacement_max"]).min()) > 0.1
    for sample in range(2):
        places = grid[sample].movedim(-1, 0).numpy()
        inside = np.logical_and.reduce([(p >= 0) & (p <= n - 1) for p, n in zip(places, SHAPE, strict=True)])
        for source, result in ((image, new), (label, soft)):
            read = map_coordinates(source[sample, 0].numpy(), places, order=1, mode="nearest")
            assert np.abs(read - result[sample, 0].numpy())[inside].max() <= 2e-4


@pytest.mark.parametrize("kind", [AffineAugmenter, DeformationAugmenter])
def test_what_moves_images_has_an_inverse(kind: type[TrunkAugmenter]) -> None:
    image, _ = pair()
    with torch.no_grad():
        made = perturbed(kind, "default")(image)
        back = made.inverse()
        assert back is not None
        there = back.apply(made.apply(image))
    away = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    assert float((there - image)[away].abs().mean()) < 0.05
    assert float(made.magnitude()["jacobian_minimum"].min()) > 0


MODES = ["combined", "affine", "deformation", "appearance"]


@pytest.mark.parametrize("norm", ["INSTANCE", "BATCH"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["random", "adversarial"])
def test_methods_train_networks_of_images(name: str, mode: str, norm: str) -> None:
    """A step's loss is finite, and every player gets a gradient."""
    method = moved(build(unet2d(norm), name, spatial_dims=2, mode=mode))
    players = freeze(method)
    figures = method.step(Fixed(8, (24, 32), margin=(2, 4)))
    assert np.isfinite(figures["loss"])
    assert set(players) == ({"network"} if name == "random" else {"network", "generators", "discriminator"})
    for player, optimizer in players.items():
        norms = [float(g.norm()) for g in optimizer.seen if g is not None]
        assert norms, player
        assert max(norms) > 0, player
        assert np.isfinite(norms).all(), player


@pytest.mark.parametrize("mode", ["affine", "deformation"])
def test_the_paper_s_form_trains_networks_of_images(mode: str) -> None:
    method = moved(build(unet2d("BATCH"), "adversarial", spatial_dims=2, mode=mode, fidelity="paper"), 0.01)
    players = freeze(method)
    assert np.isfinite(method.step(Fixed(4, (32, 40)))["loss"])
    assert all(any(g is not None and float(g.norm()) > 0 for g in o.seen) for o in players.values())
