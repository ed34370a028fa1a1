# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where the classes of a case are: voxel positions, of which a patch centre is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Locations", "find_locations"]

MOST = 10_000  # positions kept a class


@dataclass(frozen=True)
class Locations:
    """Positions (n, axes) of the voxels of each class (or region) that is present, and of voxels with a known label.

    Args:
        classes: one array a class that has voxels.
        known: positions whose label is known, where there is an ignore label; else None.
    """

    classes: tuple[NDArray[np.int32], ...]
    known: NDArray[np.int32] | None = None

    def draw(self, foreground: bool, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """A voxel of a random class if ``foreground`` and there is any, else a known voxel; None: anywhere.

        Args:
            foreground: whether a class is wanted.
            rng: draws the class, then the voxel.
        """
        voxels = self.known
        if foreground and self.classes:
            voxels = self.classes[int(rng.integers(len(self.classes)))]
        if voxels is None or not len(voxels):
            return None
        return voxels[int(rng.integers(len(voxels)))].astype(np.int64)


def _some(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int32]:
    """At most `MOST` positions of the true voxels."""
    index = np.flatnonzero(mask)
    if len(index) > MOST:
        index = rng.choice(index, MOST, replace=False, shuffle=False)
    return np.stack(np.unravel_index(index, mask.shape), axis=1).astype(np.int32)


def find_locations(
    label: NDArray[Any], groups: Sequence[Sequence[int]], ignore_label: int | None, seed: np.random.SeedSequence
) -> Locations:
    """Find the positions of each group of label values.

    Args:
        label: (D, H, W) integers.
        groups: the label values of each class or region.
        ignore_label: the value of voxels whose label is unknown, or None.
        seed: which positions are kept where there are very many.

    >>> label = np.zeros((4, 4, 4), int)
    >>> label[1, 2, 3] = 2
    >>> find_locations(label, [(1,), (2,)], None, np.random.SeedSequence(0)).classes
    (array([[1, 2, 3]], dtype=int32),)
    """
    rng = np.random.default_rng(seed)
    found = (_some(label == g[0] if len(g) == 1 else np.isin(label, list(g)), rng) for g in groups)
    classes = tuple(positions for positions in found if len(positions))
    known = None if ignore_label is None else _some(label != ignore_label, rng)
    return Locations(classes, known)
