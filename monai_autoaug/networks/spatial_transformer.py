# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Spatial transformers: an encoder from an image to an affine matrix, and one put in front of a network.

`add_spatial_transformer` makes any network look at an affine map of its input that the network itself learns, so that
it becomes invariant to such maps. What the network gives is mapped back, so that it lies on its input again. The
network stays the object that it is; its state has further keys, and whoever loads such a state into the same network
without a transformer goes through `expect_spatial_transformer` first.

Source: Jaderberg et al. 2015; the standard use of it in Mounsaveng et al. 2019, Table 3 (b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import float32_region
from monai_autoaug.transforms import geometry

__all__ = [
    "AffineEncoder", "SpatialTransformer", "add_spatial_transformer", "expect_spatial_transformer", "voxel_matrix",
]  # fmt: skip

NAME = "spatial_transformer"
_BOUNDS = (math.radians(15.0), 0.2, 0.1, 0.0625)  # rotation, log scale, shear, translation as a share of the size


def voxel_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Matrices in [-1, 1] coordinates, as a spatial transformer predicts them -> in centred voxels.

    Args:
        matrix: (B, d, d + 1), axes in the order D, H, W.
        shape: (D, H, W) of the volume.

    >>> shift = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])  # half of the half extent along the first axis
    >>> voxel_matrix(shift, (9, 5))[0].tolist()
    [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]
    """
    half = torch.tensor([max(n - 1, 1) / 2 for n in shape]).to(matrix)
    linear = matrix[:, :, :-1] * half[:, None] / half
    return torch.cat([linear, matrix[:, :, -1:] * half[:, None]], dim=2)


class AffineEncoder(nn.Module):
    """Channels of an image -> the numbers of an affine matrix.

    Strided convolutions with a norm and leaky ReLU, global average, one linear layer that starts at 0, as spatial
    transformers do.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of what is looked at.
        width: channels of the first layer, doubled at each further one.
        layers: convolutions of stride 2.
        norm: as MONAI writes it; the default makes samples independent of each other.

    >>> AffineEncoder(2, 1)(torch.zeros(2, 1, 17, 20)).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, width: int = 16, layers: int = 4,
        norm: Any = ("GROUP", {"num_groups": 1}),
    ) -> None:  # fmt: skip
        super().__init__()
        channels = [in_channels, *[width * 2**n for n in range(layers)]]
        self.layers = nn.Sequential(*[
            Convolution(spatial_dims, a, b, strides=2, norm=norm, act=("LEAKYRELU", {"negative_slope": 0.2}))
            for a, b in zip(channels, channels[1:], strict=False)
        ])  # fmt: skip
        self.numbers = nn.Linear(channels[-1], spatial_dims * (spatial_dims + 1))
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, d * (d + 1)), at least float32."""
        features = self.layers(image).flatten(2).mean(2)
        with float32_region(features.device):
            raw: Tensor = self.numbers(features if features.dtype == torch.float64 else features.float())
            return raw


class SpatialTransformer(nn.Module):
    """An affine map of each image, learned with what follows; fresh it is the identity.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        width: channels of the encoder's first layer.
        bounded: rotation, scale, shear and translation within 15 degree, a factor of 0.82 to 1.22, 0.1 and a 16th of
            the size; False: any matrix, as in the paper.

    >>> SpatialTransformer(2, 1).matrix(torch.zeros(1, 1, 16, 16)).tolist()
    [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    """

    bounds: Tensor

    def __init__(self, spatial_dims: int, in_channels: int, *, width: int = 8, bounded: bool = True) -> None:
        super().__init__()
        self.spatial_dims, self.bounded = spatial_dims, bounded
        self.encoder = AffineEncoder(spatial_dims, in_channels, width=width)
        self.register_buffer("bounds", torch.tensor(_BOUNDS if bounded else ()))
        self.last: Tensor | None = None  # the map of the image that the network is looking at

    def matrix(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, d, d + 1) in centred voxels (see `transforms.geometry`)."""
        d, shape = self.spatial_dims, tuple(image.shape[2:])
        raw = self.encoder(image)
        with float32_region(image.device):
            if not self.bounded:
                return voxel_matrix(torch.eye(d, d + 1).to(raw) + raw.view(-1, d, d + 1), shape)
            turns = 3 if d == 3 else 1
            unit, most = raw.tanh(), self.bounds.to(raw)
            turn, scale, shear, shift = unit.split((turns, d, turns, d), dim=1)
            size = torch.tensor([float(n) for n in shape]).to(unit)
            return geometry.affine_matrix(turn * most[0], scale * most[1], shear * most[2], shift * most[3] * size)

    def forward(self, x: Tensor) -> Tensor:
        """Give back ``x``: its place among the layers of a sequential network must not matter."""
        return x


def add_spatial_transformer(network: nn.Module, *, bounded: bool = True, width: int = 8) -> nn.Module:
    """Put a spatial transformer in front of a network, and its inverse behind it.

    Args:
        network: begins with a convolution that tells dimensions and channels; changed in place.
        bounded: see `SpatialTransformer`.
        width: see `SpatialTransformer`.

    Returns:
        The network.

    Raises:
        ConfigError: it has no convolution.

    >>> network = add_spatial_transformer(nn.Conv2d(1, 2, 1))
    >>> network(torch.zeros(1, 1, 16, 16)).shape, network.spatial_transformer.bounded
    (torch.Size([1, 2, 16, 16]), True)
    """
    kinds = (nn.Conv2d, nn.Conv3d)
    first = next((m for m in network.modules() if isinstance(m, kinds)), None)
    if first is None:
        raise ConfigError("a spatial transformer needs a network with convolutions of 2 or 3 dimensions")
    made = SpatialTransformer(len(first.kernel_size), first.in_channels, width=width, bounded=bounded)
    network.add_module(NAME, made.to(first.weight.device))
    network.register_forward_pre_hook(_before)
    network.register_forward_hook(_behind)
    return network


def expect_spatial_transformer(network: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Give a network a spatial transformer where a state that it is about to load has one.

    Args:
        network: as it is built.
        state: of a network.
        prefix: before the network's own names in it.

    >>> state = add_spatial_transformer(nn.Conv2d(1, 2, 1), bounded=False).state_dict()
    >>> network = nn.Conv2d(1, 2, 1)
    >>> expect_spatial_transformer(network, state); network.load_state_dict(state)
    <All keys matched successfully>
    """
    first = state.get(f"{prefix}{NAME}.encoder.layers.0.conv.weight")
    if first is not None and not hasattr(network, NAME):
        add_spatial_transformer(network, width=len(first), bounded=bool(state[f"{prefix}{NAME}.bounds"].numel()))


def _before(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The network looks at the mapped image."""
    image, transformer = inputs[0].as_subclass(Tensor), _of(network)
    transformer.last = transformer.matrix(image)
    grid = geometry.compose(transformer.last, None, tuple(image.shape[2:]), like=image)
    return (geometry.resample(image, grid)[0], *inputs[1:])


def _behind(network: nn.Module, inputs: Any, output: Any) -> Any:
    """What it gives is mapped back, at each level of a deep supervision; a class of a whole image has no place."""
    transformer = _of(network)
    matrix, transformer.last = transformer.last, None
    assert matrix is not None  # noqa: S101  # for the type checker: `_before` has set it
    inverse, full = geometry.invert_affine(matrix), tuple(inputs[0].shape[2:])
    if isinstance(output, list | tuple):
        return type(output)(_back(level, inverse, full) for level in output)
    return _back(output, inverse, full)


def _back(logits: Tensor, inverse: Tensor, full: tuple[int, ...]) -> Tensor:
    """Resample one output by the inverse map of the input; beyond the border it is as at the border."""
    d = len(full)
    if logits.ndim == d + 3:  # DynUNet stacks its levels: (B, levels, K, ...)
        return torch.stack([_back(level, inverse, full) for level in logits.unbind(1)], dim=1)
    if logits.ndim != d + 2:
        return logits
    size = tuple(logits.shape[2:])
    ratio = torch.tensor([f / s for f, s in zip(full, size, strict=True)]).to(inverse)
    level = torch.cat([inverse[:, :, :d] * ratio / ratio[:, None], inverse[:, :, d:] / ratio[:, None]], dim=2)
    grid = geometry.compose(level, None, size, like=logits)
    return geometry.resample(logits, grid, padding="border")[0]


def _of(network: nn.Module) -> SpatialTransformer:
    transformer = getattr(network, NAME)
    assert isinstance(transformer, SpatialTransformer)  # noqa: S101  # for the type checker
    return transformer
