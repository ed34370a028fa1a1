# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The picture of what the network predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug.data.datalist import LabelValue
from monai_autoaug.errors import ConfigError
from monai_autoaug.report.slices import (
    array,
    contours,
    fills,
    grey_window,
    planes,
    scale_bar,
    show_slice,
    sides,
    sizes,
    slices,
)
from monai_autoaug.report.style import (
    COLOURS,
    FAINT,
    GAP,
    LARGE,
    SMALL,
    TEXT,
    WIDTH,
    figure,
    key,
    key_height,
    place,
    save,
    structure_keys,
    write,
)

__all__ = ["PredictionRow", "channels", "near", "prediction_figure"]

_ROW, _NARROW, _LINE = 3.1, 0.7, 0.18  # inches: the highest panel; the least column; a line of the captions
_AROUND = 10.0  # mm: the least that is shown around the structures
_SPECK = 9  # pixels: what is smaller is coloured without a line, or a weak network leaves a tangle of lines
_LABEL, _PREDICTION = 2.0, 1.4  # widths of lines in points
_DASHES: Literal["dashed"] = "dashed"


@dataclass(frozen=True)
class PredictionRow:
    """One row of `prediction_figure`.

    Args:
        title: the case.
        image: (C, D, H, W) with its axes to the right, front and head (RAS).
        reference: (D, H, W) label values, or None.
        prediction: (D, H, W) label values.
        spacing: voxel size in mm.
        caption: such as "Dice 0.91"; as many lines as it takes.
    """

    title: str
    image: Tensor
    reference: Tensor | None
    prediction: Tensor
    spacing: tuple[float, ...]
    caption: str = ""


def prediction_figure(
    rows: Sequence[PredictionRow], path: str | Path, *, classes: Mapping[str, LabelValue]
) -> Path:  # fmt: skip
    """Draw labels (solid lines) and predictions (dashed lines and a thin colour) over their images, in three planes.

    Both have the colour of their structure; specks of a prediction have no line. What lies far
    from all structures is cut off.

    Args:
        rows: the cases; each is drawn to its own scale, the same in its three planes.
        path: a PNG file.
        classes: structure -> label value, or the values of a region.

    Returns:
        ``path``.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not rows:
        raise ConfigError("a picture of predictions needs at least one case")
    values, margin = list(classes.values()), 0.1
    rows = [near(row, values) for row in rows]
    laid = [sizes(r.prediction.shape, r.spacing, planes()) for r in rows]
    room = WIDTH - 2 * (margin + GAP)
    scales = [min(room / sum(widths), _ROW / max(heights)) for widths, heights in laid]  # inches a mm
    columns = [[max(w * s, _NARROW) for w in widths] for (widths, _), s in zip(laid, scales, strict=True)]
    width = max(6.0, *(WIDTH - room + sum(of_row) for of_row in columns))
    captions = [wrap(r.caption, int(15 * width)) for r in rows]  # as many characters as fit in small print
    headers = [0.68 + _LINE * len(lines) for lines in captions]
    keys = structure_keys(list(classes))
    if any(r.reference is not None for r in rows):
        keys.append(Line2D([], [], label="label", color=TEXT, linewidth=_LABEL))
    keys.append(Line2D([], [], label="prediction (coloured)", color=TEXT, linewidth=_PREDICTION, linestyle=_DASHES))
    height = sum(h + max(tall) * s for h, (_, tall), s in zip(headers, laid, scales, strict=True))
    made = figure(width, height + key_height(keys, width) + 0.16)
    above = 0.0
    for number, row in enumerate(rows):
        size = min(LARGE, LARGE * width / (0.115 * max(len(row.title), 1)))  # a long name still fits
        write(made, margin, above + 0.14, row.title, color=TEXT, fontsize=size, fontweight="bold")
        write(made, margin, above + 0.41, "\n".join(captions[number]), color=FAINT, fontsize=SMALL, linespacing=1.35)
        above += headers[number]
        boxes, left = [], margin
        for (_, name), across, up, column in zip(planes(), *laid[number], columns[number], strict=True):
            write(made, left, above - 0.06, name, color=TEXT, fontsize=SMALL, va="bottom")
            boxes.append(place(made, left, above, across * scales[number], up * scales[number]))
            left += column + GAP
        _draw_prediction(boxes, row, values)
        above += max(laid[number][1]) * scales[number]
    key(made, keys)
    return save(made, path)


def channels(label: Tensor, values: Sequence[LabelValue]) -> NDArray[np.bool_]:
    """(K, D, H, W): where each structure is in label values (D, H, W).

    >>> channels(torch.tensor([[[0, 1, 2]]]), [(1, 2), 2]).astype(int).tolist()
    [[[[0, 1, 1]]], [[[0, 0, 1]]]]
    """
    return np.stack([torch.isin(label, torch.tensor(value)).cpu().numpy() for value in values])


def near(row: PredictionRow, values: Sequence[LabelValue]) -> PredictionRow:
    """The part of a case that holds the structures, drawn and predicted, with a quarter of its size around it.

    Args:
        row: the case.
        values: of the structures: a label value, or those of a region.
    """
    there = torch.as_tensor(channels(row.prediction, values).any(0))
    if row.reference is not None:
        there |= torch.as_tensor(channels(row.reference, values).any(0))
    cut = []
    for axis, (n, mm) in enumerate(zip(there.shape, row.spacing, strict=True)):
        found = there.sum([i for i in range(3) if i != axis]).nonzero()
        low, high = (int(found.min()), int(found.max()) + 1) if len(found) else (0, n)
        around = round(max((high - low) / 4, _AROUND / mm))
        cut.append(slice(max(low - around, 0), min(high + around, n)))
    d, h, w = cut
    reference = None if row.reference is None else row.reference[d, h, w]
    return replace(row, image=row.image[:, d, h, w], reference=reference, prediction=row.prediction[d, h, w])


def _draw_prediction(boxes: Sequence[Axes], row: PredictionRow, values: Sequence[LabelValue]) -> None:
    """The three planes of one case, cut where the reference, or else the prediction, shows most structures."""
    image = array(row.image)[0]
    window = grey_window(image)
    drawn = channels(row.prediction, values)
    wanted = None if row.reference is None else channels(row.reference, values)
    middle = slices(drawn if wanted is None or not wanted.any() else wanted)
    for axes, (axis, _) in zip(boxes, planes(), strict=True):
        cut = axis, middle[axis], row.spacing
        show_slice(axes, image, *cut, window)
        fills(axes, drawn, *cut, colours=COLOURS)
        if wanted is not None:
            contours(axes, wanted, *cut, colours=COLOURS, width=_LABEL)
        contours(axes, drawn, *cut, colours=COLOURS, style=_DASHES, width=_PREDICTION, least=_SPECK, rim=False)
        sides(axes, axis, "RAS")
    scale_bar(boxes[0])
