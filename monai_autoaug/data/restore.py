# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A prediction on the preprocessed grid -> a label file on the grid of the image file it was made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation, SpatialResample
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug.data.datalist import Case
from monai_autoaug.data.nifti import read_header, write_like
from monai_autoaug.errors import ConfigError, DataError

__all__ = ["restore", "to_grid"]


def to_grid(volume: Tensor, affine: Tensor, target: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample (1, D, H, W) linearly to another grid; exact where only axes are swapped or reversed.

    Args:
        volume: floating values.
        affine: (4, 4), voxel to mm, of the volume.
        target: (4, 4) of the wanted grid.
        shape: of the wanted grid.

    Returns:
        (1, *shape) float32; outside the volume its border value.
    """
    volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    codes = "".join(nib.aff2axcodes(target.numpy()))
    turned = Orientation(axcodes=codes, labels=None)(MetaTensor(volume.float(), affine=affine))
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
    out = resample(turned, dst_affine=target, spatial_size=tuple(int(n) for n in shape))
    return out.as_tensor() if isinstance(out, MetaTensor) else out


def _shares(prediction: Tensor, classes: int) -> Iterator[Tensor]:
    """What is resampled, one (1, D, H, W) at a time: each probability, or where each class was predicted."""
    if prediction.is_floating_point():
        yield from (prediction[k : k + 1] for k in range(len(prediction)))
    else:
        yield from ((prediction == k).float() for k in range(classes))


def _winner(shares: Iterator[Tensor], values: Sequence[int]) -> Tensor:
    """The label value of the largest share; the lower class where two are equal."""
    best = winner = torch.empty(0)
    for k, share in enumerate(shares):
        if k == 0:
            best, winner = share.clone(), torch.full(share.shape, values[0], dtype=torch.int32, device=share.device)
            continue
        winner[share > best] = values[k]
        torch.maximum(best, share, out=best)
    return winner


def _written(shares: Iterator[Tensor], order: Sequence[int]) -> Tensor:
    """Regions above one half write their value, later ones over earlier ones, as in nnU-Net."""
    out = torch.empty(0)
    for k, share in enumerate(shares):
        if k == 0:
            out = torch.zeros(share.shape, dtype=torch.int32, device=share.device)
        out[share > 0.5] = order[k]
    return out


def restore(
    prediction: Tensor,
    *,
    case: Case,
    path: Path,
    affine: Tensor | np.ndarray | None,
    label_values: Sequence[int],
    regions_class_order: Sequence[int] | None,
    clean: Callable[[NDArray[Any], tuple[float, ...]], NDArray[Any]] | None = None,
) -> Path:
    """Write a prediction with the geometry of the case's own image file; see `Preprocessing.restore`."""
    classes = len(label_values)
    outputs = classes if regions_class_order is None else len(regions_class_order)
    floating = prediction.is_floating_point()
    if prediction.ndim != 4 or len(prediction) != (outputs if floating else 1):
        raise DataError(
            "prediction has an unexpected shape", file=case.name, came=tuple(prediction.shape),
            expected=f"({outputs}, D, H, W) probabilities or (1, D, H, W) integer classes",
        )
    if floating and not bool(torch.isfinite(prediction).all()):
        raise DataError("prediction holds NaN or Inf", file=case.name, remedy="check the network's weights")
    if not floating and not 0 <= int(prediction.min()) <= int(prediction.max()) < classes:
        came = [int(prediction.min()), int(prediction.max())]
        raise DataError("prediction holds unknown classes", file=case.name, expected=f"0..{classes - 1}", came=came)
    plain = prediction
    if isinstance(prediction, MetaTensor):
        plain, affine = prediction.as_tensor(), prediction.affine if affine is None else affine
    if affine is None:
        raise ConfigError(f"{case.name}: a prediction without affine; pass affine= of the preprocessed image")
    source = torch.as_tensor(affine, dtype=torch.float64).cpu()
    header = read_header(case.images[0])
    # nibabel's checked copy gives the affine that the volume was loaded with; the raw header is what is written
    target = torch.as_tensor(np.array(type(header).from_header(header).get_best_affine()), dtype=torch.float64)
    shares = (to_grid(s, source, target, header.get_data_shape()[:3]) for s in _shares(plain, classes))
    if regions_class_order is None or not floating:
        labels, largest = _winner(shares, label_values), max(label_values)
    else:
        labels, largest = _written(shares, regions_class_order), max(regions_class_order)
    dtype = np.uint8 if largest <= 255 else np.uint16
    voxels = labels[0].cpu().numpy().astype(dtype)
    if clean is not None:
        voxels = clean(voxels, tuple(float(s) for s in nib.affines.voxel_sizes(target.numpy())))
    return write_like(path, voxels, header)
