# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""DeepMedic: parallel pathways that look at the image at several resolutions, with no pooling inside any of them.

Where a pathway of factor f looks: its input is averaged over blocks of f voxels along each axis, and each feature it
computes belongs to one block. Blocks are centred on the output, so that the features of all pathways lie on each other
to within half a block; the first releases aligned them at their corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError

__all__ = ["DeepMedic"]

_KERNEL = 3
_Named = str | tuple[str, dict[str, Any]]  # a layer as MONAI names it


class DeepMedic(nn.Module):
    """A segmentation network of pathways at several resolutions, joined voxel by voxel; returns logits.

    The defaults are the three pathways of paper 002, 1.0 million parameters (the two of the article have 0.7 million
    with ``fc_features=(150, 150)`` and ``down_factors=(1, 3)``). Every layer is norm, activation, convolution, the very
    first one a convolution alone. What a pair of layers is given is added to what it returns, as in DeepMedic 0.7 and
    later, but for the first pair, which is given the image. The kernels that join the pathways are 1 voxel wide, as in
    the article; paper 002's own code has 3 in the first of them.

    With "valid" convolutions the image must be larger than the output by ``margin`` voxels on each side: for three
    pathways 113 voxels for an output of 29, of which the pathway of factor 1 uses the central 45, and the one of
    factor 5 all. With ``down_factors=(1,)`` 45 voxels become 29.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes.
        features: channels of each layer of a pathway; all layers have kernels of 3.
        fc_features: channels of the hidden layers that join the pathways, kernels of 1; may be empty.
        down_factors: one pathway for each; by how much its input is smaller than the image, along each axis.
        dropout: probability in [0, 1), before every joining layer but the first, and before the classification.
        norm: MONAI's name of the norm, or (name, arguments); "" for none.
        act: MONAI's name of the activation, or (name, arguments).
        padding: "same": the output is as large as the image, convolutions see zeros outside of it; "valid": see above.
        upsample: how features of low resolution come to the image's: "nearest" (the paper's) or "linear".

    Raises:
        ConfigError: an option outside its range; in use, an image that is too small.

    Source: Kamnitsas et al. 2017, section 2; weights as He et al. 2015.

    >>> DeepMedic(2, 1, 3, features=(4, 4, 4, 4), fc_features=(8,)).eval()(torch.zeros(1, 1, 20, 31)).shape
    torch.Size([1, 3, 20, 31])
    >>> network = DeepMedic(3, 1, 2, padding="valid")
    >>> network.receptive_field, network.margin, network.input_size(29)
    (85, 42, 113)
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, *,
        features: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50), fc_features: Sequence[int] = (250, 250),
        down_factors: Sequence[int] = (1, 3, 5), dropout: float = 0.5, norm: _Named = "batch",
        act: _Named = "prelu", padding: str = "same", upsample: str = "nearest",
    ) -> None:  # fmt: skip
        super().__init__()
        _check(spatial_dims, features, fc_features, down_factors, dropout, padding, upsample)
        self.spatial_dims, self.padding, self.upsample = spatial_dims, padding, upsample
        self.down_factors, self.reach = tuple(down_factors), len(features) * (_KERNEL // 2)
        pad = _KERNEL // 2 if padding == "same" else 0
        self.pathways = nn.ModuleList(
            _Layers(spatial_dims, (in_channels, *features), _KERNEL, pad, norm, act, from_image=True)
            for _ in self.down_factors
        )
        joined = features[-1] * len(self.down_factors)
        self.joining = _Layers(spatial_dims, (joined, *fc_features), 1, 0, norm, act, dropout=dropout)
        last = fc_features[-1] if fc_features else joined
        self.classification = _layer(spatial_dims, last, out_channels, 1, 0, norm, act, dropout)
        self.apply(_initialise)

    @property
    def receptive_field(self) -> int:
        """Along each axis, the number of voxels of the image on which an output voxel depends (linear: at most).

        >>> DeepMedic(3, 1, 2, down_factors=(1,)).receptive_field
        17
        """
        return max(f * (1 + 2 * self.reach + self._neighbours(f)) for f in self.down_factors)

    @property
    def margin(self) -> int:
        """By how many voxels an image must be larger than the output on each side, with valid convolutions."""
        return max(f * (self.reach + self._neighbours(f)) + f // 2 for f in self.down_factors)

    def input_size(self, output_size: int) -> int:
        """The size of the image along an axis that has an output of ``output_size`` voxels.

        >>> DeepMedic(3, 1, 2, down_factors=(1,), padding="valid").input_size(29)
        45
        """
        return output_size + (2 * self.margin if self.padding == "valid" else 0)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, out_channels, D, H, W), each axis smaller by 2 margins if "valid"."""
        inset = self._inset(image)
        size = [n - 2 * inset for n in image.shape[2:]]
        seen = [self._see(image, p, f, inset, size) for p, f in zip(self.pathways, self.down_factors, strict=True)]
        logits: Tensor = self.classification(self.joining(torch.cat(seen, 1)))
        return logits

    def _see(self, image: Tensor, pathway: nn.Module, factor: int, inset: int, size: list[int]) -> Tensor:
        """The features of one pathway for the ``size`` voxels that begin ``inset`` voxels inside the image."""
        halo = self._neighbours(factor) if self.padding == "valid" else 0  # blocks that interpolation needs outside
        context = self.reach if self.padding == "valid" else 0
        first = []  # of the enlarged features, the ones that belong to the output's first voxel
        for axis, n in enumerate(size, start=2):
            blocks = -(-n // factor)
            before = (blocks * factor - n) // 2 + halo * factor  # voxels of the blocks before the output begins
            first.append(before)
            start = inset - before - context * factor
            image = _average(image, axis, factor, start, blocks + 2 * (halo + context))
        features = _enlarge(pathway(image), factor, self.upsample)
        for axis, (before, n) in enumerate(zip(first, size, strict=True), start=2):
            features = features.narrow(axis, before, n)
        return features

    def _neighbours(self, factor: int) -> int:
        return 1 if self.upsample == "linear" and factor > 1 else 0

    def _inset(self, image: Tensor) -> int:
        shape = tuple(image.shape)
        if image.ndim != self.spatial_dims + 2:
            raise ConfigError(
                f"DeepMedic of spatial_dims={self.spatial_dims} needs an image of {self.spatial_dims + 2} axes"
                f" (batch, channel, space), got {shape}"
            )
        largest = max(self.down_factors)
        if self.padding == "same":
            if max(shape[2:]) <= largest:
                raise ConfigError(
                    f"the pathway of factor {largest} would see one voxel of an image of {shape[2:]};"
                    f" give an image of more than {largest} voxels or smaller down_factors"
                )
            return 0
        if min(shape[2:]) < self.input_size(1):
            raise ConfigError(
                f"valid convolutions with down_factors={self.down_factors} need an image of at least"
                f" {self.input_size(1)} voxels along each axis, {self.margin} more than the output on each side, got"
                f" {shape[2:]}; give a larger image or padding='same'"
            )
        return self.margin


class _Layers(nn.Module):
    """Convolutional layers; what each pair of them is given is added to what it returns, unless it is the image.

    Args:
        channels: of the input and of each layer's output.
        from_image: the first layer is a convolution alone.
        dropout: before every layer but the first.
    """

    def __init__(
        self, spatial_dims: int, channels: Sequence[int], kernel: int, pad: int, norm: _Named, act: _Named,
        *, from_image: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = 2 if from_image else 0  # the first layer that may end such a pair
        self.layers = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](into, out, kernel, padding=pad)
            if from_image and number == 0
            else _layer(spatial_dims, into, out, kernel, pad, norm, act, dropout if number else 0.0)
            for number, (into, out) in enumerate(zip(channels[:-1], channels[1:], strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        earlier = x
        for number, layer in enumerate(self.layers):
            if number % 2 == 0:
                earlier = x
            x = layer(x)
            if number % 2 == 1 and number >= self.first:
                x = _add(x, earlier)
        return x


def _layer(
    spatial_dims: int, into: int, out: int, kernel: int, pad: int, norm: _Named, act: _Named, dropout: float
) -> nn.Sequential:
    return nn.Sequential(
        get_norm_layer(norm, spatial_dims, into),
        get_act_layer(act),
        nn.Dropout(dropout),
        Conv[Conv.CONV, spatial_dims](into, out, kernel, padding=pad),
    )


def _add(x: Tensor, earlier: Tensor) -> Tensor:
    """``x`` plus the centre of ``earlier``; channels that ``earlier`` lacks count as zero, more are left out."""
    centre = earlier.narrow(1, 0, min(x.shape[1], earlier.shape[1]))
    for axis in range(2, x.ndim):
        centre = centre.narrow(axis, (earlier.shape[axis] - x.shape[axis]) // 2, x.shape[axis])
    return x + F.pad(centre, [0, 0] * (x.ndim - 2) + [0, x.shape[1] - centre.shape[1]])


def _average(x: Tensor, axis: int, factor: int, start: int, blocks: int) -> Tensor:
    """Means over ``blocks`` blocks of ``factor`` voxels from ``start`` on; outside, the image goes on as at its border.

    By index and mean rather than by padding and pooling, whose derivatives on a GPU differ from run to run.
    """
    size = x.shape[axis]
    if not (factor == 1 and start == 0 and blocks == size):
        x = x.index_select(axis, torch.arange(start, start + blocks * factor, device=x.device).clamp(0, size - 1))
    return x if factor == 1 else x.unflatten(axis, (blocks, factor)).mean(axis + 1)


def _enlarge(x: Tensor, factor: int, how: str) -> Tensor:
    if factor == 1:
        return x
    if how == "linear":
        return F.interpolate(x, scale_factor=factor, mode="bilinear" if x.ndim == 4 else "trilinear")
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(factor, axis)
    return x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(
    spatial_dims: int, features: Sequence[int], fc_features: Sequence[int], down_factors: Sequence[int],
    dropout: float, padding: str, upsample: str,
) -> None:  # fmt: skip
    if spatial_dims not in (2, 3):
        raise ConfigError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    for name, numbers in (("features", features), ("fc_features", fc_features), ("down_factors", down_factors)):
        if any(n != int(n) or n < 1 for n in numbers) or not (numbers or name == "fc_features"):
            raise ConfigError(f"{name} must be integers of at least 1, got {tuple(numbers)}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be at least 0 and less than 1, got {dropout}")
    for name, value, known in (("padding", padding, ("same", "valid")), ("upsample", upsample, ("nearest", "linear"))):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
