# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The patch that a run has kept, as it was and as a transformation leaves it, in slices with contours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug.data.batch import centre_crop
from monai_autoaug.methods.sample_file import Patch, planes
from monai_autoaug.report.measure import displacement_mm
from monai_autoaug.report.planes import planes_of
from monai_autoaug.report.raster import heat, tinted
from monai_autoaug.report.slices import grey_window
from monai_autoaug.report.strips import Layer, Strip, strip

__all__ = ["Change", "Stage"]

Slices = tuple[NDArray[Any], ...]
_LEAST_SD, _LEAST_MM = 0.25, 0.5  # what the strongest colour of a change means at least
_LATTICE = 10  # lines of a lattice across a patch, about


@dataclass(frozen=True)
class Change:
    """What has changed, as colours over the slices.

    Args:
        strip: the picture.
        words: what the colours are of.
        scale: what they mean: lowest, middle (or "") and highest.
        kind: "tint" (darker, brighter) or "heat" (from nothing).
    """

    strip: Strip
    words: str
    scale: tuple[str, str, str]
    kind: str


class Stage:
    """The patch that everything is shown on.

    Args:
        patch: that a run has kept.
    """

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.planes = planes_of(patch.orientation, len(patch.spacing))
        inner = centre_crop(patch.image[None], patch.margin)[0, 0]
        self.window = grey_window(inner.double().numpy())
        self.image, self.label = self.cut(inner), self.cut(patch.foreground)
        self.first = 0 if patch.regions else 1
        self.outside = (0.0,) * len(patch.label) if patch.regions else None

    def cut(self, volume: Tensor) -> Slices:
        """Slices of a volume (..., D, H, W), as many as there are axes (of 2D one)."""
        return tuple(p.double().numpy() for p in planes(volume, self.patch.cuts))

    def before(self) -> Strip:
        """The patch as it was."""
        return self.strip(self.image, [Layer.of_label(self.label)], "before")

    def strip(self, image: Slices, layers: Sequence[Layer], what: str, over: Slices = ()) -> Strip:
        """Slices with lines over them."""
        names = ", ".join(self.shown)
        cuts = ", ".join(plane.name for plane in self.planes)
        alt = f"{cuts} slices of a training patch, {what}; contours: {names or 'none'}"
        return strip(self.planes, image, self.patch.spacing, self.window, layers=layers, over=over, alt=alt)

    @property
    def shown(self) -> list[str]:
        """Names of the structures that the patch has."""
        present = self.patch.foreground.flatten(1).any(1).tolist()
        return [name for name, there in zip(self.patch.structures, present, strict=False) if there]

    def after(self, image: Tensor, soft: Tensor, grid: Tensor | None, what: str) -> tuple[Strip, tuple[Change, ...]]:
        """The patch after a transformation, and what it changed.

        Args:
            image: (C, D, H, W) without margin.
            soft: (K, D, H, W) soft label.
            grid: (D, H, W, 3) where each voxel was read from, centred; None: nothing is known to have moved.
            what: words.
        """
        cut, label = self.cut(image[0]), self.cut(soft[self.first :])
        moved = float((soft[self.first :] - self.patch.foreground).abs().max()) > 1e-3
        layers = [self.lattice(grid)] if grid is not None else []
        layers += [Layer.of_label(self.label, white=True)] if moved else []
        shown = self.strip(cut, [*layers, Layer.of_label(label)], what)
        if grid is not None:
            return shown, (self._moved(grid, what),)
        return shown, () if moved else (self._changed(cut, what),)

    def _moved(self, grid: Tensor, what: str) -> Change:
        """How far voxels are moved."""
        length = displacement_mm(grid[None], self.patch.spacing)[0]
        largest = max(float(length[torch.isfinite(length)].max()), _LEAST_MM)
        over = tuple(heat(np.nan_to_num(part), largest) for part in self.cut(length))
        drawn = self.strip(self.image, [Layer.of_label(self.label)], f"displacement by {what}", over)
        return Change(drawn, "displacement", ("0", "", f"{largest:.2g} mm"), "heat")

    def _changed(self, cut: Slices, what: str) -> Change:
        """What became darker and brighter."""
        change = [a - b for a, b in zip(cut, self.image, strict=True)]
        largest = max(float(np.percentile(np.abs(np.concatenate([c.ravel() for c in change])), 99.5)), _LEAST_SD)
        over = tuple(tinted(part, largest) for part in change)
        drawn = self.strip(self.image, [], f"change of intensity by {what}", over)
        scale = f"\N{MINUS SIGN}{largest:.2g} SD", "0", f"+{largest:.2g} SD"
        return Change(drawn, "change of intensity", scale, "tint")

    def lattice(self, grid: Tensor) -> Layer:
        """A regular lattice of the original where a transformation takes it."""
        dims = grid.shape[-1]
        step = max(4, round(max(grid.shape[:-1]) / _LATTICE))
        fields: list[list[NDArray[Any]]] = [[] for _ in self.image]
        levels: list[list[list[float]]] = [[] for _ in self.image]
        for component in range(dims):
            for k, part in enumerate(self.cut(grid[..., component])):
                if dims == 3 and k == component:
                    continue
                fields[k].append(part)
                known = part[np.isfinite(part)]
                ends = np.ceil(known.min() / step), np.floor(known.max() / step)
                levels[k].append([float(n) * step for n in np.arange(ends[0], ends[1] + 1)])
        return Layer(fields, levels, ["#ffffff"], 0.8, opacity=0.32, rim=False)
