# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The file ``samples.pt``: one training patch, and slices of what augmentation made of it over the epochs.

It holds tensors, numbers and strings. It names no case and no file, but it holds a piece of an image, as the pictures
of a run do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.data.batch import centre_crop
from monai_autoaug.errors import CheckpointError
from monai_autoaug.reading import MALFORMED, read_tensors
from monai_autoaug.writing import write_tensors

__all__ = ["STRUCTURES", "Kept", "Patch", "Shot", "planes", "read_samples", "write_samples"]

STRUCTURES = 8  # of a patch that are kept: a byte a voxel holds as many
_FORMAT, _VERSION = "monai_autoaug.samples", 1


@dataclass(frozen=True)
class Patch:
    """One training patch.

    Args:
        image: (C, D, H, W), normalised, with its margin; 2D is (C, H, W) throughout.
        label: (K, D, H, W) one-hot, background first, or one channel a region; structures that are not shown are 0.
        margin: voxels by which it is enlarged at each end of each axis.
        spacing: voxel size in mm.
        orientation: the directions in which the axes increase, as in nibabel; "": not known.
        structures: names of the channels, but for the background.
        regions: whether the label's channels are regions.
        cuts: the slice of each axis that shows most foreground, counted without the margin.
    """

    image: Tensor
    label: Tensor
    margin: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    structures: tuple[str, ...]
    regions: bool
    cuts: tuple[int, ...]

    @property
    def foreground(self) -> Tensor:
        """(structures, D, H, W) of the patch without its margin."""
        return centre_crop(self.label[None], self.margin)[0][0 if self.regions else 1 :]


@dataclass(frozen=True)
class Shot:
    """Slices of one transformed patch.

    Args:
        epoch: after which it was made, counted from 1.
        kind: name of the augmenter, or of the class whose policy drew.
        draw: its number; the random numbers of a draw are the same at all epochs.
        image: slices (H, W) of the first channel, one an axis (of 2D patches one).
        label: slices (structures, H, W) of the soft label, in [0, 1].
    """

    epoch: int
    kind: str
    draw: int
    image: tuple[Tensor, ...]
    label: tuple[Tensor, ...]


@dataclass(frozen=True)
class Kept:
    """What ``samples.pt`` holds.

    Args:
        patch: the patch.
        shots: by epoch.
    """

    patch: Patch
    shots: tuple[Shot, ...]


def planes(volume: Tensor, cuts: Sequence[int]) -> tuple[Tensor, ...]:
    """The slice of each axis of ``volume`` (..., D, H, W); of a 2D one the whole.

    >>> [tuple(p.shape) for p in planes(torch.zeros(2, 3, 4, 5), (0, 1, 2))]
    [(2, 4, 5), (2, 3, 5), (2, 3, 4)]
    """
    dims = len(cuts)
    if dims == 2:
        return (volume,)
    return tuple(volume.select(axis - dims, index) for axis, index in enumerate(cuts))


def write_samples(path: str | Path, kept: Kept) -> Path:
    """Write ``samples.pt``, whole or not at all.

    Args:
        path: the file.
        kept: what it shall hold.
    """
    return write_tensors(Path(path), _described(kept))


def _bits(label: Tensor, shown: Sequence[int]) -> Tensor:
    """Channels as bits of one byte."""
    return torch.stack([(label[k] > 0.5).byte() << bit for bit, k in enumerate(shown)]).sum(0, dtype=torch.uint8)


def _described(kept: Kept) -> dict[str, Any]:
    """Tensors, numbers and strings."""
    patch, first = kept.patch, 0 if kept.patch.regions else 1
    present = [k for k in range(first, len(patch.label)) if bool(patch.label[k].any())]
    return {
        "format": _FORMAT, "version": _VERSION,
        "patch": {
            "image": patch.image.half(), "label": _bits(patch.label, present), "shown": present,
            "channels": len(patch.label), "margin": list(patch.margin), "spacing": list(patch.spacing),
            "orientation": patch.orientation, "structures": list(patch.structures), "regions": patch.regions,
            "cuts": list(patch.cuts),
        },
        "shots": [
            {"epoch": s.epoch, "kind": s.kind, "draw": s.draw, "image": [p.half() for p in s.image],
             # only the structures that are in the patch; a byte is enough for a contour at one half
             "label": [(p[[k - first for k in present]] * 255).round().byte() for p in s.label]}
            for s in kept.shots
        ],
    }  # fmt: skip


def read_samples(path: str | Path) -> Kept:
    """Read ``samples.pt``, without pickle.

    Raises:
        CheckpointError: the file is missing, damaged or of another version.
    """
    try:
        content = read_tensors(path, finite=False)  # a picture of what has gone wrong is one, too
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise CheckpointError(f"{path}: holds no samples, or those of another version")
        return _built(content)
    except CheckpointError:
        raise
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(f"{path}: can't be read as samples ({type(error).__name__}: {error})") from error


def _built(content: dict[str, Any]) -> Kept:
    given = content["patch"]
    first = 0 if given["regions"] else 1
    label = torch.zeros(given["channels"], *given["label"].shape)
    for bit, k in enumerate(given["shown"]):
        label[k] = ((given["label"] >> bit) & 1).float()
    if first:
        label[0] = 1 - label[1:].amax(0)
    patch = Patch(
        given["image"].float(), label, tuple(given["margin"]), tuple(given["spacing"]), given["orientation"],
        tuple(given["structures"]), given["regions"], tuple(given["cuts"]),
    )  # fmt: skip

    def whole(part: Tensor) -> Tensor:
        """All structures again."""
        full = torch.zeros(given["channels"] - first, *part.shape[1:])
        full[[k - first for k in given["shown"]]] = part.float() / 255
        return full

    shots = tuple(
        Shot(s["epoch"], s["kind"], s["draw"], tuple(p.float() for p in s["image"]), tuple(map(whole, s["label"])))
        for s in content["shots"]
    )
    return Kept(patch, shots)
