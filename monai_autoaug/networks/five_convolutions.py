# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The discriminator of paper 001: five wide strided convolutions, three fully connected layers, two outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from monai_autoaug.precision import float32_region

__all__ = ["FiveConvolutionDiscriminator"]


class FiveConvolutionDiscriminator(nn.Module):
    """Is a patch a real one? Convolutions of kernel 5 and stride 2, then three fully connected layers.

    Batch norm and leaky ReLU 0.2 follow each convolution. Of the two outputs the difference is taken, whose sigmoid is
    the softmax of both. Before the fully connected layers the map is pooled to two voxels along each axis, so that
    patches may be of any size. Batch norm needs more than one patch: real and transformed ones belong into one batch.
    It runs in float32 whatever autocast says.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        width: channels of the first layer; then twice, 4, 8 and 8 times as many (16 in the released code), and 8 times
            as many behind each fully connected layer but the last.

    Source: Chaitanya et al. 2019, section 3.3; channel counts of the released code.

    >>> FiveConvolutionDiscriminator(2, 1, width=2)(torch.zeros(2, 1, 35, 50)).shape
    torch.Size([2])
    """

    def __init__(self, spatial_dims: int = 3, in_channels: int = 1, *, width: int = 16) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        blocks: list[nn.Module] = []
        channels = in_channels
        for factor in (1, 2, 4, 8, 8):
            out = factor * width
            blocks += [
                Conv[Conv.CONV, spatial_dims](channels, out, 5, stride=2, padding=2, bias=False),
                Norm[Norm.BATCH, spatial_dims](out),
                nn.LeakyReLU(0.2),
            ]
            channels = out
        self.features = nn.Sequential(*blocks)
        self.score = nn.Sequential(
            nn.Linear(channels * 2**spatial_dims, channels), nn.LeakyReLU(0.2),
            nn.Linear(channels, channels), nn.LeakyReLU(0.2),
            nn.Linear(channels, 2),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B,) logits, positive for real."""
        pool = F.adaptive_avg_pool3d if self.spatial_dims == 3 else F.adaptive_avg_pool2d
        # in bfloat16 a CPU gives no finite gradient to a kernel of 5 on a map of 3 voxels (torch 2.15)
        with float32_region(image.device):
            image = image if image.dtype == torch.float64 else image.float()
            real, fake = self.score(pool(self.features(image), 2).flatten(1)).unbind(1)
            logits: Tensor = real - fake
            return logits
