# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The pipelines that `pipeline` compares: a sample as a loader cuts it -> a sample as a network is trained on it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from monai_autoaug.nnunet.patches import PatchLayout
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.policies.drawing import Drawing

__all__ = ["PIPELINES", "Pipeline", "read_size"]

TURN = (-math.pi / 6, math.pi / 6)  # nnU-Net's rotations of patches that are no slabs
SAME = {"keys": ["image", "label"], "allow_missing_keys": False}
# draw a sample from: number of the draw, image (C, D, H, W) float32, label (1, D, H, W) int16, as a loader has cut
# them, of the size ``reads``, or of `read_size` where a pipeline has no such attribute
Pipeline = Callable[[int, Tensor, Tensor], object]


def read_size(patch: int) -> int:
    """Size of the patch that nnU-Net reads, so that rotations bring no corners."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

    return int(get_patch_size((patch,) * 3, TURN, TURN, TURN, (0.85, 1.25))[0])


def ours(patch: int, channels: int, classes: int, *, channels_first: bool = False, linear: bool = False) -> Pipeline:
    """The default of joint_policy at the start of its training, with the margin of nnU-Net's host: a quarter.

    Args:
        patch: voxels of the final patch.
        channels: of the image.
        classes: with the background.
        channels_first: labels are made one-hot first, as trainers do it where they must.
        linear: the soft label's argmax is wanted.
    """
    margin = (math.ceil(patch / 4),) * 3
    layout = PatchLayout(
        heads=classes, image_channels=channels, regions=False, ignore_label=None, spacing=(1.0,) * 3,
        masked_channels=(False,) * channels, margin=margin, scales=None,
    )  # fmt: skip
    drawing = Drawing(TrainingPolicy.preset("nnunet").requires_grad_(False))
    generator = torch.Generator()

    def draw(number: int, image: Tensor, label: Tensor) -> object:
        generator.manual_seed(number)
        raw = {"data": image[None], "target": label[None], "keys": ["a"]}
        drawn = drawing(layout.batch(raw, torch.device("cpu"), values=not channels_first), generator)
        return drawn.image, _highest(drawn.label) if linear else drawn.label

    draw.reads = patch + 2 * margin[0]  # type: ignore[attr-defined]  # less than the others of the same volume
    return draw


def _highest(soft: Tensor) -> Tensor:
    """The label (B, 1, ...) of the highest channel; torch's argmax over strided channels takes ten times as long."""
    best, label = soft[:, 0].clone(), torch.zeros_like(soft[:, :1], dtype=torch.int16)
    for value in range(1, soft.shape[1]):
        label.masked_fill_((soft[:, value] > best)[:, None], value)
        torch.maximum(best, soft[:, value], out=best)
    return label


def batchgeneratorsv2(patch: int, channels: int, classes: int, *, nearest: bool = False) -> Pipeline:
    """As nnUNetTrainer composes it; labels by interpolated one-hot channels, or by the nearest."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    transforms = nnUNetTrainer.get_training_transforms(
        (patch,) * 3, TURN, None, (0, 1, 2), False, [False] * channels
    )  # fmt: skip
    for transform in transforms.transforms:
        if nearest and isinstance(transform, SpatialTransform):
            transform.mode_seg = "nearest"

    def draw(number: int, image: Tensor, label: Tensor) -> object:
        np.random.seed(number)  # noqa: NPY002  # what it draws from
        torch.manual_seed(number)
        return transforms(image=image, segmentation=label)

    return draw


def monai(patch: int, channels: int, classes: int) -> Pipeline:
    """MONAI's transforms with nnU-Net's probabilities and ranges, its affine maps and the crop in one resampling."""
    from monai.transforms import (
        CenterSpatialCropd,
        Compose,
        RandAdjustContrastd,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandScaleIntensityFixedMeand,
        RandSimulateLowResolutiond,
    )

    both, image_only = ("image", "label"), ("image",)
    spatial = {"keys": both, "mode": ("bilinear", "nearest"), "padding_mode": "zeros", "prob": 0.2}
    width = (0.5, 1.0)
    transforms = Compose(
        [
            RandAffined(rotate_range=(TURN,) * 3, **spatial),
            # scale_range is added to 1, and one that is alike along all axes can't be asked for
            RandAffined(scale_range=((-0.3, 0.4),) * 3, **spatial),
            CenterSpatialCropd(both, (patch,) * 3),
            RandGaussianNoised(image_only, prob=0.1, std=0.1),
            RandGaussianSmoothd(image_only, width, width, width, prob=0.2),
            RandScaleIntensityd(image_only, 0.25, prob=0.15),
            RandScaleIntensityFixedMeand(image_only, factors=0.25, preserve_range=True, prob=0.15),
            RandSimulateLowResolutiond(image_only, prob=0.25, zoom_range=(0.5, 1.0)),
            RandAdjustContrastd(image_only, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd(image_only, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ],
        lazy=True,
    )

    def draw(number: int, image: Tensor, label: Tensor) -> object:
        transforms.set_random_state(number)
        made = transforms({"image": image, "label": label})
        return made["image"], made["label"]

    return draw


def torchio(patch: int, channels: int, classes: int) -> Pipeline:
    """TorchIO's transforms with nnU-Net's probabilities; it has no contrast, brightness or inverted gamma."""
    import torchio as tio

    transforms = tio.Compose([
        tio.RandomAffine(scales=(1, 1), degrees=30, p=0.2),
        tio.RandomAffine(scales=(0.7, 1.4), degrees=0, isotropic=True, p=0.2),
        tio.CropOrPad(patch),
        tio.RandomNoise(std=(0, 0.1), p=0.1),
        tio.RandomBlur(std=(0.5, 1.0), p=0.2),
        tio.RandomAnisotropy(downsampling=(1, 2), p=0.25),
        tio.RandomGamma(log_gamma=(math.log(0.7), math.log(1.5)), p=0.4),
        tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5),
    ])  # fmt: skip

    def draw(number: int, image: Tensor, label: Tensor) -> object:
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  # what it draws from
        random.seed(number)
        made = transforms(tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label)))
        return made.image.data, made.label.data

    return draw


PIPELINES: dict[str, Callable[[int, int, int], Pipeline]] = {
    "ours": ours,
    "ours, linear": lambda *sizes: ours(*sizes, linear=True),
    "ours, channels": lambda *sizes: ours(*sizes, channels_first=True),
    "batchgeneratorsv2": batchgeneratorsv2,
    "batchgeneratorsv2, nearest": lambda *sizes: batchgeneratorsv2(*sizes, nearest=True),
    "MONAI": monai,
    "TorchIO": torchio,
}
