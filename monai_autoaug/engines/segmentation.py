# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The plain segmentation task of a run: network by name, its loss, patch size, and inference over whole volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.precision import Precision

__all__ = [
    "IGNORED",
    "NETWORKS",
    "SegmentationLoss",
    "build_network",
    "check_network",
    "choose_margin",
    "choose_patch_size",
    "downsampling",
    "infer",
]

IGNORED = 255  # what the loss calls a voxel of unknown label; class indices stay far below it
_BUDGET = 96**3  # voxels of the largest patch that is chosen without being asked for
_NORM = ("INSTANCE", {"affine": True})


def _unet(inputs: int, outputs: int, *, channels: Sequence[int] = (16, 32, 64, 128), units: int = 2) -> nn.Module:
    """MONAI's residual U-Net: ``channels`` a level, ``units`` residual units a level."""
    return UNet(3, inputs, outputs, tuple(channels), (2,) * (len(channels) - 1), num_res_units=units, norm=_NORM)


def _segresnet(
    inputs: int, outputs: int, *, filters: int = 8, blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
) -> nn.Module:  # fmt: skip
    """MONAI's SegResNet, the residual U-Net of Gao et al. 2021: ``filters`` at full resolution, doubled a level."""
    return SegResNet(
        3, filters, inputs, outputs, blocks_down=tuple(blocks_down), blocks_up=tuple(blocks_up),
        norm=("GROUP", {"num_groups": min(8, filters)}),
    )  # fmt: skip


def _dynunet(inputs: int, outputs: int, *, channels: Sequence[int] = (12, 24, 48, 96)) -> nn.Module:
    """MONAI's DynUNet, nnU-Net's plain convolutional U-Net: ``channels`` a level."""
    levels = len(channels)
    return DynUNet(
        3, inputs, outputs, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1), filters=list(channels),
        norm_name=_NORM,
    )  # fmt: skip


_Builder = Callable[..., nn.Module]
NETWORKS: dict[str, tuple[_Builder, dict[str, Any]]] = {
    "unet": (_unet, {"channels": (16, 32, 64, 128), "units": 2}),
    "segresnet": (_segresnet, {"filters": 8, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}),
    "dynunet": (_dynunet, {"channels": (12, 24, 48, 96)}),
}


