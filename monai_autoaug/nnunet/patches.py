# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's augmentation as a list that can be thinned, patches with a margin, its batches as ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor

from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.nnunet.cutting import NOT_FOR_A_CLASS
from monai_autoaug.nnunet.loading import Recorder, RecordingLoader
from monai_autoaug.nnunet.worker_policy import unpacked
from monai_autoaug.policies import class_at_centre
from monai_autoaug.tensors import one_hot

__all__ = ["PatchLayout", "RememberOutside", "label_names", "meta_loader", "prepare_loader", "steady_blur"]

# what changes the form of a patch, not its content; the two random ones disturb a cascade's previous segmentation,
# which no learned augmentation touches
_FORM = (
    ApplyRandomBinaryOperatorTransform,
    ConvertSegmentationToRegionsTransform,
    DownsampleSegForDSTransform,
    MaskImageTransform,
    MoveSegAsOneHotToDataTransform,
    RemoveLabelTransform,
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)


class RememberOutside(BasicTransform):
    """Leave in the data, as ``outside`` (1, D, H, W), where nnU-Net's label is negative: beyond the non-zero image."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Called by batchgenerators."""
        data_dict["outside"] = data_dict["segmentation"][:1] < 0
        return data_dict


def _inner(transform: Any) -> Any:
    return transform.transform if isinstance(transform, RandomTransform) else transform


def _all_transforms(transform: Any) -> list[Any]:
    """A transform and all that it holds."""
    held = [getattr(transform, "transform", None)]
    for name in ("transforms", "list_of_transforms"):
        held += list(getattr(transform, name, None) or [])
    return [transform, *[t for h in held if h is not None for t in _all_transforms(h)]]


def steady_blur(transforms: Any) -> None:
    """Fix how batchgenerators blurs: it times two implementations, which round differently, and takes the faster one.

    >>> blur = GaussianBlurTransform((0.5, 1.0), benchmark=True)
    >>> steady_blur(RandomTransform(blur, 0.5))
    >>> blur.benchmark
    False
    """
    for transform in _all_transforms(transforms):
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False


def _transform_list(loader: RecordingLoader) -> list[Any]:
    transforms = getattr(loader.loader.transforms.transforms, "transforms", None)
    if not isinstance(transforms, list):
        kind = type(loader.loader.transforms.transforms).__name__
        raise ConfigError(
            f"this trainer's augmentation is a {kind}, not a list of transforms, so it can't be thinned, enlarged by a"
            " margin or asked where the image must stay 0; use base_augmentation: stock and margin: 0"
        )
    return transforms


def prepare_loader(loader: RecordingLoader, base_augmentation: str, margin: Sequence[int], masked: bool) -> None:
    """Thin a training loader's augmentation, enlarge its patches and make it remember where the image must stay 0.

    Args:
        loader: of the training cases; changed in place.
        base_augmentation: "stock", "mirror" or "none".
        margin: voxels added at both ends of each axis of the patch.
        masked: whether some channel is normalised within a mask, outside of which it must stay 0.

    Raises:
        ConfigError: the trainer's augmentation is no list of transforms.
    """
    if base_augmentation == "stock" and not any(margin) and not masked:
        return
    transforms = _transform_list(loader)
    if base_augmentation != "stock":
        kept = (*_FORM, MirrorTransform) if base_augmentation == "mirror" else _FORM
        transforms[:] = [t for t in transforms if isinstance(_inner(t), kept)]
    _enlarge(loader, transforms, tuple(margin), base_augmentation)
    if masked:
        first = next((i for i, t in enumerate(transforms) if isinstance(t, RemoveLabelTransform)), None)
        if first is None:
            raise ConfigError(
                "this trainer's augmentation doesn't turn the label -1 into background, so where the image must stay 0"
                " is not known; add batchgeneratorsv2's RemoveLabelTransform(-1, 0) to it"
            )
        transforms.insert(first, RememberOutside())


