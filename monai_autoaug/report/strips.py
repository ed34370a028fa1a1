# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Slices in three planes as SVG: grey images with contours that stay sharp at any size, to scale, in one orientation.

Pictures are shown with the patient's right, front and head to the right and to the top, whatever the order of the
voxels. Letters and the length of the scale bar are text of the page beside the SVG, so that they don't shrink with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from monai_autoaug.methods.montage import COLOURS
from monai_autoaug.report.planes import OPPOSITE, Plane
from monai_autoaug.report.raster import png, refined

__all__ = ["Layer", "Mark", "Strip", "strip"]

Array = NDArray[Any]
_GAP = 0.025  # between planes, of the height
_RIM = "#0e1116"


@dataclass(frozen=True)
class Layer:
    """Contours, or the lines of a lattice, over the slices of a strip.

    Args:
        fields: for each plane a list of slices (n, m), each with its levels.
        levels: where lines are drawn, for each plane and slice.
        colours: of the slices, used again from the beginning.
        width: in pixels.
        dashed: whether lines are.
        opacity: of the lines.
        rim: whether they have a dark one.
    """

    fields: Sequence[Sequence[Array]]
    levels: Sequence[Sequence[Sequence[float]]]
    colours: Sequence[str]
    width: float = 1.6
    dashed: bool = False
    opacity: float = 1.0
    rim: bool = True

    @staticmethod
    def of_label(label: Sequence[Array], *, white: bool = False) -> Layer:
        """Where each structure of soft labels, slices (K, n, m), is one half.

        Args:
            label: one a plane.
            white: dashed white lines, for where structures were before.
        """
        fields = [[channel.astype(float) for channel in part] for part in label]
        levels = [[[0.5]] * len(part) for part in fields]
        if white:
            return Layer(fields, levels, ["#ffffff"], 1.1, dashed=True, opacity=0.9, rim=False)
        return Layer(fields, levels, COLOURS)


@dataclass(frozen=True)
class Mark:
    """A word beside a picture.

    Args:
        text: the word.
        left: of its anchor, in percent of the strip's width.
        top: in percent of its height.
        side: where the anchor lies in the word: "l", "r", "t", "b", "tl" or "bl".
    """

    text: str
    left: float
    top: float
    side: str


@dataclass(frozen=True)
class Strip:
    """Planes side by side.

    Args:
        svg: what is inside of the ``<svg>``.
        width: of the view box, mm.
        height: of the view box, mm.
        marks: sides of the body, names of the planes, length of the bar.
        alt: what is to be seen, in words.
    """

    svg: str
    width: float
    height: float
    marks: tuple[Mark, ...]
    alt: str


def _lines(part: Array, levels: Sequence[float], plane: Plane, size: tuple[float, float]) -> str:
    """Contours of a slice as an SVG path, in mm from the plane's left and top."""
    laid = plane.laid(part)
    pieces = []
    for level in levels:
        if not np.nanmin(laid) < level < np.nanmax(laid):
            continue
        for line in find_contours(np.pad(laid, 1, mode="edge"), level):
            across, down = (line[:, 1] - 0.5) * size[0], (line[:, 0] - 0.5) * size[1]
            if len(line) > 2:
                points = " ".join(f"{x:.2f} {y:.2f}" for x, y in zip(across, down, strict=True))
                closed = "Z" if bool((line[0] == line[-1]).all()) else ""
                pieces.append(f"M{points}{closed}")
    return "".join(pieces)


