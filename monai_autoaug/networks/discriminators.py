# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Discriminators on logits, and the loss they share with the generators in a form that can't overflow."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from monai_autoaug.precision import float32_region

__all__ = ["Discriminator", "WeightNormDiscriminator", "adversarial_loss", "discriminate_frozen"]


class Discriminator(nn.Module):
    """Is a patch a real one? Strided convolutions, global average, one logit a sample.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        width: channels of the first layer; doubled at every further one.
        layers: convolutions of kernel 4 and stride 2 with leaky ReLU 0.2. A layer whose map would shrink to nothing is
            padded, and there is no norm in the first and last one, so that small patches and a batch of one work.
        norm: "instance", "batch" (the paper's) or None.
        halve: look at the image at half the resolution, which is cheaper and leaves less to see of resampling blur.

    Source: D of Gao et al. 2021, section 4.1, with a logit in place of the sigmoid.

    >>> Discriminator(3, 1)(torch.zeros(2, 1, 35, 50, 36)).shape
    torch.Size([2])
    """

    def __init__(
        self, spatial_dims: int = 3, in_channels: int = 1, *, width: int = 16, layers: int = 4,
        norm: str | None = "instance", halve: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spatial_dims, self.halve, self.layers = spatial_dims, halve, layers
        self.minimum = 2 ** (layers + (1 if halve else 0))
        blocks: list[nn.Module] = []
        channels = in_channels
        for number in range(layers):
            out = width * 2**number
            blocks.append(Conv[Conv.CONV, spatial_dims](channels, out, 4, stride=2, padding=1))
            if norm is not None and 0 < number < layers - 1:
                kind = Norm[Norm.BATCH if norm == "batch" else Norm.INSTANCE, spatial_dims]
                blocks.append(kind(out, affine=True))
            blocks.append(nn.LeakyReLU(0.2))
            channels = out
        self.features = nn.Sequential(*blocks)
        self.score = nn.Linear(channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B,) logits, positive for real."""
        image = _padded(image, self.minimum)
        if self.halve:
            image = F.avg_pool3d(image, 2) if self.spatial_dims == 3 else F.avg_pool2d(image, 2)
        logits: Tensor = self.score(self.features(image).flatten(2).mean(2))[:, 0]
        return logits


class WeightNormDiscriminator(nn.Module):
    """The discriminators of paper 004: nine convolutions with weight normalisation, global average, one logit a sample.

    Gaussian noise of 0.05 on the input while training; 3 convolutions of ``width`` channels and 3 of twice as many, the
    last one of each three with stride 2 and dropout behind it; then 3 of twice as many, the first one without padding,
    the others 1 voxel wide. Leaky ReLU 0.2 throughout. Small patches are padded to what this needs.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of what is looked at: an image and a label, or two images.
        width: channels of the first layers (96 in the paper, for images of 32 x 32 pixels).
        dropout: probability, 0 to 1.

    Source: Mounsaveng et al. 2019, section 4.2, which takes it from Dai et al. 2017 (``Discriminative`` of its code);
    a logit in place of the sigmoid.

    >>> WeightNormDiscriminator(2, 4, width=4)(torch.zeros(2, 4, 9, 20)).shape
    torch.Size([2])
    """

    def __init__(self, spatial_dims: int, in_channels: int, *, width: int = 96, dropout: float = 0.5) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        blocks: list[nn.Module] = []
        channels = in_channels
        for out in (width, 2 * width):
            for stride in (1, 1, 2):
                blocks += [weight_norm(conv(channels, out, 3, stride=stride, padding=1)), nn.LeakyReLU(0.2)]
                channels = out
            blocks.append(nn.Dropout(dropout))
        for kernel in (3, 1, 1):
            blocks += [weight_norm(conv(channels, channels, kernel)), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*blocks)
        self.score = weight_norm(nn.Linear(channels, 1))
        self.minimum = 9  # a third of it is left for the convolution without padding

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B,) logits, positive for real."""
        image = _padded(image, self.minimum)
        if self.training:
            image = image + 0.05 * torch.randn_like(image)
        logits: Tensor = self.score(self.features(image).flatten(2).mean(2))[:, 0]
        return logits


def _padded(image: Tensor, least: int) -> Tensor:
    """An image continued by its border value to at least so many voxels along each axis."""
    missing = [max(0, least - n) for n in image.shape[2:]]
    if not any(missing):
        return image
    return F.pad(image, [p for m in reversed(missing) for p in (m // 2, m - m // 2)], mode="replicate")


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Mean binary cross-entropy of ``logits`` (B,) with "real" or "fake": always finite, with gradient at most 1.

    Source: Gao et al. 2021, Eq. 4, on logits: ``-log D`` and ``-log(1 - D)`` without forming D.

    >>> adversarial_loss(torch.tensor([200.0]), real=False)
    tensor(200.)
    """
    with float32_region(logits.device):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.softplus(-logits if real else logits).mean()


def discriminate_frozen(discriminator: nn.Module, image: Tensor) -> Tensor:
    """Logits of ``image`` with parameters and buffers held fixed: the gradient reaches the image only.

    >>> d, x = Discriminator(2, 1, layers=2), torch.zeros(1, 1, 16, 16, requires_grad=True)
    >>> discriminate_frozen(d, x).sum().backward()
    >>> x.grad is not None, next(d.parameters()).grad is None
    (True, True)
    """
    state = {n: p.detach() for n, p in discriminator.named_parameters()}
    state |= {n: b.clone() for n, b in discriminator.named_buffers()}
    logits: Tensor = torch.func.functional_call(discriminator, state, (image,))
    return logits
