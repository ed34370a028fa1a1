# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""N4 bias correction of MR images, by SimpleITK."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from numpy.typing import NDArray

__all__ = ["CorrectBiasd", "correct_bias"]

_COARSEST = 32  # voxels along an axis, below which the field is not estimated on fewer of them
_ITERATIONS = (50, 50, 30)  # of each of three levels, finer from one to the next


def correct_bias(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Divide a volume by the smooth field that N4 estimates of it.

    The field is estimated from every second to fourth voxel of large volumes, where intensities are above Otsu's
    threshold, and evaluated at all of them. The result depends on nothing but the volume: one thread, nothing random.

    Args:
        volume: (D, H, W) intensities, of which those above 0 count.

    Returns:
        The corrected volume; as it is where there is nothing to correct, as in a constant one.

    Source: Tustison et al., IEEE TMI 29(6), 1310-1320, 2010.

    >>> correct_bias(np.ones((4, 4, 4))).max()
    np.float32(1.0)
    """
    import SimpleITK as sitk  # noqa: N813  # the name that its own documentation uses

    voxels = np.ascontiguousarray(volume, dtype=np.float32)
    positive = voxels > 0
    if not positive.any() or np.ptp(voxels[positive]) == 0:
        return voxels
    image = sitk.GetImageFromArray(voxels)
    foreground = sitk.GetArrayFromImage(sitk.OtsuThreshold(image, 0, 1, 200)).astype(bool)
    mask = sitk.GetImageFromArray((foreground & positive).astype(np.uint8))
    shrink = [max(1, min(4, n // _COARSEST)) for n in reversed(voxels.shape)]  # SimpleITK's axes are reversed
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.SetMaximumNumberOfIterations(list(_ITERATIONS))
    filter_.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(image))
    corrected: NDArray[np.float32] = (voxels / np.exp(field)).astype(np.float32)
    return corrected


class CorrectBiasd(MapTransform):
    """`correct_bias` of each channel of MR images.

    Args:
        keys: keys of (C, D, H, W) images.
        allow_missing_keys: skip keys that an item lacks.

    >>> CorrectBiasd("image")({"image": torch.ones(1, 4, 4, 4)})["image"].shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Correct the image of each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            channels = [torch.from_numpy(correct_bias(channel.numpy())) for channel in plain]
            item[key] = convert_to_dst_type(torch.stack(channels), image)[0]
        return item