def strip(
    planes: Sequence[Plane],
    image: Sequence[Array],
    spacing: Sequence[float],
    window: tuple[float, float],
    *,
    layers: Sequence[Layer] = (),
    over: Sequence[Array] = (),
    alt: str,
    named: bool = True,
) -> Strip:
    """Planes side by side, to one scale.

    Args:
        planes: see `planes_of`.
        image: a slice (n, m) for each, in the order of the axes that are cut, or with the planes' ``cut`` as index.
        spacing: voxel size in mm.
        window: grey values that are black and white.
        layers: contours over the images.
        over: colours (n, m, 4) over each image, refined or not.
        alt: what is to be seen, in words.
        named: write the planes' names, sides of the body and the length of the bar.
    """
    order = [plane.cut if plane.cut is not None else 0 for plane in planes]
    sizes = [plane.spacing(spacing) for plane in planes]
    laid = [plane.laid(np.asarray(image[k], dtype=float)) for plane, k in zip(planes, order, strict=True)]
    boxes = [(p.shape[1] * s[0], p.shape[0] * s[1]) for p, s in zip(laid, sizes, strict=True)]
    height = max(h for _, h in boxes)
    gap = _GAP * height
    width = sum(w for w, _ in boxes) + gap * (len(boxes) - 1)
    parts, marks, left = [], [], 0.0
    for plane, k, part, size, (w, h) in zip(planes, order, laid, sizes, boxes, strict=True):
        top = (height - h) / 2
        grey = (np.clip((refined(part) - window[0]) / (window[1] - window[0]), 0, 1) * 255).astype(np.uint8)
        drawn = [_image(grey, w, h)]
        if over:
            colours = np.moveaxis(plane.laid(np.moveaxis(over[k], -1, 0)), 0, -1)
            drawn.append(_image(colours, w, h))
        drawn += [_drawn(layer, k, plane, size) for layer in layers]
        parts.append(f'<g transform="translate({left:.2f} {top:.2f})">{"".join(drawn)}</g>')
        if named:
            marks += _sides(plane, left / width * 100, top / height * 100, w / width * 100, h / height * 100)
        left += w + gap
    if named:
        bar, mark = _bar(boxes[0], (height - boxes[0][1]) / 2, width, height)
        parts.append(bar)
        marks.append(mark)
    return Strip("".join(parts), round(width, 2), round(height, 2), tuple(marks), alt)


def _image(pixels: Array, width: float, height: float) -> str:
    return f'<image width="{width:.2f}" height="{height:.2f}" preserveAspectRatio="none" href="{png(pixels)}"/>'


def _drawn(layer: Layer, k: int, plane: Plane, size: tuple[float, float]) -> str:
    """The paths of a layer in one plane."""
    found = []
    for number, (part, levels) in enumerate(zip(layer.fields[k], layer.levels[k], strict=True)):
        path = _lines(part, levels, plane, size)
        if not path:
            continue
        dash = ' stroke-dasharray="4 3"' if layer.dashed else ""
        look = f'fill="none" vector-effect="non-scaling-stroke" d="{path}"'
        if layer.rim:
            found.append(f'<path stroke="{_RIM}" stroke-opacity="0.55" stroke-width="{layer.width + 1.2:g}" {look}/>')
        colour = layer.colours[number % len(layer.colours)]
        found.append(
            f'<path stroke="{colour}" stroke-opacity="{layer.opacity:g}" stroke-width="{layer.width:g}"{dash} {look}/>'
        )
    return "".join(found)


def _sides(plane: Plane, left: float, top: float, width: float, height: float) -> list[Mark]:
    """The plane's name and, where they are known, the sides of the body at its edges; all in percent."""
    marks = [Mark(plane.name, left, top, "tl")]
    if plane.letters:
        right, up = list(plane.letters)
        marks += [
            Mark(right, left + width, top + height / 2, "r"), Mark(OPPOSITE[right], left, top + height / 2, "l"),
            Mark(up, left + width / 2, top, "t"), Mark(OPPOSITE[up], left + width / 2, top + height, "b"),
        ]  # fmt: skip
    return marks


def _bar(box: tuple[float, float], top: float, width: float, height: float) -> tuple[str, Mark]:
    """A bar of 1, 2 or 5 times a power of ten mm in the first plane's lower left corner, and its length."""
    most = box[0] / 3
    power = 10.0 ** np.floor(np.log10(most))
    length = power * max(n for n in (1, 2, 5) if n * power <= most)
    x, y = 0.035 * box[0], top + box[1] * 0.965
    line = f'<path fill="none" vector-effect="non-scaling-stroke" d="M{x:.2f} {y:.2f}h{length:g}" '
    drawn = f'{line}stroke="{_RIM}" stroke-width="4"/>{line}stroke="#ffffff" stroke-width="2"/>'
    return drawn, Mark(f"{length:g} mm", x / width * 100, y / height * 100, "bl")
