# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which policy a patch belongs to: the class of its centre, or the one that it was cut for.

The two differ where the centre was moved into the volume, or lies on another voxel after cropping; the paper's code
takes the latter. A patch that covers most of a volume has no class worth the name: one policy for all fits it better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError

__all__ = ["Shares", "class_at_centre", "patch_classes", "policy_index"]

_RARE = 0.02  # share of the patches below which a class is told to be rare
_FEW = 100  # patches below which nothing is said of shares


def class_at_centre(label: Tensor, *, regions: bool = False, valid: Tensor | None = None) -> Tensor:
    """The class of each patch's central voxel, at ``size // 2`` along each axis.

    Args:
        label: (B, K, D, H, W) one-hot with the background first, or one channel a region; with or without margin, if
            that is as large at both ends.
        regions: the channels are regions, which may overlap; the class is then that of the last region the voxel is in,
            counted from 1, and 0 outside all of them.
        valid: (B, 1, D, H, W), 0 where the label is unknown: background.

    Returns:
        (B,) int64.

    >>> label = torch.zeros(2, 3, 5, 5, 5); label[:, 0] = 1
    >>> label[1, :, 2, 2, 2] = torch.tensor([0.0, 0.0, 1.0])
    >>> class_at_centre(label)
    tensor([0, 2])
    """
    at = _centre(label)
    if regions:
        order = torch.arange(1, at.shape[1] + 1, device=at.device)
        found = torch.where(at >= 0.5, order, 0).amax(1)
    else:
        found = at.argmax(1)
    return found if valid is None else torch.where(_centre(valid)[:, 0] >= 0.5, found, 0)


def _centre(x: Tensor) -> Tensor:
    """The central voxel's channels, (B, K)."""
    for size in x.shape[2:]:
        x = x.select(2, size // 2)
    return x


def policy_index(values: Tensor, classes: Sequence[str]) -> Tensor:
    """Places among a policy's classes of patches of these label values.

    One class is for all patches; ("background", "foreground") tells no foreground labels apart; otherwise there is a
    class for each label value.

    Args:
        values: (B,) int64 label values, 0 being background.
        classes: names of the policy's classes.

    Raises:
        ConfigError: a label value has no class.

    >>> policy_index(torch.tensor([0, 1, 3]), ("background", "foreground"))
    tensor([0, 1, 1])
    """
    if len(classes) == 1:
        return torch.zeros_like(values)
    if tuple(classes) == ("background", "foreground"):
        return (values != 0).long()
    largest = int(values.max()) if len(values) else 0
    if largest >= len(classes) or (len(values) and int(values.min()) < 0):
        raise ConfigError(
            f"the policy has {len(classes)} classes ({', '.join(classes)}), one for each label value from 0 on, and a"
            f" patch of label {largest}; give a name for each label, or the classes background and foreground"
        )
    return values


def patch_classes(
    batch: Batch, classes: Sequence[str], *, class_of: Literal["centre", "sampled"] = "centre", regions: bool = False
) -> Tensor:
    """The place among a policy's classes of every patch of a batch.

    Args:
        batch: patches, with or without margin.
        classes: names of the policy's classes.
        class_of: the "centre" of the patch as it is, or what it was "sampled" for, which the host puts into
            ``batch.classes``.
        regions: the label's channels are regions.

    Returns:
        (B,) int64.

    Raises:
        ConfigError: the host doesn't say what patches were sampled for, or a label value has no class.

    >>> batch = Batch(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), classes=torch.tensor([3]))
    >>> both = ("background", "foreground")
    >>> [int(patch_classes(batch, both, class_of=c)) for c in ("centre", "sampled")]
    [0, 1]
    """
    if class_of not in ("centre", "sampled"):
        raise ConfigError(f"class_of must be 'centre' or 'sampled', got {class_of!r}")
    if class_of == "centre":
        return policy_index(class_at_centre(batch.label, regions=regions, valid=batch.valid), classes)
    if batch.classes is None:
        raise ConfigError("class_of='sampled': the batch doesn't say what its patches were sampled for; use 'centre'")
    return policy_index(batch.classes, classes)


class Shares:
    """How many patches of an epoch were of each class.

    Args:
        classes: names of the policy's classes.
        device: where indices are; they are counted there and fetched once an epoch.

    >>> shares = Shares(("background", "foreground"))
    >>> shares.add(torch.tensor([1, 1, 1, 0]))
    >>> shares.take()
    {'share_background': 0.25, 'share_foreground': 0.75}
    """

    def __init__(self, classes: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.classes = tuple(classes)
        self._counts = torch.zeros(len(classes), dtype=torch.long, device=device)
        self._rare: list[str] = []

    def add(self, indices: Tensor) -> None:
        """Count the patches of a batch, (B,) int64 places among the classes."""
        self._counts += torch.bincount(indices.to(self._counts.device), minlength=len(self.classes))

    def take(self) -> dict[str, float]:
        """Shares since the last call; empty where there is one class, or no patch."""
        counts, total = self._counts.tolist(), int(self._counts.sum())
        self._counts.zero_()
        if len(counts) < 2 or not total:
            return {}
        self._rare = [c for c, n in zip(self.classes, counts, strict=True) if n < _RARE * total and total >= _FEW]
        return {f"share_{c}": n / total for c, n in zip(self.classes, counts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Patches since the last call of `take`, and what it found."""
        return {"counts": self._counts.tolist(), "rare": list(self._rare)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._counts.copy_(torch.tensor(state["counts"]))
        self._rare = list(state["rare"])

    def warnings(self) -> list[str]:
        """That hardly any patch was of a class, when ``take`` was last called."""
        if not self._rare:
            return []
        return [
            f"hardly any patch is of class {', '.join(self._rare)}, so that its policy can't be learned; take smaller"
            " patches, one policy for all (classes: all), or, where patches are nearly as large as the image, a"
            " loss_region of 0.5"
        ]
