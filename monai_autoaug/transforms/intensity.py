# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations on the value of every voxel: brightness, contrast, gamma, noise, bias field, scale of each channel.

Images are (B, C, D, H, W), or (B, C, H, W); a magnitude is (B,), one number a sample, and stays a tensor. All are
computed in at least float32 and returned in the image's dtype. Values are z-scores, so nothing assumes them positive.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from monai_autoaug.transforms.geometry import upsample_field

__all__ = [
    "Reference",
    "add",
    "add_noise",
    "at_least_float32",
    "bias_field",
    "contrast",
    "gamma",
    "inverted_gamma",
    "multiply",
    "per_sample",
    "random_like",
    "scale_channels",
]


class Reference:
    """What "darkest", "brightest" and "mean" are for an operation: intensities of the whole volume, or figures of them.

    A patch is a part of a volume, and its own extremes depend on where it was cut. Give either ``values`` or the four
    figures; without a reference an operation takes the sample itself.

    Args:
        values: (B, C, ...) intensities of the un-augmented volume, for example every 4th voxel along each axis.
        minimum: (B, C).
        maximum: (B, C).
        mean: (B, C).
        std: (B, C), uncorrected (divided by the number of voxels).

    >>> Reference(torch.arange(4.0).view(1, 1, 4)).mean
    tensor([[1.5000]])
    """

    def __init__(
        self,
        values: Tensor | None = None,
        *,
        minimum: Tensor | None = None,
        maximum: Tensor | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        self.values = None if values is None else at_least_float32(values)
        given = {"minimum": minimum, "maximum": maximum, "mean": mean, "std": std}
        if (values is None) != all(v is not None for v in given.values()):
            raise ValueError("Reference takes either values or all of minimum, maximum, mean and std")
        self._given = {k: at_least_float32(v) for k, v in given.items() if v is not None}

    def _figure(self, name: str) -> Tensor:
        if self.values is None:
            return self._given[name]
        flat = self.values.flatten(2)
        if name == "std":
            return (flat.var(-1, correction=0) + 1e-12).sqrt()  # a constant image has a gradient too
        if name == "mean":
            return flat.mean(-1)
        return flat.amin(-1) if name == "minimum" else flat.amax(-1)

    @cached_property
    def minimum(self) -> Tensor:
        """(B, C)."""
        return self._figure("minimum")

    @cached_property
    def maximum(self) -> Tensor:
        """(B, C)."""
        return self._figure("maximum")

    @cached_property
    def mean(self) -> Tensor:
        """(B, C)."""
        return self._figure("mean")

    @cached_property
    def std(self) -> Tensor:
        """(B, C)."""
        return self._figure("std")

    def negative(self) -> Reference:
        """The reference of the negated image.

        >>> Reference(torch.arange(4.0).view(1, 1, 4)).negative().minimum
        tensor([[-3.]])
        """
        if self.values is not None:
            return Reference(-self.values)
        return Reference(minimum=-self.maximum, maximum=-self.minimum, mean=-self.mean, std=self.std)

    def split(self) -> list[Reference]:
        """One reference for each sample."""
        if self.values is not None:
            return [Reference(v) for v in self.values.split(1)]
        rows = zip(*(self._given[k].split(1) for k in ("minimum", "maximum", "mean", "std")), strict=True)
        return [Reference(minimum=a, maximum=b, mean=c, std=d) for a, b, c, d in rows]

    @staticmethod
    def join(references: list[Reference]) -> Reference:
        """The opposite of `split`."""
        if references[0].values is not None:
            return Reference(torch.cat([r.values for r in references if r.values is not None]))
        names = ("minimum", "maximum", "mean", "std")
        return Reference(**{k: torch.cat([getattr(r, k) for r in references]) for k in names})


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 if it is, without MONAI's metadata.

    >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    x = x.as_subclass(Tensor)
    return x if x.dtype == torch.float64 else x.float()


def per_sample(figure: Tensor, image: Tensor) -> Tensor:
    """A figure (B,) or (B, C) in the shape that broadcasts against the image.

    >>> per_sample(torch.zeros(2), torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2, 1, 1, 1])
    """
    return figure.to(at_least_float32(image)).view(*figure.shape, *[1] * (image.ndim - figure.ndim))


def add(image: Tensor, shift: Tensor) -> Tensor:
    """Brightness: the same value is added everywhere.

    Args:
        image: (B, C, D, H, W).
        shift: (B,) in units of the image (z-scores).

    >>> add(torch.zeros(1, 1, 2, 2, 2), torch.tensor([0.5])).unique()
    tensor([0.5000])
    """
    return (at_least_float32(image) + per_sample(shift, image)).to(image.dtype)


def multiply(image: Tensor, factor: Tensor) -> Tensor:
    """Brightness: all values times ``factor`` (B,), about 0, which is the mean of a z-scored volume.

    >>> multiply(torch.ones(1, 1, 2, 2, 2), torch.tensor([1.5])).unique()
    tensor([1.5000])
    """
    return (at_least_float32(image) * per_sample(factor, image)).to(image.dtype)


def contrast(image: Tensor, factor: Tensor, reference: Reference | None = None) -> Tensor:
    """Stretch values about the reference's mean by ``factor`` (B,), clipped to the reference's range.

    >>> contrast(torch.tensor([0.0, 1.0, 2.0, 5.0]).view(1, 1, 1, 1, 4), torch.tensor([2.0])).flatten().tolist()
    [0.0, 0.0, 2.0, 5.0]
    """
    x = at_least_float32(image)
    reference = reference or Reference(x)
    mean = per_sample(reference.mean, x)
    # mean + (x - mean) f with one product, and exactly x at f = 1
    stretched = torch.addcmul(x, x - mean, per_sample(factor, x) - 1)
    return stretched.clamp(per_sample(reference.minimum, x), per_sample(reference.maximum, x)).to(image.dtype)


def gamma(image: Tensor, exponent: Tensor, reference: Reference | None = None, *, compat: bool = False) -> Tensor:
    """A power of the values scaled to [0, 1] by the range of sample and reference, then moved to the latter's moments.

    With a reference of four figures only, the sample keeps its own mean and deviation, as the volume's after the power
    are not known.

    Args:
        image: (B, C, D, H, W).
        exponent: (B,), above 0; 1 changes nothing.
        reference: of the volume; None: the sample itself.
        compat: as the paper's code, which adds the mean before it rescales the deviation.

    >>> x = torch.linspace(-2, 2, 8).view(1, 1, 2, 2, 2)
    >>> torch.allclose(gamma(x, torch.tensor([1.0])), x, atol=1e-6)
    True
    """
    x = at_least_float32(image)
    own = Reference(x)
    before = own if reference is None else reference
    # a reference of every 4th voxel may miss the sample's extremes
    low = per_sample(torch.minimum(before.minimum.to(x), own.minimum), x)
    span = (per_sample(torch.maximum(before.maximum.to(x), own.maximum), x) - low).clamp(min=1e-7)

    def power(values: Tensor) -> Tensor:
        # the floor keeps the derivative of the power finite at the darkest voxel
        return ((values - low) / span).clamp(min=1e-7).pow(per_sample(exponent, x)) * span

    y = power(x)
    if reference is None:
        after = Reference(y)
    elif reference.values is None:
        before, after = own, Reference(y)
    else:
        flat = reference.values.flatten(2)
        after = Reference(power(flat.view(*flat.shape, *[1] * (x.ndim - 3))))
    # the power was taken without its offset ``low``, which cancels here
    centred, mean, ratio = (
        y - per_sample(after.mean, x),
        per_sample(before.mean, x),
        per_sample(before.std / after.std, x),
    )
    return ((centred + mean) * ratio if compat else centred * ratio + mean).to(image.dtype)


def inverted_gamma(
    image: Tensor, exponent: Tensor, reference: Reference | None = None, *, compat: bool = False
) -> Tensor:
    """`gamma` of the negated image, negated: it bends the bright end where `gamma` bends the dark one.

    >>> x = torch.linspace(-2, 2, 8).view(1, 1, 2, 2, 2)
    >>> torch.allclose(inverted_gamma(x, torch.tensor([1.5])), -gamma(-x, torch.tensor([1.5])))
    True
    """
    reference = None if reference is None else reference.negative()
    return -gamma(-image, exponent, reference, compat=compat)


def random_like(
    image: Tensor, shape: tuple[int, ...], generator: torch.Generator | None, *, normal: bool = True
) -> Tensor:
    """Standard normal or uniform [-1, 1) numbers, drawn on the generator's device, for ``image``'s.

    >>> random_like(torch.zeros(1), (2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    device = image.device if generator is None else generator.device
    drawn = torch.empty(shape, device=device)
    drawn = drawn.normal_(generator=generator) if normal else drawn.uniform_(-1, 1, generator=generator)
    return drawn.to(at_least_float32(image))


def add_noise(
    image: Tensor, std: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None
) -> Tensor:
    """Independent Gaussian noise in every voxel.

    Args:
        image: (B, C, D, H, W).
        std: (B,) in units of the image (z-scores).
        generator: random numbers come from it; None: torch's global one.
        noise: of unit deviation, in the image's shape, in place of a draw.

    >>> x = torch.zeros(1, 1, 2, 2, 2)
    >>> torch.equal(add_noise(x, torch.tensor([0.0])), x)
    True
    """
    x = at_least_float32(image)
    unit = random_like(x, tuple(x.shape), generator) if noise is None else noise.to(x)
    return torch.addcmul(x, unit, per_sample(std, x)).to(image.dtype)


def bias_field(image: Tensor, strength: Tensor, generator: torch.Generator | None = None, *, points: int = 4) -> Tensor:
    """A smooth multiplicative field, as MRI's receive coils leave it; values are measured from the darkest.

    Args:
        image: (B, C, D, H, W).
        strength: (B,) largest logarithm of the field, 0 changes nothing.
        generator: random numbers come from it; None: torch's global one.
        points: control points along each axis.

    >>> x = torch.ones(1, 1, 8, 8, 8)
    >>> torch.equal(bias_field(x, torch.tensor([0.3])), x)  # all is darkest
    True
    """
    x = at_least_float32(image)
    spread = tuple(range(1, x.ndim))
    field = upsample_field(random_like(x, (len(x), 1, *[points] * (x.ndim - 2)), generator), tuple(x.shape[2:]))
    field = field / field.abs().amax(dim=spread, keepdim=True)
    low = per_sample(Reference(x).minimum, x)
    return torch.addcmul(x, x - low, torch.expm1(per_sample(strength, x) * field)).to(image.dtype)


def scale_channels(image: Tensor, factor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Every channel times its own factor, drawn log-uniformly between ``1 / factor`` and ``factor`` (B,).

    >>> scale_channels(torch.ones(1, 2, 2, 2, 2), torch.tensor([1.0])).unique()
    tensor([1.])
    """
    x = at_least_float32(image)
    exponent = random_like(x, tuple(x.shape[:2]), generator, normal=False)
    return (x * per_sample(factor.to(x)[:, None] ** exponent, x)).to(image.dtype)
