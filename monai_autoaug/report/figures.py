# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures of volumes: what the augmentation does, and what the network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.report.style import (
    BACKGROUND,
    BRIGHTER,
    COLOURS,
    DARKER,
    FAINT,
    PLANES,
    TEXT,
    contours,
    extent,
    figure,
    plane,
    save,
    show_slice,
    tint,
)

__all__ = ["Panel", "PredictionRow", "augmentation_figure", "prediction_figure"]

Array = NDArray[np.float64]
_GRID_STEP = 6.0  # voxels between the lines that show a deformation
_PANEL = 2.5  # inches
_KEYS = (
    Line2D([], [], color="#ffffff", linewidth=1, linestyle="dashed", label="before"),
    Line2D([], [], color=BRIGHTER, linewidth=7, alpha=0.6, label="brighter"),
    Line2D([], [], color=DARKER, linewidth=7, alpha=0.6, label="darker"),
)


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


@dataclass(frozen=True)
class PredictionRow:
    """One row of `prediction_figure`.

    Args:
        title: the case.
        image: (C, D, H, W).
        reference: (D, H, W) label values, or None.
        prediction: (D, H, W) label values.
        spacing: voxel size in mm.
        caption: such as "Dice 0.91".
    """

    title: str
    image: Tensor
    reference: Tensor | None
    prediction: Tensor
    spacing: tuple[float, ...]
    caption: str = ""


def _array(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy()


def _window(volume: Array) -> tuple[float, float]:
    """Black and white of a volume: its 1st and 99.8th percentile."""
    low, high = np.percentile(volume, [1, 99.8])
    return float(low), float(max(high, low + 1e-6))


def _middle(label: Array) -> tuple[int, ...]:
    """The slices that show most of a soft label (K, D, H, W) of structures, one index an axis."""
    total = label.sum(0)
    if total.max() <= 0:
        return tuple(n // 2 for n in total.shape)
    return tuple(int(total.sum(tuple(j for j in range(total.ndim) if j != i)).argmax()) for i in range(total.ndim))


def _heights(shape: Sequence[int], spacing: Sequence[float]) -> list[float]:
    """Height over width of each plane's slice."""
    boxes = [extent(shape, axis, spacing) for axis, _ in PLANES]
    return [top / right for _, right, _, top in boxes]


def _legend(made: Figure, names: Sequence[str], more: Sequence[Line2D] = (), *, y: float) -> None:
    """Names and colours of the structures in one line at the bottom."""
    lines = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2.2, label=n) for k, n in enumerate(names)]
    lines += more
    made.legend(
        handles=lines, loc="center", bbox_to_anchor=(0.5, y), ncols=min(len(lines), 8), frameon=False,
        labelcolor=TEXT, fontsize=10.5, handlelength=1.8, columnspacing=1.8,
    )  # fmt: skip


def _lattice(axes: Axes, grid: Array, axis: int, index: int, spacing: Sequence[float]) -> None:
    """Draw a regular lattice of the original volume where the transformation takes it."""
    across, up = (s for i, s in enumerate(spacing) if i != axis)
    for component in (i for i in range(3) if i != axis):
        cut = plane(grid[..., component], axis, index)
        low, high = np.ceil(cut.min() / _GRID_STEP), np.floor(cut.max() / _GRID_STEP)
        rows, columns = cut.shape
        axes.contour(
            (np.arange(columns) + 0.5) * across, (np.arange(rows) + 0.5) * up, cut,
            levels=np.arange(low, high + 1) * _GRID_STEP, colors=["#ffffff"], linewidths=0.7, linestyles="solid",
            alpha=0.28,
        )  # fmt: skip


