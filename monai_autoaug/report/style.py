# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How all pictures look: colours, fonts, size, the key at the bottom, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.montage import COLOURS
from monai_autoaug.writing import write_whole

__all__ = [
    "BACKGROUND", "BRIGHTER", "COLOURS", "DARKER", "FAINT", "GAP", "LARGE", "MEDIUM", "SMALL", "TEXT", "UNMOVED",
    "WIDTH", "figure", "key", "key_height", "place", "save", "structure_keys", "write",
]  # fmt: skip

BACKGROUND, TEXT, FAINT = "#0e1116", "#e8eaed", "#9aa4af"
BRIGHTER, DARKER = "#ff6b4a", "#3f8cff"
LARGE, MEDIUM, SMALL = 13.0, 10.5, 9.0  # font sizes in points: titles, keys, everything else
WIDTH, GAP = 9.0, 0.06  # inches: of the widest picture, about what a web page shows; between panels
UNMOVED: dict[str, Any] = {"color": "#ffffff", "linestyle": "dashed", "linewidth": 1.1}  # what others are compared with
_KEY: dict[str, Any] = {
    "frameon": False, "labelcolor": TEXT, "handlelength": 1.9, "columnspacing": 1.7,
    "loc": "lower center", "borderpad": 0.2,
}  # fmt: skip


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


def place(made: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in inches from the left and the top of a picture."""
    across, up = made.get_size_inches()
    axes = made.add_axes((left / across, 1 - (top + height) / up, width / across, height / up))
    axes.set_facecolor(BACKGROUND)
    return axes


def write(made: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Text in inches from the left and the top of a picture."""
    across, up = made.get_size_inches()
    made.text(left / across, 1 - top / up, text, **{"va": "top"} | style)


def structure_keys(names: Sequence[str]) -> list[Line2D]:
    """A key for each structure, in the colour of its contour."""
    return [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2.2, label=fill(name, 40))
        for k, name in enumerate(names)
    ]


def key_height(keys: Sequence[Line2D], width: float) -> float:
    """How much room, in inches, `key` takes in a picture of this width."""
    made = figure(width, 1)
    return float(key(made, keys).get_window_extent().height) / made.dpi


def key(made: Figure, keys: Sequence[Line2D]) -> Legend:
    """Lay out what lines and colours mean at the bottom of a picture, in as many rows as its width asks for."""
    size = MEDIUM if len(keys) <= 8 else SMALL
    for columns in range(min(len(keys), 8), 0, -1):
        legend = made.legend(handles=list(keys), ncols=columns, fontsize=size, bbox_to_anchor=(0.5, 0.0), **_KEY)
        if columns == 1 or legend.get_window_extent().width <= made.bbox.width:
            break
        legend.remove()
    return legend
