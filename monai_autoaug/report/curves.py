# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The course of a training run, drawn from its log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from monai_autoaug.errors import DataError
from monai_autoaug.methods.collapse import WARN_ABOVE, WARN_BELOW
from monai_autoaug.report.style import (
    BACKGROUND,
    BRIGHTER,
    COLOURS,
    FAINT,
    LARGE,
    SMALL,
    TEXT,
    WIDTH,
    figure,
    key,
    key_height,
    save,
)

__all__ = ["TOPICS", "Series", "Topic", "read_log", "series_of", "training_curves"]

_WARNS: dict[str, Any] = {"color": BRIGHTER, "linewidth": 1.2, "linestyle": "dashed"}
_MARKERS = "sD^vPX<"  # with another period than the colours, so that no two names look alike
_LEAST_SPAN = 0.2  # of its largest value: the least that an axis without bounds shows
Series = dict[str, tuple[list[int], list[float]]]  # name -> epochs, values


@dataclass(frozen=True)
class Topic:
    """One diagram.

    Args:
        title: above it.
        hint: below the title: how its values are read.
        figure: what the log calls it; ``limit`` knows where a run warns of it.
        after: figures have a name after this one (``loss_clean``), else before it (``affine_saturation``).
        bounds: what the vertical axis shows at least; None: as far as the curves go.
    """

    title: str
    hint: str
    figure: str
    after: bool = False
    bounds: tuple[float | None, float | None] = (None, None)

    def name(self, logged: str) -> str | None:
        """What the curve of a logged figure is called here, or None where the figure belongs elsewhere."""
        if logged == self.figure:
            return "mean"
        start, end = (f"{self.figure}_", "") if self.after else ("", f"_{self.figure}")
        fits = logged.startswith(start) and logged.endswith(end)
        return logged.removeprefix(start).removesuffix(end) if fits else None


TOPICS = (
    Topic("Training loss", "lower is better", "loss", after=True),
    Topic("Validation Dice", "higher is better, 1 is perfect", "dice", after=True, bounds=(None, 1.0)),
    Topic("Variation that is due to noise", "near 0: one transformation for all", "noise_share", bounds=(0.0, 1.0)),
    Topic("Discriminator accuracy", "0.5: can't tell augmented from real", "discriminator_accuracy",
           bounds=(0.0, 1.0)),
    Topic("Mean displacement (voxels)", "near 0: nothing is moved", "displacement_mean", bounds=(0.0, None)),
    Topic("Mean change of intensity (SD)", "near 0: nothing is changed", "additive_mean", bounds=(0.0, None)),
    Topic("Smallest Jacobian determinant", "1: volumes are kept", "jacobian_minimum", bounds=(None, 1.0)),
    Topic("Parameters at their bounds", "lower is better", "saturation", bounds=(0.0, 1.0)),
)  # fmt: skip


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``: one JSON object an epoch.

    Raises:
        DataError: the file can't be read, or a line is no JSON object.
    """
    rows = []
    try:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"line {number} is not an object", file=path, came=type(row).__name__)
            rows.append(row)
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read as a training log ({error})", file=path) from error
    return rows


def series_of(rows: Sequence[Mapping[str, Any]], topic: Topic) -> Series:
    """The curves of one topic, in the order of the log.

    Args:
        rows: lines of a log.
        topic: what they are about.

    Returns:
        By name: epochs and values.
    """
    series: Series = {}
    for row in rows:
        for logged, value in row.items():
            name = topic.name(logged)
            if name is None or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            epochs, values = series.setdefault(name, ([], []))
            epochs.append(int(row["epoch"]))
            values.append(float(value))
    return series


def _looks(found: Mapping[Topic, Series], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each name, the same in all diagrams; structures as in the pictures of volumes."""
    named = [name for series in found.values() for name in series if name != "mean"]
    names = dict.fromkeys([*classes, *named])
    looks = {
        n: {"color": COLOURS[k % len(COLOURS)], "marker": _MARKERS[k % len(_MARKERS)]} for k, n in enumerate(names)
    }
    return {"mean": {"color": TEXT, "marker": "o", "linewidth": 2.2}} | {n: looks[n] for n in names if n in named}


