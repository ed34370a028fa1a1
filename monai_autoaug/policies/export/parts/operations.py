# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The part of an exported file that needs torch and NumPy alone: drawing operations, and what they do to values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

__all__ = [
    "VALUES",
    "Step",
    "Table",
    "bias_field",
    "blur",
    "brightness_add",
    "brightness_multiply",
    "channel_scale",
    "contrast",
    "exchanged",
    "gamma",
    "gibbs",
    "inverted_gamma",
    "low_resolution",
    "noise",
    "sharpen",
    "turning",
]


@dataclass(frozen=True)
class Step:
    """One operation that was drawn: what it does, along which axes, and how much of it."""

    what: str
    axes: tuple[int, ...]
    amount: float


@dataclass(frozen=True)
class Table:
    """The policy, as the tables of this file say it.

    Args:
        classes: of patches.
        cascades: cascade -> operation -> probability for each class.
        operations: operation -> what it does, axes, smallest and largest amount, opposite, place in the order.
        pairs: labels that are each other's mirror image.
        side: the axis from left to right.
    """

    classes: Sequence[str]
    cascades: dict[str, dict[str, tuple[float, ...]]]
    operations: dict[str, tuple[str, tuple[int, ...], float, float, str, int]]
    pairs: Sequence[tuple[int, int]] = ()
    side: int = 0

    def place(self, label: int) -> int:
        """The place among the classes of a patch whose centre has this label value; below 0 is background."""
        label = max(label, 0)
        if len(self.classes) == 1:
            return 0
        if tuple(self.classes) == ("background", "foreground"):
            return int(label != 0)
        if label >= len(self.classes):
            raise ValueError(f"the policy has the classes {', '.join(self.classes)}, and none for label {label}")
        return label

    def draw(self, place: int, uniform: Callable[[], float]) -> tuple[dict[str, str], list[Step]]:
        """An operation of every cascade, by name; and what to do, in order, without the identities.

        Args:
            place: of the class.
            uniform: gives numbers from 0 to 1.
        """
        names, steps = {}, []
        for cascade, rows in self.cascades.items():
            shares = np.cumsum([share[place] for share in rows.values()])
            last = min(int(np.searchsorted(shares, uniform() * shares[-1], side="right")), len(rows) - 1)
            names[cascade] = list(rows)[last]
            if names[cascade] in self.operations:
                what, axes, low, high, opposite, order = self.operations[names[cascade]]
                amount = low + uniform() * (high - low)
                if opposite != "none" and uniform() < 0.5:
                    amount = -amount if opposite == "negative" else 1 / amount
                steps.append((order, Step(what, axes, amount)))
        return names, [step for _, step in sorted(steps, key=lambda found: found[0])]

    def mirrored(self, steps: Sequence[Step]) -> bool:
        """Whether left and right change places and labels have to."""
        turns = sum(step.what == "flip" and self.side in step.axes for step in steps)
        return bool(self.pairs) and turns % 2 == 1


