# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The discriminator of paper 001: its layers, what its two outputs mean, patches of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_autoaug.networks.discriminators import adversarial_loss
from monai_autoaug.networks.five_convolutions import FiveConvolutionDiscriminator


def test_five_convolutions_and_three_layers() -> None:
    """40 x 56 x 40 shrinks to 2 x 2 x 2 with 128 channels: 1024 numbers, then 128, 128 and 2."""
    network = FiveConvolutionDiscriminator(3, 1)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert [m.out_channels for m in convolutions] == [16, 32, 64, 128, 128]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((5, 5, 5), (2, 2, 2))}
    assert [tuple(m.weight.shape) for m in network.score if isinstance(m, nn.Linear)] == [
        (128, 1024), (128, 128), (2, 128),
    ]  # fmt: skip
    assert network.features(torch.zeros(2, 1, 40, 56, 40)).shape == (2, 128, 2, 2, 2)


def test_its_logit_is_the_difference_of_two_outputs() -> None:
    """The loss on the logit is the cross-entropy of the softmax of both."""
    network = FiveConvolutionDiscriminator(2, 1, width=4).eval()
    image = torch.randn(3, 1, 40, 40)
    outputs = network.score(nn.functional.adaptive_avg_pool2d(network.features(image), 2).flatten(1))
    for real, label in ((True, 0), (False, 1)):
        wanted = nn.functional.cross_entropy(outputs, torch.full((3,), label))
        torch.testing.assert_close(adversarial_loss(network(image), real=real), wanted)


@pytest.mark.parametrize("size", [(16, 20, 12), (17, 40)])
def test_gradients_are_finite_under_autocast(size: tuple[int, ...]) -> None:
    network = FiveConvolutionDiscriminator(len(size), 1, width=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(4, 1, *size))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize("size", [(8, 8, 8), (35, 50, 36), (17, 40)])
def test_any_size_will_do(size: tuple[int, ...]) -> None:
    network = FiveConvolutionDiscriminator(len(size), 2, width=2)
    logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2,)
    logits.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
