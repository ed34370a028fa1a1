# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The generator's trunks: (image, noise) -> feature map, in the quarter-resolution design and in the paper's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

__all__ = ["PaperTrunk", "QuarterTrunk", "adaptive_pool"]


def adaptive_pool(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Average-pool (B, C, D, H, W) to ``size``.

    >>> adaptive_pool(torch.ones(1, 1, 6, 6), (2, 3)).shape
    torch.Size([1, 1, 2, 3])
    """
    pool = F.adaptive_avg_pool3d if x.ndim == 5 else F.adaptive_avg_pool2d
    return pool(x, list(size))  # type: ignore[arg-type]  # typed for one fixed number of axes each


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    mode = "trilinear" if x.ndim == 5 else "bilinear"
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


class QuarterTrunk(nn.Module):
    """Feature map at a quarter of the resolution; one of it can serve several augmenters.

    Noise reaches the map through a fully connected layer and is not normalised before it is mixed in: instance norm
    would take a constant channel away again, and samples would not differ.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        noise_size: length of the noise vector.
        width: channels.
        image_condition: whether the image is looked at (off: the ablation of Gao et al. 2021).

    >>> trunk = QuarterTrunk(3, 1, noise_size=8, width=4)
    >>> trunk(torch.zeros(2, 1, 35, 50, 36), torch.zeros(2, 8)).shape
    torch.Size([2, 4, 9, 13, 9])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, noise_size: int, width: int = 16, image_condition: bool = True
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims, self.width, self.image_condition = spatial_dims, width, image_condition
        self.out_channels = width
        self.base = (3,) * spatial_dims
        self.noise = nn.Linear(noise_size, width * math.prod(self.base))
        if image_condition:
            self.image = nn.Sequential(
                conv(in_channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
                conv(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            )  # fmt: skip
        self.fuse = nn.Sequential(
            conv(2 * width if image_condition else width, width, 3, padding=1), nn.SiLU(),
            conv(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, C, D, H, W), (B, noise_size) -> (B, width, D / 4, H / 4, W / 4), sizes rounded up."""
        size = tuple(-(-n // 4) for n in image.shape[2:])
        coarse = self.noise(noise).view(len(noise), self.width, *self.base)
        features = _resize(coarse, size)
        if self.image_condition:
            features = torch.cat([self.image(adaptive_pool(image, size)), features], dim=1)
        out: Tensor = self.fuse(features)
        return out


def _block(spatial_dims: int, channels_in: int, channels_out: int) -> nn.Sequential:
    """The paper's convolution, batch norm and ReLU."""
    return nn.Sequential(
        Conv[Conv.CONV, spatial_dims](channels_in, channels_out, 3, padding=1, bias=False),
        Norm[Norm.BATCH, spatial_dims](channels_out),
        nn.ReLU(),
    )


class PaperTrunk(nn.Module):
    """The paper's two branches at full resolution, all with batch norm and ReLU.

    Six convolutions interleaved with upsampling for the noise, four for the image, four after their fusion.

    Source: Gao et al. 2021, section 4.1. Channel counts are not in the paper: here 128, 64, 32, 16, 16, 16 for the
    noise branch and 16 elsewhere.

    >>> trunk = PaperTrunk(3, 1, noise_size=128)
    >>> trunk(torch.zeros(2, 1, 20, 28, 20), torch.zeros(2, 128)).shape
    torch.Size([2, 16, 20, 28, 20])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, noise_size: int, width: int = 16, image_condition: bool = True
    ) -> None:
        super().__init__()
        self.spatial_dims, self.width, self.image_condition = spatial_dims, width, image_condition
        self.out_channels = width
        channels = (128, 64, 32, width, width, width)
        # the paper reshapes the noise; a layer to a map whose size depends on the image needs one size for all: 2
        self.base = (2,) * spatial_dims
        self.noise_in = nn.Linear(noise_size, channels[0] * math.prod(self.base))
        self.noise = nn.ModuleList(
            _block(spatial_dims, a, b) for a, b in zip((channels[0], *channels[:-1]), channels, strict=True)
        )
        if image_condition:
            widths = (in_channels, width, width, width)
            self.image = nn.Sequential(*[_block(spatial_dims, a, width) for a in widths])
        first = 2 * width if image_condition else width
        self.fuse = nn.Sequential(*[_block(spatial_dims, a, width) for a in (first, width, width, width)])

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, C, D, H, W), (B, noise_size) -> (B, width, D, H, W)."""
        full = tuple(image.shape[2:])
        features = self.noise_in(noise).view(len(noise), -1, *self.base)
        for level, block in zip((5, 4, 3, 2, 1, 0), self.noise, strict=True):
            features = block(_resize(features, tuple(max(min(n, 2), -(-n // 2**level)) for n in full)))
        if self.image_condition:
            features = torch.cat([self.image(image), features], dim=1)
        out: Tensor = self.fuse(features)
        return out