def meta_loader(
    training: RecordingLoader, validation: RecordingLoader, batch_size: int, margin: Sequence[int], masked: bool
) -> RecordingLoader:
    """A loader of patches as validation has them, unaugmented, of training cases; half of them centred on foreground.

    Args:
        training: the loader whose cases these are; see `RecordingLoader.restrict`.
        validation: the loader whose transforms bring patches into the network's form.
        batch_size: patches a batch.
        margin: see `prepare_loader`.
        masked: see `prepare_loader`.
    """
    loader = copy.copy(validation.loader)
    loader._data, loader.indices = training.loader._data, training.loader.indices
    loader.batch_size, loader.oversample_foreground_percent = batch_size, 0.5
    loader.get_do_oversample = loader._oversample_last_XX_percent  # of this object, not of the one it is copied from
    loader.transforms = Recorder(copy.deepcopy(validation.loader.transforms.transforms))
    recording = RecordingLoader(loader)
    prepare_loader(recording, "none", margin, masked)
    return recording


def _enlarge(loader: RecordingLoader, transforms: list[Any], margin: tuple[int, ...], base_augmentation: str) -> None:
    """Patches of the final size plus the margin; what is read to make them grows alike, their centres stay."""
    stock = loader.loader
    axes = (0, *margin) if stock.patch_size_was_2d else margin
    spatial = [t for t in transforms if isinstance(t, SpatialTransform)]
    for transform in spatial:
        # dummy 2D augmentation transforms the last two axes only; the first keeps the size that is read
        own = margin[len(margin) - len(transform.patch_size) :]
        transform.patch_size = tuple(int(n) + 2 * m for n, m in zip(transform.patch_size, own, strict=True))
    read = stock.patch_size if spatial else stock.final_patch_size
    before = [int(n) for n in stock.patch_size]
    stock.patch_size = tuple(int(n) + 2 * m for n, m in zip(read, axes, strict=True))
    # nnU-Net pads by this much so that the final patch reaches the image's border, and no further
    stock.need_to_pad = stock.need_to_pad + [new - old for new, old in zip(stock.patch_size, before, strict=True)]
    if any(margin):
        transforms[:] = [t for t in transforms if not isinstance(t, DownsampleSegForDSTransform)]