def exchanged(label: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """A map of label values with those of each pair exchanged.

    >>> exchanged(torch.tensor([0, 1, 2, 3]), [(1, 2)])
    tensor([0, 2, 1, 3])
    """
    result = label.clone()
    for a, b in pairs:
        result[label == a], result[label == b] = b, a
    return result


def turning(steps: Sequence[Step], dims: int) -> np.ndarray:
    """The matrix (dims, dims) of all zooms and rotations: from voxels of the result to those of the image, centred.

    Above 1 a scale shrinks the content. A positive angle turns the content of the plane (a, b) as ``numpy.rot90`` does,
    save for the plane (0, 2), which turns the other way round.

    >>> turning([Step("scale", (), 2.0), Step("rotate", (0, 1), 90.0)], 2).round(3) + 0.0
    array([[ 0.,  2.],
           [-2.,  0.]])
    """
    matrix = np.eye(dims)
    for step in steps:
        if step.what == "scale":
            matrix = matrix @ (np.eye(dims) * step.amount)
        elif step.what in ("rotate", "turn"):
            a, b = step.axes
            angle = np.radians(step.amount) * (-1 if step.axes == (0, 2) else 1)
            turn = np.eye(dims)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[a, b], turn[b, a] = np.sin(angle), -np.sin(angle)
            matrix = matrix @ turn
    return matrix


# What operations do to the values of images (B, C, ...), which are z-scores.


def _voxels(x: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def brightness_add(x: torch.Tensor, shift: float) -> torch.Tensor:
    """The same value is added everywhere."""
    return x + shift


def brightness_multiply(x: torch.Tensor, factor: float) -> torch.Tensor:
    """All values times ``factor``, about 0."""
    return x * factor


def contrast(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Values are stretched about the mean and clipped to the range."""
    axes = _voxels(x)
    mean, low, high = x.mean(axes, keepdim=True), x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return ((x - mean) * factor + mean).clamp(low, high)


def gamma(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of the values scaled to [0, 1]; mean and deviation are restored."""
    axes = _voxels(x)
    low = x.amin(axes, keepdim=True)
    span = (x.amax(axes, keepdim=True) - low).clamp(min=1e-7)
    y = ((x - low) / span).clamp(min=1e-7) ** exponent * span
    before, after = (v.var(axes, correction=0, keepdim=True) + 1e-12 for v in (x, y))
    return (y - y.mean(axes, keepdim=True)) * (before / after).sqrt() + x.mean(axes, keepdim=True)


def inverted_gamma(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """The same of the negated image, negated."""
    return -gamma(-x, exponent)


def noise(x: torch.Tensor, deviation: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Independent Gaussian noise in every voxel."""
    return x + torch.empty(x.shape).normal_(generator=generator).to(x) * deviation


def _kernels(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian, which ends at four sigmas, and its second derivative."""
    radius = int(4 * sigma + 0.5)
    k = torch.arange(-radius, radius + 1.0)
    bell = torch.exp(-k.square() / (2 * sigma**2))
    bell = bell / bell.sum()
    return bell, bell * (k.square() / sigma**2 - 1) / sigma**2


def _filtered(x: torch.Tensor, kernel: torch.Tensor, axis: int) -> torch.Tensor:
    """Along one axis; the image is mirrored at its border."""
    n, radius = x.shape[axis], len(kernel) // 2
    place = torch.arange(-radius, n + radius, device=x.device).remainder(2 * n)
    padded = x.index_select(axis, torch.minimum(place, 2 * n - 1 - place))
    return padded.unfold(axis, len(kernel), 1) @ kernel.to(x)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian of ``sigma`` voxels."""
    for axis in _voxels(x):
        x = _filtered(x, _kernels(sigma)[0], axis)
    return x


def sharpen(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The image minus its Laplacian of Gaussian, clipped to its range."""
    bell, second = _kernels(sigma)
    laplacian = torch.zeros_like(x)
    for axis in _voxels(x):
        part = x
        for other in _voxels(x):
            part = _filtered(part, second if other == axis else bell, other)
        laplacian = laplacian + part
    axes = _voxels(x)
    return (x - laplacian).clamp(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True))


def low_resolution(x: torch.Tensor, zoom: float) -> torch.Tensor:
    """Sampled linearly on a grid ``zoom`` times as fine, and brought back by the nearest."""
    size = [max(1, round(float(np.float32(zoom) * np.float32(n)))) for n in x.shape[2:]]
    coarse = F.interpolate(x, size, mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=False)
    return F.interpolate(coarse, tuple(x.shape[2:]), mode="nearest-exact")


def gibbs(x: torch.Tensor, kept: float) -> torch.Tensor:
    """Only the fraction ``kept`` of the spatial frequencies along each axis remains."""
    spectrum = torch.fft.fftn(x, dim=_voxels(x))
    for axis in _voxels(x):
        shape = [-1 if a == axis else 1 for a in range(x.ndim)]
        spectrum = spectrum * (torch.fft.fftfreq(x.shape[axis], device=x.device).abs() <= kept / 2 + 1e-6).view(shape)
    return torch.fft.ifftn(spectrum, dim=_voxels(x)).real


def bias_field(x: torch.Tensor, strength: float) -> torch.Tensor:
    """A smooth field of logarithm up to ``strength`` multiplies the values, measured from the darkest."""
    points = torch.randn(len(x), 1, *[4] * (x.ndim - 2)).to(x)
    mode = "trilinear" if x.ndim == 5 else "bilinear"
    field = F.interpolate(points, tuple(x.shape[2:]), mode=mode, align_corners=True)
    field = field / field.abs().amax(tuple(range(1, x.ndim)), keepdim=True)
    return x + (x - x.amin(_voxels(x), keepdim=True)) * torch.expm1(strength * field)


def channel_scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Every channel times its own factor, drawn log-uniformly between ``1 / factor`` and ``factor``."""
    exponents = torch.rand(x.shape[:2]).to(x) * 2 - 1
    return x * (factor**exponents).view(*x.shape[:2], *[1] * (x.ndim - 2))


VALUES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "bias_field": bias_field, "blur": blur, "brightness_add": brightness_add,
    "brightness_multiply": brightness_multiply, "channel_scale": channel_scale, "contrast": contrast, "gamma": gamma,
    "gibbs": gibbs, "inverted_gamma": inverted_gamma, "low_resolution": low_resolution, "noise": noise,
    "sharpen": sharpen,
}  # fmt: skip
