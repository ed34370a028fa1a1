# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Connected components of a label map, of which small ones are taken for errors and removed.

A few voxels far away from the rest hardly change Dice but decide a distance such as HD95. So paper 002 (section V)
compares distances after post-processing by components. It is a choice that has to be made on other cases than those
that are told of: a structure that has several parts loses all but one of them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.transforms.post.array import KeepLargestConnectedComponent, RemoveSmallObjects
from numpy.typing import NDArray

from monai_autoaug.errors import ConfigError

__all__ = ["Components"]

Structure = int | tuple[int, ...]


@dataclass(frozen=True)
class Components:
    """Which connected components of every foreground structure stay; all others become background.

    Args:
        largest: the largest one alone.
        share: those of at least this share of the structure's voxels in the image, 0 to 1.
        volume: those of at least so many mm3.
        connectivity: voxels that touch by a face (1), an edge (2) or a corner (3) belong together; None: by a corner.

    Raises:
        ConfigError: a number is out of range, or every component would stay.

    >>> labels = np.zeros((1, 3, 8), np.uint8); labels[0, 1, :3] = labels[0, 1, 5] = 1
    >>> Components(largest=True)(labels)[0, 1].tolist(), str(Components(volume=2.0))
    ([1, 1, 1, 0, 0, 0, 0, 0], '2 mm3')
    """

    largest: bool = False
    share: float = 0.0
    volume: float = 0.0
    connectivity: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.volume < math.inf:
            raise ConfigError(f"components: share must be in [0, 1] and volume at least 0, got {self}")
        if self.connectivity not in (None, 1, 2, 3):
            raise ConfigError(f"components: connectivity must be 1, 2, 3 or None, got {self.connectivity}")
        if not (self.largest or self.share or self.volume):
            raise ConfigError("components: give largest, share or volume; otherwise all of them stay")

    @classmethod
    def parse(cls, text: str) -> Components:
        """What a command's option says: "largest", "10%" of the structure, or "500mm3".

        Raises:
            ConfigError: it says something else.

        >>> Components.parse("10%"), Components.parse("500 mm3").volume
        (Components(largest=False, share=0.1, volume=0.0, connectivity=None), 500.0)
        """
        if text == "largest":
            return cls(largest=True)
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%|mm3)", text)
        if found is None:
            known = "largest, a share such as 10%, or a volume such as 500mm3"
            raise ConfigError(f"components must be {known}, got {text!r}")
        number = float(found[1])
        return cls(share=number / 100) if found[2] == "%" else cls(volume=number)

    def __str__(self) -> str:
        words = ["largest"] * self.largest
        words += [f"{100 * self.share:g}%"] if self.share else []
        words += [f"{self.volume:g} mm3"] if self.volume else []
        return ", ".join(words)

    def __call__(
        self, labels: NDArray[Any], spacing: Sequence[float] = (), structures: Sequence[Structure] | None = None
    ) -> NDArray[Any]:
        """A label map without the components that are to go.

        Args:
            labels: (D, H, W) or (H, W) label values, 0 the background; it is left as it is.
            spacing: voxel size in mm along the same axes; needed for volumes.
            structures: label values, or several that make up one (a region), in the order in which they are looked at;
                None: every value that there is.

        Returns:
            A new array of the same kind.

        Raises:
            ConfigError: volumes are asked for, and there is no spacing.
        """
        if self.volume and len(spacing) != labels.ndim:
            raise ConfigError(
                f"components by volume need the voxel size along {labels.ndim} axes, got {tuple(spacing)}"
            )
        result: NDArray[Any] = labels.copy()
        for structure in np.unique(labels[labels != 0]).tolist() if structures is None else structures:
            mask = np.isin(result, structure)
            if mask.any():
                result[mask & ~self._kept(mask, spacing)] = 0
        return result

    def _kept(self, mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
        """The components of a mask that stay."""
        connectivity = min(self.connectivity or 3, mask.ndim)
        kept = mask
        voxels = max(self.share * int(mask.sum()), self.volume / math.prod(spacing) if self.volume else 0.0)
        least = math.ceil(voxels - 1e-6)  # a volume of exactly so many voxels stays, however it is rounded
        if least > mask.sum():
            return np.zeros_like(mask)
        if least > 1 and not mask.all():  # MONAI leaves a mask of one value as it is
            with warnings.catch_warnings():
                # scikit-image has renamed the argument by which MONAI calls it
                warnings.filterwarnings("ignore", message=".*min_size.*", category=FutureWarning)
                # half a voxel less, because from its version 0.26 on the size itself is removed, too
                remove: Any = RemoveSmallObjects(least - 0.5, connectivity)  # type: ignore[arg-type]  # not only int
                kept = np.asarray(remove(kept[None].astype(np.uint8))[0]) > 0
        if self.largest:
            keep = KeepLargestConnectedComponent(applied_labels=1, is_onehot=False, connectivity=connectivity)
            kept = np.asarray(keep(kept[None].astype(np.uint8))[0]) > 0
        return kept
