# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which way up slices are shown: in three planes, the patient's right, front and head to the right and to the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OPPOSITE", "Plane", "planes_of"]

Array = NDArray[Any]
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Plane:
    """How a slice is laid on the page.

    Args:
        name: "axial", "coronal", "sagittal" or, where that isn't known, which axis is cut.
        cut: the axis that is cut, counted from 0; None: the picture is 2D.
        swap: the slice's second axis runs across.
        flip_across: it is mirrored from left to right.
        flip_up: its rows are upside down.
        letters: the sides of the body at the right and the top edge; "": not known.
    """

    name: str
    cut: int | None
    swap: bool
    flip_across: bool
    flip_up: bool
    letters: str

    def laid(self, part: Array) -> Array:
        """A slice (..., n, m) as rows from the top and columns."""
        x = part if self.swap else np.swapaxes(part, -1, -2)
        x = x[..., ::-1] if self.flip_across else x
        return x[..., ::-1, :] if self.flip_up else x

    def spacing(self, given: Sequence[float]) -> tuple[float, float]:
        """Voxel size across and down in mm."""
        first, second = (s for axis, s in enumerate(given) if axis != self.cut)
        return (second, first) if self.swap else (first, second)


def planes_of(orientation: str, dims: int = 3) -> list[Plane]:
    """The planes of volumes whose axes increase in these directions, from the head down where that is known.

    Args:
        orientation: letters as in nibabel, or "".
        dims: 2 or 3.

    >>> [(p.name, p.cut, p.letters) for p in planes_of("RAS")]
    [('axial', 2, 'RA'), ('coronal', 1, 'RS'), ('sagittal', 0, 'AS')]
    >>> planes_of("SPL")[0]
    Plane(name='axial', cut=0, swap=True, flip_across=True, flip_up=False, letters='RA')
    """
    if len(orientation) != dims:
        names = ["slice"] if dims == 2 else [f"across {axis}" for axis in "DHW"]
        return [Plane(n, None if dims == 2 else k, True, False, False, "") for k, n in enumerate(names)]
    kinds = {frozenset("RA"): ("axial", 0), frozenset("RS"): ("coronal", 1), frozenset("AS"): ("sagittal", 2)}
    found: list[tuple[int, Plane]] = []
    for cut in [None] if dims == 2 else range(dims):
        left = [letter for axis, letter in enumerate(orientation) if axis != cut]
        towards = [letter if letter in "RAS" else OPPOSITE[letter] for letter in left]
        name, place = kinds[frozenset(towards)]
        swap = "RAS".index(towards[0]) > "RAS".index(towards[1])  # right before front before head runs across
        across, up = (1, 0) if swap else (0, 1)
        plane = Plane(
            name, cut, swap, left[across] != towards[across], left[up] == towards[up], towards[across] + towards[up]
        )
        found.append((place, plane))
    return [plane for _, plane in sorted(found, key=lambda pair: pair[0])]
