# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The course of a training run, drawn from its log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from monai_autoaug.errors import DataError
from monai_autoaug.report.style import BACKGROUND, COLOURS, FAINT, TEXT, figure, save

__all__ = ["read_log", "training_curves"]

# one picture each: title, which figures (prefix or suffix of their name), bounds of the axis; a lower bound of None is
# chosen such that the curves fill the picture
_TOPICS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[float | None, float] | None], ...] = (
    ("Loss", ("loss",), (), None),
    ("Validation Dice", ("dice",), (), (None, 1.0)),
    ("Share of the variation due to noise", (), ("_noise_share",), (0.0, 1.0)),
    ("Discriminator accuracy", ("discriminator_accuracy",), (), (0.0, 1.0)),
    ("Mean displacement (voxels)", (), ("_displacement_mean",), None),
    ("Share of parameters at their bounds", (), ("_saturation",), (0.0, 1.0)),
)


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


def _series(rows: Sequence[Mapping[str, Any]], starts: tuple[str, ...], ends: tuple[str, ...]) -> dict[str, Any]:
    """Figure -> (epochs, values) of the figures that belong to one topic."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if name.startswith(starts) if starts else name.endswith(ends):
                epochs, values = series.setdefault(name, ([], []))
                epochs.append(int(row["epoch"]))
                values.append(float(value))
    return series


def _short(name: str, topic: Sequence[str]) -> str:
    """A figure's name without what the title says already."""
    for word in topic:
        name = name.removeprefix(word).removesuffix(word)
    return name.strip("_ ").replace("_", " ") or "mean"


def _colours(found: Sequence[tuple[Any, Sequence[str], Any, Mapping[str, Any]]]) -> dict[str, str]:
    """One colour for what has one name, in whichever diagram it is."""
    names = dict.fromkeys(_short(name, words) for _, words, _, series in found for name in sorted(series))
    others = [name for name in names if name != "mean"]
    return {"mean": TEXT} | {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(others)}


def _bounds(axes: Axes, limits: tuple[float | None, float], series: Mapping[str, Any]) -> None:
    """The bounds of a diagram's vertical axis, with a little room above."""
    low, high = limits
    if low is None:
        low = max(0.0, math.floor(10 * min(min(values) for _, values in series.values()) - 0.5) / 10)
    axes.set_ylim(low, high + 0.02 * (high - low))


def _dress(axes: Axes, title: str) -> None:
    """Colours and lines of one diagram."""
    axes.set_facecolor(BACKGROUND)
    axes.set_title(title, color=TEXT, fontsize=11.5, loc="left", pad=8)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)
    axes.grid(color="#ffffff", alpha=0.08, linewidth=0.8)
    axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def training_curves(log: str | Path, path: str | Path) -> Path:
    """Draw loss, validation Dice and what tells a collapse of the augmenters, over the epochs.

    Args:
        log: a run's ``log.jsonl``.
        path: a PNG file.

    Returns:
        ``path``.

    Raises:
        DataError: the log can't be read, or holds nothing that can be drawn.
    """
    rows = read_log(log)
    found = [(title, starts + ends, limits, _series(rows, starts, ends)) for title, starts, ends, limits in _TOPICS]
    found = [topic for topic in found if topic[3]]
    if not found:
        raise DataError("holds nothing that can be drawn", file=log, expected="at least one epoch with a loss")
    colours = _colours(found)
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    made = figure(4.2 * columns, 3.1 * lines)
    for number, (title, words, limits, series) in enumerate(found):
        axes = made.add_subplot(lines, columns, number + 1)
        _dress(axes, title)
        for name, (epochs, values) in sorted(series.items()):
            dots = "o" if len(epochs) < 30 else None
            text = _short(name, words)
            axes.plot(epochs, values, color=colours[text], linewidth=1.8, marker=dots, markersize=3, label=text)
        if limits is not None:
            _bounds(axes, limits, series)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=TEXT, fontsize=8.5, loc="best")
    made.tight_layout(pad=1.2, w_pad=2.0, h_pad=1.6)
    return save(made, path)
