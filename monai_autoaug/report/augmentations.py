# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The picture of what the augmentation does to one subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.report.slices import (
    LEAST_CHANGE,
    array,
    contours,
    grey_window,
    lattice,
    planes,
    scale_bar,
    show_slice,
    sides,
    sizes,
    slices,
    tint,
    tint_bar,
)
from monai_autoaug.report.style import (
    COLOURS,
    FAINT,
    GAP,
    LARGE,
    MEDIUM,
    SMALL,
    TEXT,
    UNMOVED,
    figure,
    key,
    key_height,
    place,
    save,
    structure_keys,
    write,
)

__all__ = ["Panel", "augmentation_figure"]

_COLUMN, _TALLEST = 2.12, 3.2  # inches: the widest and the highest panel


@dataclass(frozen=True)
class Panel:
    """One column of `augmentation_figure`.

    Args:
        title: such as "affine".
        image: (C, D, H, W); the first channel is drawn.
        label: (K, D, H, W) soft label, background first, on the same grid.
        grid: (D, H, W, 3) where each voxel was read from, in voxels; drawn as a warped lattice. Or None.
        caption: a line below the title, such as "rotation 11 degrees".
    """

    title: str
    image: Tensor
    label: Tensor
    grid: Tensor | None = None
    caption: str = ""


def augmentation_figure(
    panels: Sequence[Panel],
    path: str | Path,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Sequence[str] = (),
    orientation: str = "RAS",
) -> Path:
    """Draw one subject before and after each transformation: a column each, three planes, label contours, in mm.

    The first panel is the original. Where a label has moved, the original's contour is repeated, dashed, and a lattice
    shows how; where none has, colour shows what became brighter or darker, on one scale for all panels that reaches to
    one standard deviation at least, so that what an augmenter hardly changes looks like that.

    Args:
        panels: the original first; all of one size.
        path: a PNG file; missing folders are made.
        spacing: voxel size in mm, order D, H, W.
        classes: names of the structures (label channels 1 and up).
        orientation: the directions in which the axes increase, as in nibabel.

    Returns:
        ``path``.

    Raises:
        ConfigError: no panel, or panels that are not 3D volumes of one size.

    >>> import tempfile, torch
    >>> one = Panel("original", torch.rand(1, 8, 8, 8), torch.eye(2)[torch.ones(8, 8, 8, dtype=int)].movedim(-1, 0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     augmentation_figure([one], folder + "/a.png", classes=["organ"]).name
    'a.png'
    """
    shapes = {tuple(p.image.shape[1:]) for p in panels} | {tuple(p.label.shape[1:]) for p in panels}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ConfigError(f"a picture needs panels of one size (D, H, W), got {sorted(shapes)}")
    cuts = planes(orientation)
    widths, heights = sizes(shapes.pop(), spacing, cuts)
    scales = [min(_COLUMN / across, _TALLEST / up) for across, up in zip(widths, heights, strict=True)]  # inches a mm
    inches = [(across * s, up * s) for across, up, s in zip(widths, heights, scales, strict=True)]
    first = panels[0]
    moved = [p is not first and _moved(p, first) for p in panels]
    changes = [None if p is first or m else array(p.image - first.image)[0] for p, m in zip(panels, moved, strict=True)]
    largest = max([LEAST_CHANGE, *(float(np.abs(c).max()) for c in changes if c is not None)])
    names = classes or [f"structure {k}" for k in range(1, len(first.label))]
    keys = _keys([p for p, m in zip(panels, moved, strict=True) if m], names)
    left, top = 0.3, 0.68
    width = left + len(panels) * (_COLUMN + GAP)
    below = key_height(keys, width) + 0.12 + (0.92 if any(c is not None for c in changes) else 0)
    made = figure(width, top + sum(up for _, up in inches) + 2 * GAP + below)
    window, middle = grey_window(array(first.image)[0]), slices(array(first.label)[1:])
    for column, (panel, change) in enumerate(zip(panels, changes, strict=True)):
        start, above = left + column * (_COLUMN + GAP), top
        write(made, start + _COLUMN / 2, 0.12, panel.title, color=TEXT, fontsize=LARGE, fontweight="bold", ha="center")
        write(made, start + _COLUMN / 2, 0.42, panel.caption, color=FAINT, fontsize=SMALL, ha="center")
        for (axis, name), (across, up) in zip(cuts, inches, strict=True):
            axes = place(made, start + (_COLUMN - across) / 2, above, across, up)
            _draw_panel(axes, panel, first, axis, middle[axis], spacing, window)
            if change is not None:
                tint(axes, change, axis, middle[axis], spacing, largest)
            contours(axes, array(panel.label)[1:], axis, middle[axis], spacing, colours=COLOURS)
            if panel is first:
                sides(axes, axis, orientation)
                scale_bar(axes)
                write(made, 0.08, above + up / 2, name, color=FAINT, fontsize=MEDIUM, rotation=90, va="center")
            above += up + GAP
        if change is not None:
            tint_bar(place(made, start + 0.12 * _COLUMN, above + 0.04, 0.76 * _COLUMN, 0.1), largest)
    key(made, keys)
    return save(made, path)


def _moved(panel: Panel, original: Panel) -> bool:
    return float((panel.label - original.label).abs().max()) > 1e-3


def _keys(moved: Sequence[Panel], names: Sequence[str]) -> list[Line2D]:
    """What is to be explained, where these panels have a label that has moved."""
    keys = structure_keys(names)
    if moved:
        keys.append(Line2D([], [], label="before", **UNMOVED))
    if any(p.grid is not None for p in moved):
        keys.append(Line2D([], [], linewidth=1, color="#ffffff", alpha=0.4, label="moved grid"))
    return keys


def _draw_panel(
    axes: Axes,
    panel: Panel,
    original: Panel,
    axis: int,
    index: int,
    spacing: Sequence[float],
    window: tuple[float, float],
) -> None:
    """One plane of one panel; where the label has moved, with its former place."""
    show_slice(axes, array(panel.image)[0], axis, index, spacing, window)
    if panel is not original and _moved(panel, original):
        if panel.grid is not None:
            lattice(axes, array(panel.grid), axis, index, spacing)
        contours(axes, array(original.label)[1:], axis, index, spacing, colours=["#ffffff"], style="dashed", width=0.9)
