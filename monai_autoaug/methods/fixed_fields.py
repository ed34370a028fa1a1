# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The unlearned augmentations that paper 001 compares its generators with: random elastic, random contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor

from monai_autoaug.augmenters import Transformation

__all__ = ["random_contrast", "random_elastic"]

_POINTS = 3  # along each axis
_DEVIATION = 10 / 224  # the paper's pixels, of its images' size
_CONTRAST, _BRIGHTNESS = 0.2, 0.1
_RANGE = 4.107  # standard deviations between the 2nd and the 98th percentile of a normal distribution


def _cubic(size: int) -> Tensor:
    """(size, 3): how much each of three points along an axis counts for each voxel, by torch's cubic interpolation.

    >>> _cubic(3).round().tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    points = torch.eye(_POINTS)[None, None]
    return F.interpolate(points, size=(size, _POINTS), mode="bicubic", align_corners=True)[0, 0]


def random_elastic(image: Tensor, generator: torch.Generator) -> Transformation:
    """Draw one smooth displacement field a sample.

    Three points along each axis have displacements from a normal distribution, whose standard deviation is 10 pixels in
    the paper's images of 224 and the same share of the size along each axis here; between them the field is cubic.

    Args:
        image: (B, C, D, H, W).
        generator: of the random numbers.

    Source: Chaitanya et al. 2019, section 4, Aug_A,RD; volumes instead of slices.

    >>> t = random_elastic(torch.zeros(2, 1, 16, 16), torch.Generator().manual_seed(0))
    >>> t.displacement.shape
    torch.Size([2, 2, 16, 16])
    """
    n, shape = len(image), tuple(image.shape[2:])
    d = len(shape)
    field = torch.randn(n, d, *[_POINTS] * d, generator=generator, device=generator.device).to(image.device)
    field = field * (_DEVIATION * torch.tensor(shape, device=image.device)).view(1, d, *[1] * d)
    for size in shape:
        # consumes the first spatial axis, appends the new one
        field = torch.tensordot(field, _cubic(size).to(field), dims=([2], [1]))
    return Transformation(shape, displacement=field)


def random_contrast(image: Tensor, generator: torch.Generator) -> Transformation:
    """Draw one change of contrast and brightness a sample: ``(x - mean) * c + mean + b``.

    c is uniform in [0.8, 1.2]. b is uniform in [-0.1, 0.1] in the paper, whose images go from 0 (2nd percentile) to 1
    (98th); here it is in the same share of what a normal distribution of the patch's standard deviation has there.

    Args:
        image: (B, C, D, H, W); each channel changes by itself.
        generator: of the random numbers.

    Source: Chaitanya et al. 2019, section 4, Aug_A,RI.

    >>> x = torch.randn(1, 1, 16, 16)
    >>> t = random_contrast(x, torch.Generator().manual_seed(0))
    >>> 0.8 <= float(t.apply(x).std() / x.std()) <= 1.2
    True
    """
    n, channels = image.shape[:2]
    ones = (1,) * (image.ndim - 2)

    def uniform() -> Tensor:
        return 2 * torch.rand(n, channels, *ones, generator=generator, device=generator.device).to(image) - 1

    dims = tuple(range(2, image.ndim))
    contrast, brightness = _CONTRAST * uniform(), _BRIGHTNESS * _RANGE * uniform()
    deviation, mean = torch.std_mean(image, dim=dims, keepdim=True, correction=0)
    return Transformation(tuple(image.shape[2:]), additive=contrast * (image - mean) + brightness * deviation)