def _bounds(axes: Axes, topic: Topic, series: Series) -> None:
    """The bounds of the vertical axis, and the value beyond which a run warns, where there is one."""
    values = [v for _, of_name in series.values() for v in of_name if math.isfinite(v)]
    limit = WARN_BELOW.get(topic.figure, WARN_ABOVE.get(topic.figure))
    values += [bound for bound in (*topic.bounds, limit) if bound is not None]
    if topic.bounds != (None, None):
        low, high = math.floor(10 * min(values)) / 10, max(values)
        room = (high - low) * (0.02 if topic.bounds[1] is not None else 0.1) or 0.1
        axes.set_ylim(low - 0.02 * (high - low), high + room)
    elif values:  # as far as the values go, but what hardly differs is drawn close together
        low, high = min(values), max(values)
        half = max((high - low) * 0.55, _LEAST_SPAN * max(abs(low), abs(high)) / 2) or 0.5
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
    if limit is None:
        return
    below = topic.figure in WARN_BELOW
    axes.axhspan(*((axes.get_ylim()[0], limit) if below else (limit, axes.get_ylim()[1])), color=BRIGHTER, alpha=0.13)
    axes.axhline(limit, **_WARNS)


def _dress(axes: Axes, topic: Topic, epochs: int) -> None:
    """Colours and lines of one diagram; whole epochs, the same in all of them."""
    axes.set_facecolor(BACKGROUND)
    axes.set_title(topic.title, color=TEXT, fontsize=LARGE, loc="left", pad=22)
    limits = {f"warns {side} {known[topic.figure]:g}" for side, known in
              (("below", WARN_BELOW), ("above", WARN_ABOVE)) if topic.figure in known}  # fmt: skip
    hint = axes.annotate("; ".join([topic.hint, *limits]), (0, 1), (0, 8), xycoords="axes fraction",
                         textcoords="offset points", color=FAINT, fontsize=SMALL)  # fmt: skip
    hint.set_in_layout(False)  # a long line must not make its diagram narrow
    axes.tick_params(colors=FAINT, labelsize=SMALL, length=0)
    axes.grid(color="#ffffff", alpha=0.08, linewidth=0.8)
    axes.set_xlabel("epoch" if epochs > 1 else "epoch (there is only one, so no curves)", color=FAINT, fontsize=SMALL)
    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    for spine in axes.spines.values():
        spine.set_visible(False)


def training_curves(log: str | Path, path: str | Path, *, classes: Sequence[str] = ()) -> Path:
    """Draw loss, validation Dice and what tells a collapse of the augmenters, over the epochs.

    Args:
        log: a run's ``log.jsonl``.
        path: a PNG file.
        classes: names of the structures, in the order of the other pictures, whose colours they get.

    Returns:
        ``path``.

    Raises:
        DataError: the log can't be read, or holds nothing that can be drawn.
    """
    rows = read_log(log)
    found = {topic: series for topic in TOPICS if (series := series_of(rows, topic))}
    if not found:
        raise DataError("holds nothing that can be drawn", file=log, expected="at least one epoch with a loss")
    looks, last = _looks(found, classes), max(int(row["epoch"]) for row in rows)
    keys = [Line2D([], [], label=name, markersize=5, **look) for name, look in looks.items()]
    if any(topic.figure in WARN_BELOW | WARN_ABOVE for topic in found):
        keys.append(Line2D([], [], label="the run warns beyond", **_WARNS))
    columns = min(len(found), 2)
    lines = -(-len(found) // columns)
    width = WIDTH / 2 * columns
    below = key_height(keys, width) + 0.1
    height = 2.6 * lines + below
    made = figure(width, height)
    for number, (topic, series) in enumerate(found.items()):
        axes = made.add_subplot(lines, columns, number + 1)
        _dress(axes, topic, last)
        for name, (epochs, values) in series.items():
            every = max(1, len(epochs) // 8)
            axes.plot(epochs, values, **{"linewidth": 1.6, "markersize": 4, "markevery": every} | looks[name])
        _bounds(axes, topic, series)
    made.tight_layout(pad=1.0, w_pad=2.0, h_pad=1.6, rect=(0, below / height, 1, 1))
    key(made, keys)
    return save(made, path)
