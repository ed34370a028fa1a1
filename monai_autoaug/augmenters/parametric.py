# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A_theta of paper 003: a small network from noise to the parameters of transformations, which looks at no image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.tone import TONES, Tone
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.networks.spatial_transformer import voxel_matrix
from monai_autoaug.precision import float32_region
from monai_autoaug.transforms.geometry import affine_matrix

__all__ = ["ParametricAugmenter", "Size", "Transformations"]

Transformations = Literal["full", "affine", "translation", "intensity"]
Size = Literal["small", "medium", "large"]

_WIDE_INPUT = 100  # of the medium and the large network
_HIDDEN: dict[str, tuple[int, ...]] = {"medium": (64, 32), "large": (512, 1024, 124, 512)}
_DROPOUT = 0.2  # of the released code
_DRAWS = 1024  # by which a fresh network is centred


class ParametricAugmenter(Augmenter):
    """Noise -> parameters of an affine map and of brightness, contrast, gamma and noise.

    With n parameters the small network has n inputs, layers of n and 10 n neurons and n outputs; the medium one 100
    inputs and layers of 64 and 32, the large one 100 inputs and layers of 512, 1024, 124 and 512. Its input is uniform
    in (-1, 1).

    By default parameters are rotation, logarithmic scale, shear and translation (12 in 3D, 6 in 2D), the latter alone
    (3, 2), or the four of `Tone`, each ``bound * tanh``, so that no map is folded or mirrored. A fresh network is
    centred: over noise its outputs have mean 0 and deviation ``start``. A usual start would be one constant
    transformation rather than a distribution, and one of exactly 0 would be the identity, where a spread has no
    gradient.

    ``fidelity="paper"`` has the paper's forms, and those of its code where the paper is silent: the matrix is the
    identity plus the network's output, in [-1, 1] coordinates and unbounded (any determinant); with "full" and
    "translation" outputs go through tanh; the four operations come in random order with amounts of up to 1; 0 lies
    outside the image; dropout of 0.2; the usual start.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels; all of them change alike.
        transformations: "full", "affine", "translation" or "intensity".
        size: "small", "medium" or "large".
        fidelity: "default" or "paper".
        start: deviation of a fresh network's outputs, in bounds, above 0 and up to 2; None: 0.1, or as torch starts
            with ``fidelity="paper"``.
        rotation: bound of each axis' rotation in degree, 0 to 180.
        log_scale: bound of each axis' logarithmic scale, 0 to 2.
        shear: bound of each shear, 0 to 1.
        translation: bound as a share of the volume's size along each axis, 0 to 1.
        brightness: bound of what is added, in standard deviations, 0 to 5.
        contrast: bound of the factor's logarithm, 0 to 2.
        gamma: bound of the exponent's logarithm, 0 to 2.
        noise: bound of the noise's deviation, in standard deviations, 0 to 5.

    Raises:
        ConfigError: an unknown word, or a number out of its range.

    Source: paper 003, sections 3.2 and 4.2; bounds, start and gamma and noise in place of hue and saturation are ours.

    >>> augmenter = ParametricAugmenter(3, 1, transformations="translation")
    >>> t = augmenter(torch.zeros(2, 1, 16, 16, 16))
    >>> augmenter.noise_size, t.apply(torch.ones(2, 1, 16, 16, 16)).shape
    (3, torch.Size([2, 1, 16, 16, 16]))
    """

    kind = "parametric"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "rotation": (0.0, 180.0), "log_scale": (0.0, 2.0), "shear": (0.0, 1.0), "translation": (0.0, 1.0),
        "brightness": (0.0, 5.0), "contrast": (0.0, 2.0), "gamma": (0.0, 2.0), "noise": (0.0, 5.0),
    }  # fmt: skip

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        *,
        transformations: str = "full",
        size: str = "small",
        fidelity: str = "default",
        start: float | None = None,
        rotation: float = 15.0,
        log_scale: float = 0.2,
        shear: float = 0.1,
        translation: float = 0.0625,
        brightness: float = 0.3,
        contrast: float = 0.25,
        gamma: float = 0.35,
        noise: float = 0.2,
    ) -> None:
        for name, word, known in (
            ("transformations", transformations, get_args(Transformations)), ("size", size, get_args(Size)),
            ("fidelity", fidelity, ("default", "paper")),
        ):  # fmt: skip
            if word not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {word!r}")
        bounds = {"rotation": rotation, "log_scale": log_scale, "shear": shear, "translation": translation,
                  "brightness": brightness, "contrast": contrast, "gamma": gamma, "noise": noise}  # fmt: skip
        self.check(**bounds)
        if start is not None and not 0 < start <= 2:
            raise ConfigError(f"start must be above 0 and at most 2, got {start}")
        paper, d = fidelity == "paper", spatial_dims
        turns = 3 if d == 3 else 1
        maps = {"full": d * (d + 1), "affine": d * (d + 1), "translation": d, "intensity": 0}[transformations]
        self.split = (turns, d, turns, d) if maps > d else (0, 0, 0, maps)
        parameters = maps + (len(TONES) if transformations in ("full", "intensity") else 0)
        noise_size = parameters if size == "small" else _WIDE_INPUT
        hidden = _HIDDEN.get(size, (parameters, 10 * parameters))
        self.masked = sum(hidden) if paper else 0  # neurons that dropout may leave out
        # one number more: of the noise's seed; with the paper's forms four: of the order
        toned = parameters > maps
        super().__init__(
            spatial_dims, in_channels, noise_size=noise_size,
            draws=self.masked + toned * (1 + (len(TONES) if paper else 0)),
        )  # fmt: skip
        self.transformations, self.size, self.fidelity = transformations, size, fidelity
        self.start = 0.1 if start is None and not paper else start
        self.bounds, self.maps, self.toned = bounds, maps, toned
        self.squashed = not paper or transformations != "affine"
        widths = (noise_size, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(widths[-1], parameters)
        self._listeners: list[Callable[[Tensor], object]] = []
        if self.start is not None:
            self._centre(self.start)

    @torch.no_grad()
    def _centre(self, deviation: float) -> None:
        """Outputs of mean 0 and this deviation over noise."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(_DRAWS, self.noise_size + self.draws, generator=generator)
        raw = self.raw(z, keep_all=True)
        scale = deviation / raw.std(0).clamp(min=1e-6)
        self.head.bias.sub_(raw.mean(0)).mul_(scale)
        self.head.weight.mul_(scale[:, None])

    def raw(self, noise: Tensor, *, keep_all: bool | None = None) -> Tensor:
        """Noise (B, noise_size + draws) -> outputs of the network (B, n), before anything bounds them.

        Args:
            noise: from `sample_noise`; dropout's masks are in it, so that the same noise gives the same output.
            keep_all: without dropout; None: unless it trains.
        """
        masks = noise[:, self.noise_size : self.noise_size + self.masked]
        plain = not self.training if keep_all is None else keep_all
        x = _uniform(noise[:, : self.noise_size])
        for layer in self.hidden:
            x = layer(x).relu()
            if self.masked:
                own, masks = masks.split((x.shape[1], masks.shape[1] - x.shape[1]), dim=1)
                if not plain:
                    x = x * (_uniform(own) > 2 * _DROPOUT - 1).to(x) / (1 - _DROPOUT)
        out: Tensor = self.head(x)
        return out

    def forward(self, image: Tensor, noise: Tensor | None = None, *, spacing: Tensor | None = None) -> Transformation:
        """Predict one transformation a sample, from the noise alone; of the image its size counts."""
        noise = self.sample_noise(len(image)) if noise is None else noise
        shape = tuple(image.shape[2:])
        with float32_region(noise.device):
            raw = self.raw(noise.to(self.head.weight.dtype))
            unit = raw.tanh() if self.squashed else raw
            for listener in self._listeners:
                listener(unit.detach())
        return self.decode(self.strength * unit, noise, shape, spacing=spacing)

    def decode(
        self, unit: Tensor, noise: Tensor, shape: tuple[int, ...], *, spacing: Tensor | None = None
    ) -> Transformation:
        """Parameters (B, n) in bounds -> transformations of volumes of size ``shape``.

        Args:
            unit: the map's parameters, then the four amounts.
            noise: from `sample_noise`; what the network doesn't see of it decides on voxel noise and order.
            shape: (D, H, W).
            spacing: see `forward`.
        """
        with float32_region(noise.device):
            maps, amounts = unit.split((self.maps, unit.shape[1] - self.maps), dim=1)
            matrix = self._matrix(maps, shape, spacing) if self.maps else None
            tone = self._tone(amounts, noise[:, self.noise_size + self.masked :]) if self.toned else None
        return Transformation(
            shape, matrix=matrix, tone=tone, normalised=self.fidelity == "paper",
            padding="zero" if self.fidelity == "paper" else "minimum",
        )  # fmt: skip

    def _matrix(self, unit: Tensor, shape: Sequence[int], spacing: Tensor | None) -> Tensor:
        """Parameters of the map -> (B, d, d + 1) in centred voxels."""
        d, n = len(shape), len(unit)
        if self.fidelity == "paper":
            added = unit.view(n, d, -1)
            if self.maps == d:
                added = torch.cat([unit.new_zeros(n, d, d), added], dim=2)
            return voxel_matrix(torch.eye(d, d + 1).to(unit) + added, shape)
        turn, scale, shear, shift = unit.split(self.split, dim=1)
        if self.maps == d:
            turn = shear = unit.new_zeros(n, 3 if d == 3 else 1)
            scale = unit.new_zeros(n, d)
        size = torch.tensor([float(s) for s in shape]).to(unit)
        return affine_matrix(
            turn * math.radians(self.bounds["rotation"]), scale * self.bounds["log_scale"],
            shear * self.bounds["shear"], shift * self.bounds["translation"] * size, spacing,
        )  # fmt: skip

    def _tone(self, unit: Tensor, draws: Tensor) -> Tone:
        """Amounts of the four operations; a draw's bits are the seed of a sample's noise, others sort to its order."""
        if self.fidelity == "paper":
            return Tone(unit, _seeds(draws[:, 0]), draws[:, 1:].argsort(1), plain=True)
        bounds = torch.tensor([self.bounds[name] for name in TONES]).to(unit)
        return Tone(unit * bounds, _seeds(draws[:, 0]))

    def register_squash_listener(self, listener: Callable[[Tensor], object]) -> Callable[[], None]:
        """Tell ``listener`` the parameters (B, n) of every forward, in bounds; returns what takes it off again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "spatial_dims": self.spatial_dims, "in_channels": self.in_channels, "size": self.size,
            "transformations": self.transformations, "fidelity": self.fidelity, "start": self.start,
        } | self.bounds  # fmt: skip


def _uniform(z: Tensor) -> Tensor:
    """Uniform in (-1, 1), from standard normal."""
    return torch.erf(z / math.sqrt(2))


def _seeds(z: Tensor) -> Tensor:
    """One whole number a sample from the bits of a normal one, (B,) int64."""
    return z.detach().float().contiguous().view(torch.int32).long().abs()
