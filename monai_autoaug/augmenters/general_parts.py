# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Networks of the general augmenter: encoder to an affine matrix, U-Net to an image, decoder from noise to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_autoaug.augmenters.trunk import adaptive_pool
from monai_autoaug.networks.spatial_transformer import AffineEncoder
from monai_autoaug.transforms.geometry import upsample_field

__all__ = ["ImageDecoder", "NoiseUNet", "PaperEncoder"]


def _spread(noise: Tensor, size: Sequence[int]) -> Tensor:
    """A noise vector as constant channels (B, noise_size, D, H, W), as the paper's first layers get it."""
    return noise.view(*noise.shape, *[1] * len(size)).expand(*noise.shape, *size)


class PaperEncoder(nn.Module):
    """ENC of the paper's spatial transformer: image and noise, concatenated in the first layer -> an affine matrix.

    With batch norm; fresh it is the identity, and nothing bounds it (see `AffineEncoder`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        noise_size: length of the noise vector.
        width: channels of the first layer.

    Source: Mounsaveng et al. 2019, section 3, Eq. 1, and section 4.2; the layers are not in the paper.

    >>> PaperEncoder(2, 1, noise_size=3)(torch.zeros(2, 1, 17, 20), torch.zeros(2, 3))[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, spatial_dims: int, in_channels: int, *, noise_size: int, width: int = 16) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.encoder = AffineEncoder(spatial_dims, in_channels + noise_size, width=width, norm="BATCH")

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, C, D, H, W), (B, noise_size) -> (B, d, d + 1) in [-1, 1] coordinates."""
        d = self.spatial_dims
        raw = self.encoder(torch.cat([image, _spread(noise, image.shape[2:]).to(image.dtype)], dim=1))
        return torch.eye(d, d + 1).to(raw) + raw.view(-1, d, d + 1)


class NoiseUNet(nn.Module):
    """MONAI's U-Net of image and noise.

    In the default form it works at half the resolution, noise comes in as a coarse map made by a fully connected layer
    (normalisation would take constant channels away again), samples don't depend on each other, and the last layer
    starts at 0. In the paper's form the noise is concatenated in the first layer at full resolution, with batch norm.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels, of input and output.
        noise_size: length of the noise vector.
        width: channels of the first level.
        paper: the paper's form.

    Source: Mounsaveng et al. 2019, Eq. 1; the layers are not in the paper.

    >>> NoiseUNet(3, 1, noise_size=4, width=4)(torch.zeros(2, 1, 17, 20, 9), torch.zeros(2, 4)).shape
    torch.Size([2, 1, 9, 10, 5])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, noise_size: int, width: int = 16, paper: bool = False
    ) -> None:
        super().__init__()
        self.paper = paper
        self.channels = (width, 2 * width, 4 * width) if not paper else (width, 2 * width, 4 * width, 8 * width)
        levels = len(self.channels) - 1
        norm = "BATCH" if paper else ("GROUP", {"num_groups": 1})
        act = ("LEAKYRELU", {"negative_slope": 0.2}) if paper else "SWISH"
        self.base = (3,) * spatial_dims
        self.map = width if not paper else noise_size
        if not paper:
            self.noise = nn.Linear(noise_size, width * math.prod(self.base))
        self.net = UNet(
            spatial_dims, in_channels + self.map, in_channels if paper else width, self.channels, (2,) * levels,
            norm=norm, act=act,
        )  # fmt: skip
        self.multiple = 2**levels
        if not paper:
            head = Conv[Conv.CONV, spatial_dims](width, in_channels, 3, padding=1)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.head = nn.Sequential(nn.SiLU(), head)

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, C, D, H, W), (B, noise_size) -> the same at half the resolution, or in the paper's form at the full."""
        if self.paper:
            maps = _spread(noise, image.shape[2:])
        else:
            image = adaptive_pool(image, tuple(-(-n // 2) for n in image.shape[2:]))
            coarse = self.noise(noise).view(len(noise), self.map, *self.base)
            maps = upsample_field(coarse, tuple(image.shape[2:]))
        size = image.shape[2:]
        x = torch.cat([image, maps.to(image.dtype)], dim=1)
        missing = [-n % self.multiple for n in size]
        if any(missing):
            x = F.pad(x, [p for m in reversed(missing) for p in (0, m)], mode="replicate")
        out: Tensor = self.net(x)[tuple([slice(None), slice(None), *[slice(0, n) for n in size]])]
        return out if self.paper else self.head(out)


class ImageDecoder(nn.Module):
    """DEC alone: noise -> image of a given label, the paper's control that generates instead of transforming.

    A fully connected layer to a coarse map, then convolutions interleaved with upsampling; each sees the label at its
    resolution, which says what the image has to show.

    Args:
        spatial_dims: 2 or 3.
        label_channels: classes or regions.
        out_channels: image channels.
        noise_size: length of the noise vector.
        width: channels of the last layer; twice and four times as many in the layers before.

    Source: Mounsaveng et al. 2019, section 4.6 and Table 3 (d); the layers are not in the paper.

    >>> ImageDecoder(2, 3, 1, noise_size=4)(torch.zeros(2, 4), torch.zeros(2, 3, 18, 13)).shape
    torch.Size([2, 1, 18, 13])
    """

    def __init__(
        self, spatial_dims: int, label_channels: int, out_channels: int, *, noise_size: int, width: int = 16
    ) -> None:
        super().__init__()
        self.base = (4,) * spatial_dims
        self.first = 4 * width
        self.noise = nn.Linear(noise_size, self.first * math.prod(self.base))
        channels = (self.first, 4 * width, 2 * width, width)
        self.layers = nn.ModuleList(
            Convolution(spatial_dims, a + label_channels, b, norm="BATCH", act="RELU")
            for a, b in zip(channels, channels[1:], strict=False)
        )
        self.image = Conv[Conv.CONV, spatial_dims](width, out_channels, 3, padding=1)

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        """(B, noise_size), (B, K, D, H, W) -> (B, C, D, H, W)."""
        full = tuple(label.shape[2:])
        x = self.noise(noise).view(len(noise), self.first, *self.base)
        for level, layer in zip(range(len(self.layers) - 1, -1, -1), self.layers, strict=True):
            size = tuple(max(min(n, 2), -(-n // 2**level)) for n in full)
            x = layer(torch.cat([upsample_field(x, size), adaptive_pool(label, size)], dim=1))
        out: Tensor = self.image(x)
        return out
