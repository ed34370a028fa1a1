# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Slices of volumes drawn to scale, with contours, sides of the body and a bar in mm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_autoaug.report.style import BACKGROUND, BRIGHTER, DARKER, FAINT, SMALL

__all__ = [
    "LEAST_CHANGE", "array", "contours", "extent", "fills", "grey_window", "lattice", "plane", "planes", "scale_bar",
    "show_slice", "sides", "sizes", "slices", "tint", "tint_bar",
]  # fmt: skip

Array = NDArray[np.float64]
Label = NDArray[np.float64] | NDArray[np.bool_]
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_GRID_STEP = 6.0  # voxels between the lines that show a deformation
LEAST_CHANGE = 1.0  # standard deviations: the least that is drawn in the strongest colour
_FILL = 0.3  # how much of a colour is laid over an image
_SEEN = 0.25  # of a structure's largest cross-section: a slice with less hardly shows it
_ON_IMAGE: dict[str, Any] = {
    "color": "#ffffff", "fontsize": SMALL, "path_effects": [withStroke(linewidth=2.2, foreground=BACKGROUND)],
}  # fmt: skip


def planes(orientation: str = "RAS") -> list[tuple[int, str]]:
    """The axis that is cut and the plane's name, from the head down: axial, coronal, sagittal.

    >>> planes("RAS"), planes("ASL")
    ([(2, 'axial'), (1, 'coronal'), (0, 'sagittal')], [(1, 'axial'), (0, 'coronal'), (2, 'sagittal')])
    """
    axis = {pair: i for i, letter in enumerate(orientation) for pair in ("SI", "AP", "RL") if letter in pair}
    return [(axis["SI"], "axial"), (axis["AP"], "coronal"), (axis["RL"], "sagittal")]