def check_network(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown network or option before any work.

    Raises:
        ConfigError: the message lists those there are.

    >>> check_network("unet", {"channels": [8, 16]})
    """
    if name not in NETWORKS:
        names = ", ".join(NETWORKS)
        raise ConfigError(f"there is no network {name!r}; choose one of {names}{did_you_mean(name, NETWORKS)}")
    defaults = NETWORKS[name][1]
    for option, value in options.items():
        if option not in defaults:
            names = ", ".join(defaults)
            told = f"network {name!r} has no option {option!r}; it has {names}{did_you_mean(option, defaults)}"
            raise ConfigError(told)
        several = isinstance(defaults[option], tuple)
        numbers = value if several else [value]
        if not isinstance(numbers, list | tuple) or not all(type(n) is int and n >= 1 for n in numbers):
            kind = "positive whole numbers" if several else "one positive whole number"
            raise ConfigError(f"network {name!r}: {option} must be {kind}, got {value!r}")
        least = {"dynunet": 3, "unet": 2}.get(name, 1)
        if option == "channels" and len(numbers) < least:
            raise ConfigError(f"network {name!r}: channels must be at least {least} numbers, got {value!r}")
    given = {**defaults, **options}
    if name == "segresnet" and len(given["blocks_down"]) != len(given["blocks_up"]) + 1:
        raise ConfigError(
            "network 'segresnet': blocks_down must have one number more than blocks_up,"
            f" got {given['blocks_down']} and {given['blocks_up']}"
        )


def build_network(name: str, inputs: int, outputs: int, **options: Any) -> nn.Module:
    """A 3D segmentation network of MONAI that returns logits.

    Args:
        name: a name in ``NETWORKS``.
        inputs: image channels.
        outputs: classes with the background, or regions.
        options: ``channels`` (unet, dynunet), ``units`` (unet), ``filters``, ``blocks_down`` and ``blocks_up``
            (segresnet).

    Raises:
        ConfigError: unknown network or option.

    >>> round(sum(p.numel() for p in build_network("unet", 1, 3).parameters()) / 1e6, 1)
    1.2
    """
    check_network(name, options)
    return NETWORKS[name][0](inputs, outputs, **options)


def downsampling(name: str, options: Mapping[str, Any]) -> int:
    """By what a patch's size must be divisible for a network.

    >>> downsampling("unet", {"channels": (8, 16, 32)})
    4
    """
    given = {**NETWORKS[name][1], **options}
    return int(2 ** (len(given["blocks_down" if name == "segresnet" else "channels"]) - 1))


def choose_patch_size(median_shape: Sequence[int], factor: int) -> tuple[int, int, int]:
    """The median shape rounded to multiples of ``factor``, its largest axis cut until it fits a budget of 96^3 voxels.

    Rounding is upwards where that adds less than a third.

    >>> choose_patch_size((35, 50, 35), 8), choose_patch_size((512, 512, 90), 8)
    ((40, 56, 40), (96, 96, 96))
    """
    up = [-(-n // factor) * factor for n in median_shape]
    size = [u if u <= 4 / 3 * n else max(u - factor, factor) for n, u in zip(median_shape, up, strict=True)]
    while math.prod(size) > _BUDGET and max(size) > factor:
        size[size.index(max(size))] -= factor
    return size[0], size[1], size[2]


def choose_margin(patch_size: Sequence[int], median_shape: Sequence[int]) -> tuple[int, ...]:
    """How much of the surroundings a spatial method is given: an eighth of the patch, as far as volumes have it.

    >>> choose_margin((64, 64, 40), (80, 68, 40))
    (8, 2, 0)
    """
    return tuple(max(0, min(-(-p // 8), -(-(n - p) // 2))) for p, n in zip(patch_size, median_shape, strict=True))


class SegmentationLoss(nn.Module):
    """Dice + cross-entropy with equal weights, as nnU-Net takes it: Dice of the foreground only.

    Args:
        regions: outputs overlap: sigmoid and binary cross-entropy instead of softmax.
        ignore: some voxels have the label ``IGNORED`` (with regions in every channel) and count for nothing: Dice sums
            over the other voxels of each sample, cross-entropy is the mean over those of the batch.

    >>> loss = SegmentationLoss()
    >>> label = torch.zeros(1, 1, 4, 4, 4)
    >>> bool(loss(torch.tensor([9.0, -9.0]).view(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4), label) < 1.1)
    True
    """

    def __init__(self, *, regions: bool = False, ignore: bool = False) -> None:
        super().__init__()
        self.regions, self.ignore_index = regions, IGNORED if ignore else None
        self.dice = DiceLoss(
            include_background=regions, to_onehot_y=not regions, softmax=not regions, sigmoid=regions,
            ignore_index=self.ignore_index,
        )  # fmt: skip
        cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORED if ignore else -100)
        self.entropy = nn.BCEWithLogitsLoss() if regions else cross_entropy

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, K, D, H, W) against class indices (B, 1, D, H, W), or channels (B, K, D, H, W)."""
        if self.regions and self.ignore_index is not None:
            return self.masked(input, target, (target[:, :1] != self.ignore_index).to(input.dtype))
        indices = target.shape[1] == 1 and input.shape[1] > 1
        wanted = target[:, 0].long() if indices else target.to(input.dtype)
        total: Tensor = self.dice(input, target) + self.entropy(input, wanted)
        return total

    def masked(self, input: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Loss of regions over the voxels whose label is known; MONAI's losses know no mask for soft labels.

        Args:
            input: (B, K, D, H, W) logits.
            label: (B, K, D, H, W), soft.
            valid: (B, 1, D, H, W), the weight of each voxel in [0, 1]: 0 where the label is unknown.
        """
        label = torch.where(valid > 0, label, 0).to(input.dtype)
        p, axes = input.sigmoid() * valid, list(range(2, input.ndim))
        both, smooth = (p * label).sum(axes), self.dice.smooth_nr
        dice = 1 - (2 * both + smooth) / (p.sum(axes) + (label * valid).sum(axes) + self.dice.smooth_dr)
        entropy = nn.functional.binary_cross_entropy_with_logits(input, label, reduction="none") * valid
        return dice.mean() + entropy.sum() / (input.shape[1] * valid.sum()).clamp(min=1)


@torch.no_grad()
def infer(
    network: nn.Module,
    image: Tensor,
    patch_size: Sequence[int],
    precision: Precision,
    *,
    overlap: float = 0.5,
    around: Callable[[Inferer], Inferer] | None = None,
) -> Tensor:
    """Logits of a whole volume by sliding windows with Gaussian weights, on the CPU.

    Volumes smaller than a patch are continued by their border, as in training.

    Args:
        network: in any mode; run in evaluation mode and put back.
        image: (C, D, H, W), preprocessed.
        patch_size: of the windows.
        precision: where and how the network runs.
        overlap: of neighbouring windows, in [0, 1).
        around: makes the inferer that predicts of the one that slides windows, such as a `TestTimePolicyInferer`.

    Returns:
        (K, D, H, W) float32.

    >>> infer(nn.Conv3d(1, 2, 1), torch.zeros(1, 9, 8, 7), (8, 8, 8), Precision("cpu")).shape
    torch.Size([2, 9, 8, 7])
    """
    training = network.training
    network.eval()

    def run(x: Tensor) -> Any:
        with precision.autocast():
            output = network(x)
        return (output[0] if isinstance(output, list | tuple) else output).float()

    windows = SlidingWindowInferer(
        tuple(patch_size), 2, overlap, mode="gaussian", padding_mode="replicate", sw_device=precision.device,
        device=torch.device("cpu"),
    )  # fmt: skip
    logits = (windows if around is None else around(windows))(image[None], run)
    network.train(training)
    assert isinstance(logits, Tensor)  # noqa: S101  # for the type checker: one output, not several
    return logits[0]