def augmentation_figure(
    panels: Sequence[Panel],
    path: str | Path,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Sequence[str] = (),
) -> Path:
    """Draw one subject before and after each transformation: a column each, three planes, label contours, in mm.

    The first panel is the original. Where a label has moved, the original's contour is repeated, dashed, and a lattice
    shows how; where none has, colour shows what became brighter or darker.

    Args:
        panels: the original first; all of one size.
        path: a PNG file; missing folders are made.
        spacing: voxel size in mm, order D, H, W.
        classes: names of the structures (label channels 1 and up).

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
    ratios = _heights(shapes.pop(), spacing)
    left, gap, top, bottom = 0.3, 0.06, 0.72, 0.46  # inches
    width, height = left + len(panels) * (_PANEL + gap), _PANEL * sum(ratios) + 2 * gap + top + bottom
    made = figure(width, height)
    places = made.add_gridspec(
        3, len(panels), height_ratios=ratios, hspace=0.02, wspace=gap / _PANEL, left=left / width,
        right=1 - gap / width, top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    window = _window(_array(panels[0].image)[0])
    for column, panel in enumerate(panels):
        for row, (axis, name) in enumerate(PLANES):
            axes = made.add_subplot(places[row, column])
            _draw_panel(axes, panel, panels[0], axis, spacing, window)
            if column == 0:
                axes.set_ylabel(name, color=FAINT, fontsize=10.5, labelpad=5)
            if row == 0:
                place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "bottom"}
                axes.text(0.5, 1.135, panel.title, color=TEXT, fontsize=14, fontweight="bold", **place)
                axes.text(0.5, 1.035, panel.caption, color=FAINT, fontsize=9.5, **place)
    names = classes or [f"structure {k}" for k in range(1, len(panels[0].label))]
    _legend(made, names, _KEYS if len(panels) > 1 else (), y=bottom / 2 / height)
    return save(made, path)


def _draw_panel(
    axes: Axes, panel: Panel, original: Panel, axis: int, spacing: Sequence[float], window: tuple[float, float]
) -> None:
    """One plane of one panel, cut where the original's label is largest."""
    image, label = _array(panel.image)[0], _array(panel.label)[1:]
    first, first_label = _array(original.image)[0], _array(original.label)[1:]
    index = _middle(first_label)[axis]
    show_slice(axes, image, axis, index, spacing, window)
    if panel is not original and np.abs(label - first_label).max(initial=0) > 1e-3:
        if panel.grid is not None:
            _lattice(axes, _array(panel.grid), axis, index, spacing)
        contours(axes, first_label, axis, index, spacing, colours=["#ffffff"], style="dashed", width=0.9)
    elif panel is not original:
        tint(axes, image - first, axis, index, spacing, colours=(DARKER, BRIGHTER))
    contours(axes, label, axis, index, spacing, colours=COLOURS)


def prediction_figure(rows: Sequence[PredictionRow], path: str | Path, *, classes: dict[str, int]) -> Path:
    """Draw predictions (lines) over their images, and the reference labels dashed, in three planes.

    Args:
        rows: the cases; each is drawn to its own scale.
        path: a PNG file.
        classes: structure -> label value.

    Returns:
        ``path``.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not rows:
        raise ConfigError("a picture of predictions needs at least one case")
    left, gap, bottom, header = 0.1, 0.06, 0.46, 0.4
    sizes = [max(_heights(r.prediction.shape, r.spacing)) * _PANEL for r in rows]
    height, width = sum(sizes) + header * len(rows) + bottom, left + 3 * (_PANEL + gap)
    made = figure(width, height)
    above = 0.0
    for row, size in zip(rows, sizes, strict=True):
        above += header
        image, values = _array(row.image)[0], row.prediction.cpu().numpy()
        truth = None if row.reference is None else row.reference.cpu().numpy()
        drawn = np.stack([values == v for v in classes.values()]).astype(float)
        wanted = None if truth is None else np.stack([truth == v for v in classes.values()]).astype(float)
        middle, window = _middle(drawn if wanted is None or not wanted.any() else wanted), _window(image)
        made.text(left / width, 1 - (above - 0.14) / height, row.title, color=TEXT, fontsize=12, fontweight="bold")
        made.text(1 - gap / width, 1 - (above - 0.14) / height, row.caption, color=FAINT, fontsize=10.5, ha="right")
        for column, (axis, _) in enumerate(PLANES):
            x = left + column * (_PANEL + gap)
            axes = made.add_axes((x / width, 1 - (above + size) / height, _PANEL / width, size / height))
            axes.set_facecolor(BACKGROUND)
            show_slice(axes, image, axis, middle[axis], row.spacing, window)
            axes.set_anchor("C")
            if wanted is not None:
                contours(
                    axes, wanted, axis, middle[axis], row.spacing, colours=["#ffffff"], style="dashed", width=1.1
                )
            contours(axes, drawn, axis, middle[axis], row.spacing, colours=COLOURS)
        above += size
    key = Line2D([], [], color="#ffffff", linewidth=1.1, linestyle="dashed", label="reference")
    _legend(made, list(classes), [key] if any(r.reference is not None for r in rows) else [], y=bottom / 2 / height)
    return save(made, path)