def slices(label: Label) -> tuple[int, ...]:
    """The slice of each axis that shows most structures, and of those the one that shows most of them all.

    Args:
        label: (K, D, H, W), a channel a structure, without background.

    Returns:
        One index an axis; the middle where there is no structure.
    """
    found = []
    for axis in range(1, label.ndim):
        areas = label.sum(tuple(j for j in range(1, label.ndim) if j != axis))
        areas = areas[areas.max(1) > 0]
        if not len(areas):
            found.append(label.shape[axis] // 2)
            continue
        seen, area = (areas >= _SEEN * areas.max(1, keepdims=True)).sum(0), areas.sum(0)
        found.append(int(np.lexsort((-area, -seen))[0]))
    return tuple(found)


def array(x: Tensor) -> Array:
    """A tensor for matplotlib."""
    return x.detach().cpu().double().numpy()


def grey_window(volume: Array) -> tuple[float, float]:
    """Black and white of a volume: its 1st and 99.8th percentile."""
    low, high = np.percentile(volume, [1, 99.8])
    return float(low), float(max(high, low + 1e-6))


def sizes(
    shape: Sequence[int], spacing: Sequence[float], axes: Sequence[tuple[int, str]]
) -> tuple[list[float], list[float]]:
    """Widths and heights of the planes' slices in mm."""
    boxes = [extent(shape, axis, spacing) for axis, _ in axes]
    return [right for _, right, _, _ in boxes], [top for *_, top in boxes]


def _bare(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plane(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """The slice of ``volume`` (D, H, W) at ``index`` of ``axis``, as rows and columns of a picture."""
    return np.take(volume, index, axis=axis).T


def extent(shape: Sequence[int], axis: int, spacing: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a slice in mm, so that anisotropic voxels are drawn to scale."""
    width, height = (n * s for i, (n, s) in enumerate(zip(shape, spacing, strict=True)) if i != axis)
    return 0.0, width, 0.0, height


def _lay(axes: Axes, volume: Array, axis: int, index: int, spacing: Sequence[float], **look: Any) -> None:
    """Draw one slice in mm, the second axis upwards."""
    axes.imshow(
        plane(volume, axis, index), origin="lower", extent=extent(volume.shape, axis, spacing), aspect="equal", **look
    )


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
    _lay(axes, volume, axis, index, spacing, interpolation="bicubic", cmap="gray", vmin=window[0], vmax=window[1])
    _bare(axes)


def sides(axes: Axes, axis: int, orientation: str) -> None:
    """Write which side of the body lies at each edge of a slice: R, L, A, P, S or I."""
    right, top = (letter for i, letter in enumerate(orientation) if i != axis)
    aligned = {0.0: ("left", "bottom"), 0.5: ("center", "center"), 1.0: ("right", "top")}
    for x, y, letter in ((0.0, 0.5, _OPPOSITE[right]), (1.0, 0.5, right), (0.5, 0.0, _OPPOSITE[top]), (0.5, 1.0, top)):
        axes.annotate(
            letter, (x, y), (4 - 8 * x, 4 - 8 * y), xycoords="axes fraction", textcoords="offset points",
            ha=aligned[x][0], va=aligned[y][1], family="monospace", **_ON_IMAGE,
        )  # fmt: skip


def scale_bar(axes: Axes) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten mm, at most a third of the slice, in its lower left corner."""
    width = axes.get_xlim()[1]
    power = 10.0 ** np.floor(np.log10(width / 3))
    length = power * max(n for n in (1, 2, 5) if n * power <= width / 3)
    effects = [withStroke(linewidth=4.2, foreground=BACKGROUND)]
    start = 0.035 * width
    axes.plot([start, start + length], [start, start], color="#ffffff", linewidth=2, path_effects=effects)
    axes.annotate(
        f"{length:g} mm", (start, start), (0, 3), textcoords="offset points", ha="left", va="bottom", **_ON_IMAGE
    )


def _change_colours(largest: float) -> dict[str, Any]:
    """Colours of a change of intensity between ``-largest`` and ``largest``: the less, the more transparent."""
    ends = [(0.0, to_rgba(DARKER, 0.6)), (0.5, to_rgba(DARKER, 0.0)), (0.5, to_rgba(BRIGHTER, 0.0)),
            (1.0, to_rgba(BRIGHTER, 0.6))]  # fmt: skip
    return {"vmin": -largest, "vmax": largest, "cmap": LinearSegmentedColormap.from_list("change", ends)}


def tint(axes: Axes, change: Array, axis: int, index: int, spacing: Sequence[float], largest: float) -> None:
    """Lay colour over a slice where ``change`` is negative (darker) or positive (brighter).

    Args:
        axes: where a slice of the same shape is drawn.
        change: (D, H, W).
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
        largest: the change that is drawn strongest.
    """
    _lay(axes, change, axis, index, spacing, interpolation="bilinear", **_change_colours(largest))


def tint_bar(axes: Axes, largest: float) -> None:
    """What the colours of `tint` mean, in standard deviations, as images are normalised."""
    scale = np.linspace(-largest, largest, 256)[None]
    axes.imshow(scale, aspect="auto", extent=(-largest, largest, 0, 1), **_change_colours(largest))
    _bare(axes)
    axes.set_facecolor("#808080")  # as on a grey image
    ends = f"\N{MINUS SIGN}{largest:.2g}\ndarker", "0", f"+{largest:.2g}\nbrighter"
    axes.set_xticks([-largest, 0, largest], ends)
    axes.tick_params(colors=FAINT, labelsize=SMALL, length=0, pad=3)
    told = f"standard deviations\n(scale: at least \N{PLUS-MINUS SIGN}{LEAST_CHANGE:g})"
    axes.set_xlabel(told, color=FAINT, fontsize=SMALL, labelpad=1)


def _centres(shape: Sequence[int], axis: int, spacing: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where the voxels of a slice of a volume (D, H, W) lie, in mm: columns and rows."""
    across, up = (np.arange(0.5, n) * s for i, (n, s) in enumerate(zip(shape, spacing, strict=True)) if i != axis)
    return across, up


def lattice(axes: Axes, grid: Array, axis: int, index: int, spacing: Sequence[float]) -> None:
    """Draw a regular lattice of the original volume where a transformation takes it.

    Args:
        axes: where a slice of the same shape is drawn.
        grid: (D, H, W, 3) where each voxel was read from, in voxels.
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
    """
    for component in (i for i in range(3) if i != axis):
        cut = plane(grid[..., component], axis, index)
        levels = np.arange(np.ceil(cut.min() / _GRID_STEP), np.floor(cut.max() / _GRID_STEP) + 1) * _GRID_STEP
        axes.contour(
            *_centres(grid.shape[:3], axis, spacing), cut, levels=levels, colors=["#ffffff"], linewidths=0.7,
            linestyles="solid", alpha=0.28,
        )  # fmt: skip


def contours(
    axes: Axes,
    label: Label,
    axis: int,
    index: int,
    spacing: Sequence[float],
    *,
    colours: Sequence[str],
    style: str = "solid",
    width: float = 1.8,
    least: int = 0,
    rim: bool = True,
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
        least: pixels; smaller pieces of a slice, and smaller holes, get no line.
        rim: whether the line has a dark one.
    """
    for k, channel in enumerate(label):
        cut = plane(channel, axis, index).astype(float)
        if least:
            cut = _without_specks(cut, least)
        if cut.max() <= 0.5 or cut.min() >= 0.5:
            continue
        centres = _centres(label.shape[1:], axis, spacing)
        # the rim keeps a white line visible on white, and a coloured one off another of the same grey value
        if rim:
            axes.contour(*centres, cut, levels=[0.5], colors=[BACKGROUND], linewidths=width + 1.1, alpha=0.55)
        colour = colours[k % len(colours)]
        axes.contour(*centres, cut, levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def fills(
    axes: Axes, label: Label, axis: int, index: int, spacing: Sequence[float], *, colours: Sequence[str]
) -> None:
    """Lay a thin colour over each channel of a label (K, D, H, W), through which the image is seen.

    Args:
        axes: where a slice of the same shape is drawn.
        label: one channel a structure, without background.
        axis: the axis that is cut.
        index: where it is cut.
        spacing: voxel size in mm.
        colours: one a structure, used again from the beginning where there are more structures.
    """
    for k, channel in enumerate(label):
        inside = plane(channel, axis, index) > 0.5
        if inside.any():
            shade = np.zeros((*inside.shape, 4))
            shade[inside] = to_rgba(colours[k % len(colours)], _FILL)
            box = extent(label.shape[1:], axis, spacing)
            axes.imshow(shade, origin="lower", extent=box, aspect="equal", interpolation="nearest")


def _without_specks(cut: Array, least: int) -> Array:
    """A slice without pieces, and without holes, of fewer than ``least`` pixels."""
    for there, instead in ((cut > 0.5, 0.0), (cut <= 0.5, 1.0)):
        pieces, number = ndimage.label(there)
        areas = np.bincount(pieces.ravel(), minlength=number + 1)
        cut = np.where(there & (areas[pieces] < least), instead, cut)
    return cut
