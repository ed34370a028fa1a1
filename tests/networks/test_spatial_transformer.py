# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A spatial transformer in front of a network: the identity when fresh, mapped back behind it, kept in its state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import add_spatial_transformer, expect_spatial_transformer, held
from monai_autoaug.networks.discriminators import WeightNormDiscriminator


class Levels(nn.Module):
    """Records what it looks at and gives it back at two resolutions, as with deep supervision."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)
        self.pool = (nn.AvgPool2d, nn.AvgPool3d)[spatial_dims - 2](2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The same, and half of it."""
        self.seen = x
        y = self.conv(x)
        return [y, self.pool(y)]


def smooth(*shape: int) -> Tensor:
    coarse = torch.randn(2, 1, *[n // 8 for n in shape])
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)


@pytest.mark.parametrize("shape", [(24, 32), (16, 24, 16)])
@pytest.mark.parametrize("bounded", [True, False])
def test_fresh_it_changes_nothing(shape: tuple[int, ...], bounded: bool) -> None:
    network, image = Levels(len(shape)), smooth(*shape)
    expected = network(image)
    add_spatial_transformer(network, bounded=bounded)
    for a, b in zip(network(image), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 32), (16, 24, 16)])
def test_what_the_network_looks_at_is_moved_and_what_it_gives_is_moved_back(shape: tuple[int, ...]) -> None:
    network, image = Levels(len(shape)), smooth(*shape)
    expected = network(image)
    transformer: Any = add_spatial_transformer(network).spatial_transformer
    d = len(shape)
    with torch.no_grad():  # half of the bound: a translation by a 32nd of the size along each axis, a rotation of 5
        transformer.encoder.numbers.bias[-d:] = math.atanh(0.5)
        transformer.encoder.numbers.bias[0] = math.atanh(1 / 3)
    for level, (a, b) in enumerate(zip(network(image), expected, strict=True)):
        inner = (slice(None), slice(None), *[slice(4, -4) if level == 0 else slice(2, -2)] * d)
        assert float((a - b)[inner].abs().mean()) < 0.1 * float((network.seen - image)[inner].abs().mean())
    moved = transformer.matrix(image)
    assert torch.allclose(moved[:, :, -1], torch.tensor(shape) / 32.0, atol=1e-4)
    assert transformer.last is None


def test_its_parameters_learn_with_those_of_the_network() -> None:
    network = add_spatial_transformer(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)))
    assert [n for n, _ in network.named_parameters() if n.startswith("spatial_transformer.encoder.numbers")]
    network(smooth(24, 32)).square().mean().backward()
    assert float(network.spatial_transformer.encoder.numbers.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("bounded", [True, False])
def test_a_state_with_one_loads_into_the_plain_network(bounded: bool) -> None:
    network = add_spatial_transformer(Levels(2), bounded=bounded, width=6)
    with torch.no_grad():
        network.spatial_transformer.encoder.numbers.bias.normal_(std=0.3)
    plain = Levels(2)
    expect_spatial_transformer(plain, {"a.conv.weight": torch.zeros(1)}, "a.")
    assert not hasattr(plain, "spatial_transformer")
    expect_spatial_transformer(plain, network.state_dict())
    plain.load_state_dict(network.state_dict())
    image = smooth(24, 32)
    assert torch.equal(plain(image)[0], network(image)[0])


def test_the_class_of_a_whole_image_has_no_place() -> None:
    network = add_spatial_transformer(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert network(smooth(24, 32)).shape == (2, 3)


def test_levels_that_are_stacked_are_mapped_back_one_by_one() -> None:
    class Stacked(Levels):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.stack([self.conv(x), 2 * self.conv(x)], dim=1)

    out = add_spatial_transformer(Stacked(2))(smooth(24, 32))
    assert out.shape == (2, 2, 1, 24, 32)
    assert torch.allclose(out[:, 1], 2 * out[:, 0], atol=1e-5)


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(ConfigError, match="convolutions"):
        add_spatial_transformer(nn.Linear(1, 1))


def test_held_parameters_need_no_gradient_and_get_back_what_they_had() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].weight.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with held(network):
        y = network(x)
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True]


@pytest.mark.parametrize("shape", [(8, 8), (33, 20), (3, 12, 5)])
def test_the_discriminator_of_the_paper(shape: tuple[int, ...]) -> None:
    network = WeightNormDiscriminator(len(shape), 3, width=4)
    image = torch.randn(2, 3, *shape)
    assert network(image).shape == (2,)
    assert not torch.equal(network(image), network(image))  # noise and dropout
    network.eval()
    assert torch.equal(network(image), network(image))
    convolutions = [m for m in network.features if hasattr(m, "kernel_size")]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (4, 3, 1), (4, 3, 1), (4, 3, 2), (8, 3, 1), (8, 3, 1), (8, 3, 2), (8, 3, 1), (8, 1, 1), (8, 1, 1),
    ]  # fmt: skip
    assert all(hasattr(c, "parametrizations") for c in [*convolutions, network.score])
