# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Brightness, contrast, gamma and noise with a learnable amount for each sample: what paper 003's colours are here.

Hue and saturation mean nothing in a volume of one channel. What the paper draws for an image is one amount an
operation; so it is here, for all channels alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.transforms import intensity

__all__ = ["TONES", "Tone"]

TONES = ("brightness", "contrast", "gamma", "noise")


@dataclass(frozen=True)
class Tone:
    """Changes of the values of B images; with amounts of 0 it changes nothing.

    Args:
        amount: (B, 4) brightness that is added, in standard deviations; contrast, the logarithm of the factor about the
            image's mean (with ``plain`` the factor less 1); gamma, the logarithm of the exponent; noise, its deviation
            in standard deviations.
        seed: (B,) int64 of the noise's own random numbers; None: torch's global ones.
        order: (B, 4) int64 places in ``TONES`` in the order in which a sample goes through them; None: as they stand.
        plain: contrast is ``1 + amount`` rather than its exponential, as in paper 003's code.

    >>> x = torch.randn(1, 1, 4, 4, 4)
    >>> bool(torch.allclose(Tone(torch.zeros(1, 4))(x), x, atol=1e-6))
    True
    """

    amount: Tensor
    seed: Tensor | None = None
    order: Tensor | None = None
    plain: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """Change ``image`` (B, C, D, H, W); differentiable in image and amounts, in at least float32."""
        x = intensity.at_least_float32(image)
        if self.order is None:
            for which in range(len(TONES)):
                x = self._apply(which, x, slice(None))
            return x.to(image.dtype)
        rows = []
        for sample, places in enumerate(self.order.tolist()):
            row = slice(sample, sample + 1)
            one = x[row]
            for which in places:
                one = self._apply(which, one, row)
            rows.append(one)
        return torch.cat(rows).to(image.dtype)

    def _apply(self, which: int, x: Tensor, rows: slice) -> Tensor:
        """One operation on the samples that ``rows`` selects."""
        amount = self.amount[rows, which].to(x)
        name = TONES[which]
        if name == "brightness":
            return intensity.add(x, amount)
        if name == "contrast":
            # no clipping to the image's range: it would take the gradient away where it acts
            factor = amount if self.plain else torch.expm1(amount)
            mean = x.flatten(2).mean(-1).view(*x.shape[:2], *[1] * (x.ndim - 2))
            return torch.addcmul(x, x - mean, intensity.per_sample(factor, x))
        if name == "gamma":
            return intensity.gamma(x, amount.exp())
        return intensity.add_noise(x, amount, noise=self._noise(x, rows))

    def _noise(self, x: Tensor, rows: slice) -> Tensor:
        """Unit noise of each sample, from its own seed: the same each time, whatever else is in the batch."""
        if self.seed is None:
            return intensity.random_like(x, tuple(x.shape), None)
        drawn = []
        for seed in self.seed[rows].tolist():
            generator = torch.Generator(x.device).manual_seed(int(seed))
            drawn.append(intensity.random_like(x, (1, *x.shape[1:]), generator))
        return torch.cat(drawn)

    def rows(self, index: slice | Tensor) -> Tone:
        """The samples that ``index`` selects."""
        drawn = {"seed": self.seed, "order": self.order}
        chosen: dict[str, Any] = {n: None if t is None else t[index] for n, t in drawn.items()}
        return replace(self, amount=self.amount[index], **chosen)

    def to(self, *args: torch.device | torch.dtype | str) -> Tone:
        """Move the amounts; a dtype changes these alone."""
        every: list[Any] = list(args)
        places: list[Any] = [a for a in args if not isinstance(a, torch.dtype)]
        drawn = {"seed": self.seed, "order": self.order}
        chosen: dict[str, Any] = {n: None if t is None else t.to(*places) for n, t in drawn.items()}
        return replace(self, amount=self.amount.to(*every), **chosen)

    def magnitude(self) -> dict[str, Tensor]:
        """Size of each amount, (B,) each, detached."""
        sizes = self.amount.detach().float().abs()
        return {name: sizes[:, place] for place, name in enumerate(TONES)}
