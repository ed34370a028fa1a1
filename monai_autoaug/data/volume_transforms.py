# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""MONAI transforms that preprocessing needs and MONAI lacks: strict loading, nnU-Net's normalisation, label grids."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.compose import Compose
from monai.transforms.io.array import LoadImage
from monai.transforms.spatial.array import SpatialResample
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

from monai_autoaug.data.nifti import StrictNibabelReader, corner_shift
from monai_autoaug.data.schemes import Scheme
from monai_autoaug.data.statistics import IntensityStatistics
from monai_autoaug.errors import AutoAugError, DataError

__all__ = [
    "LabelIndexd",
    "LoadNiftid",
    "MatchGridd",
    "NormalizeLikeNNUNetd",
    "RecordGridd",
    "ResampleLabeld",
    "StrictCompose",
    "TOLERANCE",
]

TOLERANCE = 0.05  # by how much of a voxel image and label may disagree about where they are
# of the meta data, what later transforms need; the rest of a NIfTI header would be copied by each of them
_KEPT = ("affine", "original_affine", "spatial_shape", "space", "original_channel_dim", "filename_or_obj")
Item = Mapping[Hashable, Any]


class StrictCompose(Compose):
    """MONAI's Compose, but what this package raises on purpose comes out as it is, not inside a RuntimeError."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the transforms in order."""
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error.__cause__, AutoAugError):
                raise error.__cause__ from None
            raise