def label_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the label values from 0 on, or "background" and those of the regions.

    >>> label_names({"labels": {"background": 0, "core": 2, "shell": 1, "ignore": 3}})
    ('background', 'shell', 'core')
    """
    labels = dataset_json["labels"]
    names = [name for name, value in labels.items() if name != "ignore" and value not in (0, [0])]
    if all(isinstance(labels[name], int) for name in names):
        names.sort(key=lambda name: labels[name])
    return ("background", *names)


@dataclass(frozen=True)
class PatchLayout:
    """How to read nnU-Net's batches: the step from its dict of tensors to a `Batch`.

    Args:
        heads: output channels of the network, K.
        image_channels: channels of the image; what follows them is a cascade's previous segmentation.
        regions: whether the label's channels are overlapping regions.
        ignore_label: the label value that means unknown, or None.
        spacing: voxel size in mm of each axis.
        masked_channels: for each image channel, whether it must stay 0 outside the non-zero region.
        margin: voxels by which training patches are enlarged.
        scales: nnU-Net's deep supervision scales, or None.

    >>> layout = PatchLayout(heads=3, image_channels=1, regions=False, ignore_label=3, spacing=(1.0, 1.0),
    ...                      masked_channels=(False,), margin=(0, 0), scales=None)
    >>> raw = {"data": torch.zeros(1, 1, 4, 4), "target": torch.full((1, 1, 4, 4), 3), "keys": ["a"]}
    >>> batch = layout.batch(raw, torch.device("cpu"))
    >>> batch.label.sum(1).unique(), batch.valid.sum()
    (tensor([1.]), tensor(0.))
    """

    heads: int
    image_channels: int
    regions: bool
    ignore_label: int | None
    spacing: tuple[float, ...]
    masked_channels: tuple[bool, ...]
    margin: tuple[int, ...]
    scales: Sequence[Sequence[float]] | None

    def batch(self, raw: dict[str, Any], device: torch.device, *, values: bool = False) -> Batch:
        """A training batch of nnU-Net's loader as a `Batch` on ``device``.

        Args:
            raw: ``data`` (B, C, ...), ``target`` (a tensor, or a list with deep supervision), ``keys``, and what a
                `Recorder` noted; or what workers have augmented.
            device: where training runs.
            values: leave the label as values (B, 1, ...) if it has nothing but classes and nothing else moves with it,
                for a `Drawing`.

        Raises:
            DataError: a label value is none of the classes.
        """
        if "operations" in raw:
            return unpacked(raw, self, device)
        data = raw["data"].to(device, non_blocking=True)
        target = raw["target"]
        self._check_values(target[0] if isinstance(target, list) else target, raw["keys"])
        target = [t.to(device, non_blocking=True) for t in target] if isinstance(target, list) else target.to(device)
        full = target[0] if isinstance(target, list) else target
        alone = not self.regions and self.ignore_label is None and raw.get("outside") is None
        if values and alone and data.shape[1] == self.image_channels and not full.is_floating_point():
            label, valid, heads = full, None, self.heads
        else:
            (label, valid), heads = self.soft_label(full), 0
        classes = raw.get("center_class")
        if self.regions:
            classes = class_at_centre(label, regions=True, valid=valid).to(device)  # label values are no regions
        elif classes is not None:
            known = (classes > 0) if self.ignore_label is None else (classes > 0) & (classes != self.ignore_label)
            classes = torch.where(known, classes, 0).to(device)
        sampled = raw.get("sampled")
        if classes is not None and sampled is not None:
            sampled = sampled.to(device)
            classes = torch.where(sampled == NOT_FOR_A_CLASS, classes, sampled)
        return Batch(
            image=data[:, : self.image_channels],
            label=label,
            valid=valid,
            extra=data[:, self.image_channels :] if data.shape[1] > self.image_channels else None,
            mask=self._mask(raw.get("outside"), device),
            classes=classes,
            case=tuple(str(k) for k in raw["keys"]),
            spacing=torch.tensor(self.spacing, device=device).repeat(len(data), 1),
            margin=self.margin,
            target=self._pyramid(centre_crop(full, self.margin)) if any(self.margin) else target,
            heads=heads,
        )

    def _check_values(self, target: Tensor, cases: Sequence[Any]) -> None:
        """Refuse labels that are none of the classes: as channels they would be nothing at all."""
        if self.regions:
            return
        if not target.is_floating_point():
            low, high = (int(value) for value in target.contiguous().aminmax())
            if low >= 0 and high < self.heads + (self.ignore_label == self.heads):
                return
        allowed = {*range(self.heads), *(() if self.ignore_label is None else (self.ignore_label,))}
        for number, one in enumerate(target):
            wrong = sorted(set(one.unique().tolist()) - allowed)
            if wrong:
                raise DataError(
                    "holds undeclared label values", file=str(cases[min(number, len(cases) - 1)]),
                    expected=sorted(allowed), came=wrong[:10],
                    remedy="correct the label file or declare them in dataset.json, and preprocess the data set again",
                )

    def soft_label(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """nnU-Net's target at full resolution as a float label (B, K, ...), and where it is known (B, 1, ...)."""
        if self.regions:
            label = target[:, : self.heads].float()
            return label, None if self.ignore_label is None else 1 - target[:, self.heads :].float()
        known = None if self.ignore_label is None else target != self.ignore_label
        values = target if known is None else torch.where(known, target, 0)
        return one_hot(values, self.heads), None if known is None else known.float()

    def _mask(self, outside: Tensor | None, device: torch.device) -> Tensor | None:
        if outside is None:
            return None
        inside = 1 - outside.to(device, non_blocking=True).float()
        free = torch.ones_like(inside)
        return torch.cat([inside if masked else free for masked in self.masked_channels], dim=1)

    def _pyramid(self, target: Tensor) -> Any:
        """nnU-Net's own targets of a cropped patch, as its workers would have made them."""
        if self.scales is None:
            return target
        sizes = [[round(n * s) for n, s in zip(target.shape[2:], scale, strict=True)] for scale in self.scales]
        return [
            target if list(target.shape[2:]) == size
            else F.interpolate(target.float(), size, mode="nearest-exact").to(target.dtype)
            for size in sizes
        ]  # fmt: skip
