# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations on sharpness: blur, sharpening, low resolution, Gibbs ringing.

Images are (B, C, D, H, W), or (B, C, H, W); a magnitude is (B,), one number a sample, and stays a tensor. All are
computed in at least float32 and returned in the image's dtype. Filters are separable sums of shifted copies, which on
one to four channels are several times faster than grouped convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_autoaug.precision import float32_region
from monai_autoaug.transforms.intensity import Reference, at_least_float32, per_sample

__all__ = ["blur", "coarse", "gibbs", "kernels", "low_resolution", "sharpen"]


def kernels(sigma: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """A Gaussian and its second derivative at 0..radius, (B, radius + 1) each; both are symmetric.

    A sample's kernel ends at four of its own sigmas, so that it doesn't depend on the radius that others need.

    Args:
        sigma: (B,) in voxels.
        radius: in voxels.

    >>> bell, second = kernels(torch.tensor([1.0]), 4)
    >>> bell.shape, round(float(2 * bell.sum() - bell[0, 0]), 6)
    (torch.Size([1, 5]), 1.0)
    """
    k = torch.arange(radius + 1, device=sigma.device, dtype=sigma.dtype)
    variance = sigma[:, None].clamp(min=1e-3).square()
    inside = k <= (4 * sigma[:, None] + 0.5).floor()
    bell = torch.exp(-k.square() / (2 * variance)) * inside
    bell = bell / (2 * bell.sum(1, keepdim=True) - bell[:, :1])
    return bell, bell * (k.square() / variance - 1) / variance


def _filter(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Symmetric filter along one axis; the image is mirrored at its border, the last voxel being repeated."""
    n, radius = x.shape[axis], kernel.shape[1] - 1
    position = torch.arange(-radius, n + radius, device=x.device).remainder(2 * n)
    padded = x.index_select(axis, torch.minimum(position, 2 * n - 1 - position))
    total = x * per_sample(kernel[:, 0], x)
    for k in range(1, radius + 1):
        pair = padded.narrow(axis, radius - k, n) + padded.narrow(axis, radius + k, n)
        total = torch.addcmul(total, pair, per_sample(kernel[:, k], x))
    return total


def blur(image: Tensor, sigma: Tensor, *, largest: float = 1.0) -> Tensor:
    """Gaussian blur.

    Args:
        image: (B, C, D, H, W).
        sigma: (B,) in voxels, 0 changes nothing.
        largest: no sigma is above it; it sets how far the filter reaches.

    >>> x = torch.rand(1, 1, 4, 4, 4)
    >>> torch.equal(blur(x, torch.tensor([0.0])), x)
    True
    """
    x = at_least_float32(image)
    kernel, _ = kernels(sigma.to(x), int(4 * largest + 0.5))
    for axis in range(2, x.ndim):
        x = _filter(x, kernel, axis)
    return x.to(image.dtype)


def sharpen(image: Tensor, sigma: Tensor, reference: Reference | None = None, *, largest: float = 1.0) -> Tensor:
    """The image minus its Laplacian of Gaussian, clipped to the reference's range.

    Args:
        image: (B, C, D, H, W).
        sigma: (B,) in voxels; the smaller the stronger, and infinity changes nothing.
        reference: of the volume; None: the sample itself.
        largest: no finite sigma is above it; it sets how far the filter reaches.

    >>> x = torch.rand(1, 1, 4, 4, 4)
    >>> torch.equal(sharpen(x, torch.tensor([torch.inf])), x)
    True
    """
    x = at_least_float32(image)
    bell, second = kernels(sigma.to(x), int(4 * largest + 0.5))
    smooth, laplacian = x, torch.zeros_like(x)
    for axis in range(2, x.ndim):
        laplacian = _filter(smooth, second, axis) + (_filter(laplacian, bell, axis) if axis > 2 else 0)
        if axis < x.ndim - 1:
            smooth = _filter(smooth, bell, axis)
    reference = reference or Reference(x)
    ends = (reference.minimum, reference.maximum)
    low, high = (per_sample(end, x) for end in ends)
    return (x - laplacian).clamp(low, high).to(image.dtype)


def low_resolution(image: Tensor, zoom: Tensor) -> Tensor:
    """As if acquired with fewer voxels: sampled linearly on a grid ``zoom`` times as fine, brought back by the nearest.

    Both steps are one: every output voxel knows its nearest coarse voxel, and that one's position.

    Args:
        image: (B, C, D, H, W).
        zoom: (B,) between 0 and 1; 1 changes nothing. The coarse grid has ``round(zoom * n)`` voxels, at least 1.

    >>> low_resolution(torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]]), torch.tensor([0.5])).flatten().tolist()
    [0.5, 0.5, 2.5, 2.5]
    """
    x = at_least_float32(image)
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        lower, upper, weight = coarse(n, zoom.to(x))
        shape = [-1, *[1] * (axis - 1), n, *[1] * (x.ndim - 1 - axis)]
        a, b = (x.gather(axis, index.view(shape).expand_as(x)) for index in (lower, upper))
        x = torch.lerp(a, b, weight.to(x).view(shape))
    return x.to(image.dtype)


def coarse(n: int, zoom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of an axis of ``n`` voxels, for each the two between which its nearest coarse voxel lies, and the upper's weight.

    Args:
        n: voxels.
        zoom: (B,) between 0 and 1.

    Returns:
        (B, n) each.

    >>> lower, upper, weight = coarse(4, torch.tensor([0.5]))
    >>> lower.tolist(), upper.tolist(), weight.tolist()
    ([[0, 0, 2, 2]], [[1, 1, 3, 3]], [[0.5, 0.5, 0.5, 0.5]])
    """
    count = (n * zoom).round().clamp(min=1)[:, None]
    # whole numbers, so that a tie falls the same way on every device
    doubled = 2 * torch.arange(n, device=zoom.device) + 1
    nearest = (doubled * count.long()).div(2 * n, rounding_mode="floor")
    where = ((nearest + 0.5) * n / count - 0.5).clamp(0, n - 1)
    below = where.floor()
    lower = below.long()
    return lower, (lower + 1).clamp(max=n - 1), where - below


def gibbs(image: Tensor, kept: Tensor) -> Tensor:
    """Ringing at edges, from a k-space that was not read to its end.

    Args:
        image: (B, C, D, H, W).
        kept: (B,) fraction of the spatial frequencies along each axis that remain, above 0; 1 changes nothing.

    >>> x = torch.rand(1, 1, 4, 4, 4)
    >>> torch.allclose(gibbs(x, torch.tensor([1.0])), x, atol=1e-6)
    True
    """
    x = at_least_float32(image)
    axes = list(range(2, x.ndim))
    with float32_region(x.device):
        spectrum = torch.fft.rfftn(x, dim=axes)
        limit = kept.to(x)[:, None] / 2 + 1e-6  # in cycles a voxel, 1/2 being the highest there is
        for axis in axes:
            make = torch.fft.rfftfreq if axis == axes[-1] else torch.fft.fftfreq
            frequency = make(x.shape[axis], device=x.device, dtype=x.dtype).abs()
            shape = [-1, *[1] * (axis - 1), len(frequency), *[1] * (x.ndim - 1 - axis)]
            spectrum = spectrum * (frequency <= limit).view(shape)
        return torch.fft.irfftn(spectrum, s=x.shape[2:], dim=axes).to(image.dtype)
