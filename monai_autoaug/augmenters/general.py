# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""G of paper 004: a spatial transformer, then a U-Net that changes what the transformed image looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_autoaug.augmenters.affine import AffineAugmenter
from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.general_parts import NoiseUNet, PaperEncoder
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.networks.spatial_transformer import voxel_matrix
from monai_autoaug.precision import float32_region

__all__ = ["GeneralAugmenter"]


class GeneralAugmenter(Augmenter):
    """``G(x, z) = DEC(ENC(T(x, ENC(x, z)), z))``: an affine map of the image, then a U-Net; the label follows the map.

    By default both are bounded and the identity when fresh: the matrix is that of `AffineAugmenter` (with
    ``base="identity"``), and the U-Net adds ``additive * tanh`` of its output at half the resolution to the mapped
    image, so that it can't move anatomy away from its label. ``fidelity="paper"`` is the paper's form: nothing bounds
    the matrix, and the U-Net's output at full resolution is the image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        fidelity: "default" or "paper".
        noise_size: length of the noise vector that both parts see (100 in the paper).
        width: channels of the first level.
        spatial: False leaves the spatial transformer out.
        appearance: False leaves the U-Net out.
        rotation: see `AffineAugmenter`; this and the following bounds have no meaning with ``fidelity="paper"``.
        log_scale: likewise.
        shear: likewise.
        translation: likewise.
        additive: bound of what the U-Net adds, in standard deviations of the normalised image, 0 to 100.

    Raises:
        ConfigError: both parts are left out, ``fidelity`` is unknown, or a bound is no number or out of its range.

    Source: Mounsaveng et al. 2019, section 3, Eq. 1; bounds and residual are ours.

    >>> augmenter = GeneralAugmenter(3, 1)
    >>> t = augmenter(torch.zeros(2, 1, 16, 16, 16))
    >>> bool((t.apply(torch.ones(2, 1, 16, 16, 16)) == 1).all())  # fresh: the identity
    True
    """

    kind = "general"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {**AffineAugmenter.limits, "additive": (0.0, 100.0)}

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        *,
        fidelity: str = "default",
        noise_size: int = 100,
        width: int = 16,
        spatial: bool = True,
        appearance: bool = True,
        rotation: float = 15.0,
        log_scale: float = 0.2,
        shear: float = 0.1,
        translation: float = 0.0625,
        additive: float = 0.5,
    ) -> None:
        if fidelity not in ("default", "paper"):
            raise ConfigError(f"fidelity must be 'default' or 'paper', got {fidelity!r}")
        if not spatial and not appearance:
            raise ConfigError("an augmenter without spatial transformer and without U-Net does nothing; leave one in")
        affine: dict[str, Any] = {
            "rotation": rotation, "log_scale": log_scale, "shear": shear, "translation": translation
        }  # fmt: skip
        self.check(**affine, additive=additive)
        super().__init__(spatial_dims, in_channels, noise_size=noise_size)
        self.fidelity, self.width, self.bounds = fidelity, width, affine | {"additive": additive}
        paper = fidelity == "paper"
        self.affine: AffineAugmenter | None = None
        self.encoder: PaperEncoder | None = None
        self.unet: NoiseUNet | None = None
        if spatial and paper:
            self.encoder = PaperEncoder(spatial_dims, in_channels, noise_size=noise_size, width=width)
        elif spatial:
            self.affine = AffineAugmenter(
                spatial_dims, in_channels, base="identity", noise_size=noise_size, width=width, **affine
            )
        if appearance:
            self.unet = NoiseUNet(spatial_dims, in_channels, noise_size=noise_size, width=width, paper=paper)

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of "affine" and "appearance" it has."""
        spatial = self.affine is not None or self.encoder is not None
        return ("affine",) * spatial + ("appearance",) * (self.unet is not None)

    def forward(self, image: Tensor, noise: Tensor | None = None, *, spacing: Tensor | None = None) -> Transformation:
        """See `Augmenter.forward`."""
        noise = self.sample_noise(len(image)) if noise is None else noise
        shape = tuple(image.shape[2:])
        map_ = Transformation(shape, matrix=self._matrix(image, noise, spacing), normalised=self.fidelity == "paper")
        if self.unet is None:
            return map_
        moved = map_.apply(image)
        out = self.unet(moved, noise)
        with float32_region(out.device):
            out = out if out.dtype == torch.float64 else out.float()
            added = out - moved if self.fidelity == "paper" else self.bounds["additive"] * out.tanh()
            return Transformation(shape, matrix=map_.matrix, additive=self.strength * added, normalised=map_.normalised)

    def _matrix(self, image: Tensor, noise: Tensor, spacing: Tensor | None) -> Tensor | None:
        """The affine map of each sample in centred voxels, or None without spatial transformer."""
        if self.affine is not None:
            self.affine.strength = self.strength
            move: Transformation = self.affine(image, noise, spacing=spacing)
            return move.matrix
        if self.encoder is None:
            return None
        matrix = voxel_matrix(self.encoder(image, noise), image.shape[2:])
        still = torch.eye(self.spatial_dims, self.spatial_dims + 1).to(matrix)
        return still + self.strength * (matrix - still)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "spatial_dims": self.spatial_dims, "in_channels": self.in_channels, "fidelity": self.fidelity,
            "noise_size": self.noise_size, "width": self.width, "spatial": "affine" in self.parts,
            "appearance": "appearance" in self.parts, **self.bounds,
        }  # fmt: skip
