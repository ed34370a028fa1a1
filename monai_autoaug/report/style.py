# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How all pictures look, and slices of volumes drawn to scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from monai_autoaug.errors import ConfigError
from monai_autoaug.writing import write_whole

__all__ = [
    "BACKGROUND", "BRIGHTER", "COLOURS", "DARKER", "FAINT", "PLANES", "TEXT", "bare", "contours", "extent", "figure",
    "plane", "save", "show_slice", "tint",
]  # fmt: skip

BACKGROUND, TEXT, FAINT = "#0e1116", "#e8eaed", "#8b949e"
# told apart on grey images, also by people with a colour vision deficiency
COLOURS = ("#ffb000", "#22c7f0", "#ff4f81", "#8be04e", "#c58bff", "#ff7f32", "#4dd9b0", "#f4e04d")
BRIGHTER, DARKER = "#ff6b4a", "#3f8cff"
# of volumes in RAS orientation: the axis that is cut, and what the plane is called
PLANES = ((2, "axial"), (1, "coronal"), (0, "sagittal"))
Array = NDArray[np.float64]


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches that is drawn without a display and without matplotlib's global state."""
    made = Figure(figsize=(width, height), dpi=110, facecolor=BACKGROUND)
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: str | Path) -> Path:
    """Write a PNG picture; missing folders are made.

    Raises:
        ConfigError: the name doesn't end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"pictures are PNG files, but {path} has another ending")
    options: dict[str, Any] = {"facecolor": made.get_facecolor(), "metadata": {"Software": "monai_autoaug"}}
    return write_whole(path, lambda file: made.savefig(file, format="png", **options))


def bare(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plane(volume: Array, axis: int, index: int) -> Array:
    """The slice of ``volume`` (D, H, W) at ``index`` of ``axis``, as rows and columns of a picture."""
    return np.take(volume, index, axis=axis).T


def extent(shape: Sequence[int], axis: int, spacing: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a slice in mm, so that anisotropic voxels are drawn to scale."""
    width, height = (n * s for i, (n, s) in enumerate(zip(shape, spacing, strict=True)) if i != axis)
    return 0.0, width, 0.0, height


def show_slice(
    axes: Axes, volume: Array, axis: int, index: int, spacing: Sequence[float], window: tuple[float, float]
) -> None:
    """Draw one slice in grey values, in mm, the second axis upwards (in RAS: front or head up).

    Args:
        axes: where.
        volume: (D, H, W).
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
        window: the values drawn black and white.
    """
    axes.imshow(
        plane(volume, axis, index), cmap="gray", vmin=window[0], vmax=window[1], origin="lower",
        extent=extent(volume.shape, axis, spacing), interpolation="bicubic", aspect="equal",
    )  # fmt: skip
    bare(axes)


def tint(
    axes: Axes, change: Array, axis: int, index: int, spacing: Sequence[float], *, colours: tuple[str, str]
) -> None:
    """Lay colour over a slice where ``change`` (D, H, W) is negative (first colour) or positive (second).

    Args:
        axes: where a slice of the same shape is drawn.
        change: the largest absolute value is drawn at 60 % opacity, the others in proportion.
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
        colours: of less and of more.
    """
    cut = plane(change, axis, index) / max(float(np.abs(change).max()), 1e-12)
    rgba = np.empty((*cut.shape, 4))
    rgba[..., :3] = np.where(cut[..., None] < 0, to_rgb(colours[0]), to_rgb(colours[1]))
    rgba[..., 3] = 0.6 * np.abs(cut)
    box = extent(change.shape, axis, spacing)
    axes.imshow(rgba, origin="lower", extent=box, interpolation="bilinear", aspect="equal")


def contours(
    axes: Axes,
    label: Array,
    axis: int,
    index: int,
    spacing: Sequence[float],
    *,
    colours: Sequence[str],
    style: str = "solid",
    width: float = 1.8,
) -> None:
    """Draw where each channel of a soft label (K, D, H, W) crosses one half.

    Args:
        axes: where a slice of the same shape is drawn.
        label: one channel a structure, without background.
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
        colours: one a structure, used again from the beginning where there are more structures.
        style: matplotlib's line style.
        width: of the line in points.
    """
    for k, channel in enumerate(label):
        cut = plane(channel, axis, index)
        if cut.max() <= 0.5 or cut.min() >= 0.5:
            continue
        across, up = (s for i, s in enumerate(spacing) if i != axis)
        rows, columns = cut.shape
        axes.contour(
            (np.arange(columns) + 0.5) * across, (np.arange(rows) + 0.5) * up, cut, levels=[0.5],
            colors=[colours[k % len(colours)]], linewidths=width, linestyles=style,
        )  # fmt: skip