class LoadNiftid(MapTransform):
    """Load NIfTI files as channel-first float32 MetaTensors (C, D, H, W), or refuse them by name.

    MONAI's ``LoadImaged`` tries its other readers where the chosen one refuses a file, and ITK reads truncated files as
    zeros; this one reads with `StrictNibabelReader` or raises. Several files are stacked as channels; (x, y, z, 1) is
    squeezed; (x, y, z, C) becomes channels.

    Args:
        keys: keys of paths, or of lists of paths.
        channels: the number of channels that each key must have.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        DataError: a file is broken, or the number of axes or channels is another.
    """

    def __init__(self, keys: KeysCollection, channels: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = tuple(channels)
        self._load = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Load the files of each key."""
        item = dict(data)
        for key, channels in self.key_iterator(item, self.channels):
            volume = self._load(item[key], reader=StrictNibabelReader())
            volume.meta = {k: v for k, v in volume.meta.items() if k in _KEPT}
            if volume.ndim != 4 or volume.shape[0] != channels:
                raise DataError(
                    f"has an unexpected shape as {key}",
                    file=item[key],
                    expected=f"3 axes and {channels} channel(s)",
                    came=f"{volume.ndim - 1} axes and {volume.shape[0]} channel(s), shape {tuple(volume.shape[1:])}",
                )
            item[key] = volume
        return item


class MatchGridd(MapTransform):
    """Refuse a label that does not lie on the image's voxels; rounding differences are set to the image's affine.

    Args:
        keys: keys of (1, D, H, W) MetaTensors.
        reference: the key of the image.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        DataError: shapes differ, or positions by more than `TOLERANCE` voxels.
    """

    def __init__(self, keys: KeysCollection, reference: str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference = reference

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Compare, and give the label the image's affine."""
        item = dict(data)
        image = item[self.reference]
        for key in self.key_iterator(item):
            label = item[key]
            name = item.get("case", image.meta.get("filename_or_obj"))
            if label.shape[1:] != image.shape[1:]:
                raise DataError(
                    "label and image differ in shape", file=name, expected=tuple(image.shape[1:]),
                    came=tuple(label.shape[1:]), remedy="resample the label onto the image",
                )
            shift = corner_shift(image.affine.numpy(), label.affine.numpy(), image.shape[1:])
            if shift > TOLERANCE * float(affine_to_spacing(image.affine.numpy(), r=3).min()):
                raise DataError(
                    "label and image lie at different places", file=name, expected="the same affine",
                    came=f"{shift:.3g} mm apart", remedy="resample the label onto the image",
                )
            label.affine = image.affine.clone()
        return item


class LabelIndexd(MapTransform):
    """Label values -> their positions in ``values`` (0 is the background), the ignore label -> ``len(values)``.

    Args:
        keys: keys of (1, D, H, W) tensors that hold label values, up to rounding errors of 1e-3.
        values: the declared values in ascending order.
        ignore_label: the value of voxels whose label is unknown, or None.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        DataError: another value is met.

    >>> LabelIndexd("label", values=(0, 5, 9))({"label": torch.tensor([[9.0, 0.0, 5.0]])})["label"]
    tensor([[2, 0, 1]], dtype=torch.uint8)
    """

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        ignore_label: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = tuple(values) + (() if ignore_label is None else (ignore_label,))

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Replace each value by its position."""
        item = dict(data)
        table = torch.tensor(self.values, dtype=torch.float32)
        dtype = torch.uint8 if len(self.values) <= 255 else torch.int16
        for key in self.key_iterator(item):
            label = item[key]
            plain = label.as_tensor() if isinstance(label, MetaTensor) else label
            # the declared value next below plain + 0.5 is the nearest whole one, if plain is a declared value at all
            index = torch.bucketize(plain + 0.5, table) - 1
            off = (plain - table[index.clamp(min=0)]).abs() > 1e-3
            if bool(off.any() | ~torch.isfinite(plain).all()):
                wrong = plain[off | ~torch.isfinite(plain)].unique()[:5].tolist()
                raise DataError(
                    "holds undeclared label values", file=item.get("case", key), expected=self.values, came=wrong,
                    remedy="declare these labels or correct the file",
                )
            item[key] = convert_to_dst_type(index, label, dtype=dtype)[0]
        return item


class NormalizeLikeNNUNetd(MapTransform):
    """Normalise each channel: as nnU-Net does, by the image itself or by the training set, or by percentiles.

    ``"zscore"`` subtracts the channel's mean and divides by its standard deviation; ``"ct"`` clips at the 0.5 and 99.5
    percentiles of the training cases' foreground, then subtracts its mean and divides by its standard deviation
    (Isensee et al., Nature Methods 18, 203-211, 2021). ``"percentile"`` brings the image's own 2nd percentile to 0 and
    its 98th to 1, without clipping (Chaitanya et al. 2019, section 3.2).

    Args:
        keys: keys of (C, D, H, W) images.
        schemes: one a channel.
        statistics: of the training cases' foreground, one a channel.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        DataError: the number of channels is another, or both percentiles are equal though the image isn't constant.

    >>> flat = IntensityStatistics(2.0, 2.0, minimum=0.0, maximum=9.0, percentile_00_5=0.0, percentile_99_5=4.0)
    >>> normalise = NormalizeLikeNNUNetd("image", schemes=("ct",), statistics=(flat,))
    >>> normalise({"image": torch.tensor([[-5.0, 2.0, 90.0]])})["image"]
    tensor([[-1.,  0.,  1.]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        schemes: Sequence[Scheme],
        statistics: Sequence[IntensityStatistics],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.schemes, self.statistics = tuple(schemes), tuple(statistics)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Normalise the image of each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if len(image) != len(self.schemes):
                raise DataError(
                    "has another number of channels", file=item.get("case", key), expected=len(self.schemes),
                    came=len(image),
                )
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            try:
                channels = [self._channel(*given) for given in zip(plain, self.schemes, self.statistics, strict=True)]
            except ZeroDivisionError as error:
                raise DataError(
                    "can't be scaled by percentiles", file=item.get("case", key),
                    expected="a 98th percentile above the 2nd", came="equal ones: nearly all voxels have one value",
                    remedy="use normalisation zscore, or crop the image",
                ) from error
            item[key] = convert_to_dst_type(torch.stack(channels), image)[0]
        return item

    @staticmethod
    def _channel(channel: Tensor, scheme: Scheme, statistics: IntensityStatistics) -> Tensor:
        """Normalise one channel (D, H, W)."""
        channel = channel.float()
        if scheme == "ct":
            channel = channel.clamp(statistics.percentile_00_5, statistics.percentile_99_5)
            return (channel - statistics.mean) / max(statistics.std, 1e-8)
        if scheme == "percentile":
            low, high = (float(p) for p in np.percentile(channel.numpy(), (2, 98)))
            if low == high and bool((channel != low).any()):
                raise ZeroDivisionError
            return (channel - low) / max(high - low, 1e-8)
        std, mean = torch.std_mean(channel, correction=0)
        return (channel - mean) / std.clamp(min=1e-8)


class ResampleLabeld(MapTransform):
    """Bring an integer label onto the grid of the resampled image: each class linearly, then the largest share.

    One class is resampled at a time, so memory does not grow with the number of classes. A label that lies on the
    image's grid already is left alone.

    Args:
        keys: keys of (1, D, H, W) MetaTensors.
        reference: the key of the image.
        allow_missing_keys: skip keys that an item lacks.
    """

    def __init__(self, keys: KeysCollection, reference: str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference = reference
        self._resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Resample the label of each key."""
        item = dict(data)
        image = item[self.reference]
        for key in self.key_iterator(item):
            label = item[key]
            same = torch.allclose(label.affine, image.affine, atol=1e-6)
            if not same or label.shape[1:] != image.shape[1:]:
                item[key] = self._largest(label, image)
        return item

    def _largest(self, label: MetaTensor, image: MetaTensor) -> MetaTensor:
        """The class with the largest resampled share in each voxel, the lower one where two are equal."""
        values = label.as_tensor().unique().tolist()
        best = self._share(label, values[0], image)
        winner = torch.full(best.shape, values[0], dtype=label.dtype)
        largest = best.as_tensor()
        for value in values[1:]:
            share = self._share(label, value, image).as_tensor()
            winner[share > largest] = value
            largest = torch.maximum(largest, share)
        return convert_to_dst_type(winner, best, dtype=label.dtype)[0]

    def _share(self, label: MetaTensor, value: int, image: MetaTensor) -> MetaTensor:
        """How much of each resampled voxel a class takes."""
        mask = convert_to_dst_type((label.as_tensor() == value).float(), label, dtype=torch.float32)[0]
        return cast(MetaTensor, self._resample(mask, dst_affine=image.affine, spatial_size=tuple(image.shape[1:])))


class RecordGridd(MapTransform):
    """Keep where a volume lies as plain tensors, which caches on disk (PersistentDataset) keep too.

    Args:
        keys: the key of one MetaTensor; the item gets ``affine`` (4, 4) float64 and ``spacing`` (3,) float32 in mm.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """Add the two tensors."""
        item = dict(data)
        for key in self.key_iterator(item):
            item["affine"] = item[key].affine.clone()
            item["spacing"] = torch.as_tensor(item[key].pixdim, dtype=torch.float32)
        return item
