# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The picture of learned policies: what each class is augmented with, how sure that is, which views are averaged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import Policies, TestTimePolicy
from monai_autoaug.policies.evidence import DECIDED
from monai_autoaug.report.names import headings, readable, readable_cascade
from monai_autoaug.report.policy_rows import PolicyRow, policy_rows, verdict
from monai_autoaug.report.style import (
    BACKGROUND,
    BRIGHTER,
    COLOURS,
    FAINT,
    LARGE,
    MEDIUM,
    SMALL,
    TEXT,
    WIDTH,
    figure,
    key,
    key_height,
    place,
    save,
    write,
)

__all__ = ["policy_figure"]

_LEFT, _EDGE, _TOP = 2.1, 0.15, 0.98  # inches: names of cascades and classes; the picture's edge; the title
_HEADER, _ROW, _BETWEEN = 0.21, 0.19, 0.09  # inches: a cascade's operations; a class; after a cascade
_BELOW = 2.75  # inches: entropy and views
_BAR, _NUMBER = 0.5, 0.3  # of a cell: the bar; inches of its number
_THICK, _SEEN = 0.09, 0.015  # inches: a bar, and the least of it, so that what is rare is not taken for nothing
_MOST_CLASSES, _MOST_CURVES, _MOST_VIEWS = 12, 8, 12
_LEAST, _INCHES = 7.0, 0.0086  # the smallest font; width of a letter a point
_TRACK, _UNDECIDED, _DECIDED = "#1b2029", "#66717d", COLOURS[0]
_MARKERS = "osD^vPX<"
# below the bar, which it must not hide
_START: dict[str, Any] = {"color": TEXT, "linewidth": 0, "marker": 6, "markersize": 3.6, "markeredgewidth": 0}


def policy_figure(
    found: Policies, path: str | Path, *, log: Sequence[Mapping[str, Any]] = (), no_ops: Collection[str] = ()
) -> Path:
    """Draw policies: a row for each class in each cascade, the entropies over the epochs, and the views' weights.

    An operation is marked as decided only where the evidence says so; a long bar alone is none. The title tells how
    many cascades are decided, and of how many one operation has become certain without that.

    Args:
        found: what `policies.load` gave.
        path: a PNG file; missing folders are made.
        log: the lines of the run's log, for the entropies; empty: they are left out.
        no_ops: names of operations that the network can't see.

    Returns:
        ``path``.

    Raises:
        ConfigError: there is no policy.

    >>> import tempfile
    >>> from monai_autoaug.policies import TrainingPolicy
    >>> both = Policies(TrainingPolicy.preset("nnunet"), TestTimePolicy.preset("nnunet"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     policy_figure(both, folder + "/policy.png").name
    'policy.png'
    """
    if found.training is None and found.test_time is None:
        raise ConfigError("a picture of policies needs a training-time or a test-time policy")
    rows = policy_rows(found, no_ops)
    drawn = _most_moved(rows)
    kept = [row for row in rows if row.kind in drawn]
    cascades = list(dict.fromkeys(row.cascade for row in kept))
    keys = _keys(kept)
    table = _TOP + len(cascades) * (_HEADER + _BETWEEN) + len(cascades) * len(drawn) * _ROW if kept else 0.3
    curves = _curves(log, drawn[:_MOST_CURVES])
    below = _BELOW if curves or found.test_time is not None else 0.0
    bottom = key_height(keys, WIDTH) + 0.12 if keys else 0.0
    made = figure(WIDTH, table + below + bottom)
    if kept:
        more = len({row.kind for row in rows}) - len(drawn)
        _draw_table(made, kept, cascades, drawn, table, more)
    if curves:
        _draw_entropy(made, _EDGE, table, curves)
    if found.test_time is not None:
        _draw_views(made, _EDGE + bool(curves) * WIDTH / 2, table, found.test_time)
    if keys:
        key(made, keys)
    return save(made, path)


def _most_moved(rows: Sequence[PolicyRow]) -> list[str]:
    """The classes to draw: all, or those whose probabilities have changed most, in the order of the policy."""
    moved: dict[str, float] = {}
    for row in rows:
        moved[row.kind] = moved.get(row.kind, 0.0) + abs(row.probability - (row.start or row.probability))
    chosen = sorted(moved, key=lambda name: -moved[name])[:_MOST_CLASSES]
    return [name for name in moved if name in chosen]


def _keys(rows: Sequence[PolicyRow]) -> list[Line2D]:
    """What the marks mean that are there."""
    if not rows:
        return []
    known, sure = any(row.start is not None for row in rows), any(row.decided for row in rows)
    keys = [Line2D([], [], color=_UNDECIDED, linewidth=6, label="probability, not decided" if known else "probability")]
    if known:
        keys.append(Line2D([], [], label="at the start", **_START | {"markersize": 7}))
    if sure:
        label = f"decided (advantage above {DECIDED:g} standard errors)"
        keys.append(Line2D([], [], color=_DECIDED, linewidth=6, marker="D", markersize=8, markeredgecolor=BACKGROUND,
                           label=label))  # fmt: skip
    if any(row.no_op for row in rows):
        keys.append(Line2D([], [], color=FAINT, linewidth=0, marker="x", label="no effect on this network"))
    return keys


def _fitted(text: str, width: float, size: float = SMALL) -> tuple[str, float]:
    """Text and font size that fit into inches: smaller if need be, and cut off where even that is too long."""
    size = min(size, max(_LEAST, width / (_INCHES * max(len(text), 1))))
    letters = int(width / (_INCHES * size) + 1e-6)  # what was made to fit fits
    return (text if len(text) <= letters else text[: max(letters - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}"), size


def _draw_table(
    made: Figure, rows: Sequence[PolicyRow], cascades: Sequence[str], classes: Sequence[str], height: float, more: int
) -> None:
    """Every cascade: its operations, and below them a row for each class."""
    write(made, _EDGE, 0.14, "What each class of patches is augmented with", color=TEXT, fontsize=LARGE,
          fontweight="bold")  # fmt: skip
    hint = "one operation of each cascade is drawn for every patch"
    hint += f"; {more} more classes have changed less" if more else ""
    told, well = verdict(rows)
    write(made, _EDGE, 0.4, told, color=TEXT if well else BRIGHTER, fontsize=MEDIUM, fontweight="bold")
    write(made, _EDGE, 0.66, hint, color=FAINT, fontsize=SMALL)
    axes = place(made, 0, 0, WIDTH, height)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)  # inches from the top
    axes.axis("off")
    by_place: dict[tuple[str, str], list[PolicyRow]] = {}
    for row in rows:
        by_place.setdefault((row.cascade, row.kind), []).append(row)
    width = (WIDTH - _LEFT - _EDGE) / max(len(of_row) for of_row in by_place.values())
    top = _TOP
    for cascade in cascades:
        _draw_header(axes, by_place[cascade, classes[0]], top, width)
        top += _HEADER
        for name in classes:
            text, size = _fitted(name, _LEFT - _EDGE - 0.25)
            axes.text(_EDGE + 0.12, top + _ROW / 2, text, color=TEXT, fontsize=size, va="center")
            for column, row in enumerate(by_place[cascade, name]):
                _draw_cell(axes, row, _LEFT + column * width, top, width)
            top += _ROW
        top += _BETWEEN


def _draw_header(axes: Axes, row: Sequence[PolicyRow], top: float, width: float) -> None:
    """The cascade's name and its operations."""
    name = row[0].cascade
    text, size = _fitted(readable_cascade(name), _LEFT - _EDGE - 0.05, MEDIUM)
    axes.text(_EDGE, top + _HEADER / 2, text, color=TEXT, fontsize=size, fontweight="bold", va="center")
    room = _LEFT - _EDGE - 0.3 - 1.15 * _INCHES * size * len(text)  # bold letters are wider
    if name != readable_cascade(name) and room > _LEAST * _INCHES * len(name):
        text, size = _fitted(name, room)  # as options and policy.json call it
        axes.text(_LEFT - 0.15, top + _HEADER / 2, text, color=FAINT, fontsize=size, va="center", ha="right")
    axes.plot([_EDGE, WIDTH - _EDGE], [top - 0.02] * 2, color=_TRACK, linewidth=0.8)
    for column, words in enumerate(["nothing", *headings([cell.operation for cell in row[1:]])]):
        text, size = _fitted(words, width - 0.05)
        axes.text(_LEFT + column * width, top + _HEADER / 2, text, color=FAINT, fontsize=size, va="center")


def _draw_cell(axes: Axes, row: PolicyRow, left: float, top: float, width: float) -> None:
    """One operation of one class: its probability, what that was at the start, and what is known of it."""
    length, middle = _BAR * width, top + _ROW / 2
    sure = row.decided and not row.no_op
    axes.barh(middle, length, _THICK, left=left, color=_TRACK)
    drawn = max(length * row.probability, _SEEN)
    axes.barh(middle, drawn, _THICK, left=left, color=_DECIDED if sure else _UNDECIDED)
    if row.start is not None:
        axes.plot([left + length * row.start], [middle + _THICK / 2], **_START)
    # a short bar's colour is hardly seen: the number has it too
    style: dict[str, Any] = {"color": _DECIDED if sure else FAINT, "fontsize": 8.0, "va": "center",
                             "fontweight": "bold" if sure else "normal"}  # fmt: skip
    axes.text(left + length + 0.04, middle, f"{row.probability:.2f}".removeprefix("0"), **style)
    mark = left + length + 0.04 + _NUMBER
    if sure:
        axes.plot([mark], [middle], marker="D", markersize=5, color=_DECIDED)
    elif row.no_op:
        axes.plot([mark], [middle], marker="x", markersize=4.5, color=FAINT)


def _curves(log: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Entropy of each class, and of the views, over the epochs of a log."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in log:
        for name in [*classes, "views"]:
            value = row.get(f"entropy_{name}")
            if isinstance(value, int | float):
                epochs, values = found.setdefault(name, ([], []))
                epochs.append(int(row["epoch"]))
                values.append(float(value))
    return found


def _panel(
    made: Figure, left: float, top: float, title: str, hint: str, before: float = 0.0, after: float = 0.0
) -> Axes:
    """A diagram in the lower part, with its title, and room in inches before and after it."""
    write(made, left, top + 0.12, title, color=TEXT, fontsize=LARGE, fontweight="bold")
    text, size = _fitted(hint, WIDTH / 2 - 2 * _EDGE)
    write(made, left, top + 0.4, text, color=FAINT, fontsize=size)
    axes = place(made, left + 0.4 + before, top + 0.72, WIDTH / 2 - 0.75 - before - after, _BELOW - 1.2)
    axes.tick_params(colors=FAINT, labelsize=SMALL, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _draw_entropy(made: Figure, left: float, top: float, curves: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """How undecided each class is, epoch by epoch."""
    axes = _panel(made, left, top, "Entropy", "1: as good as a uniform choice, 0: certain", after=1.15)
    axes.grid(color="#ffffff", alpha=0.08, linewidth=0.8)
    for number, (name, (epochs, values)) in enumerate(curves.items()):
        axes.plot(
            epochs, values, color=TEXT if name == "views" else COLOURS[number], marker=_MARKERS[number % len(_MARKERS)],
            markersize=4, markevery=max(1, len(epochs) // 6), linewidth=1.6, label=_fitted(name, 0.85, 8.0)[0],
        )  # fmt: skip
    low = min(min(values) for _, values in curves.values())
    axes.set_ylim(min(low, 0.9) - 0.03, 1.03)
    last = max(max(epochs) for epochs, _ in curves.values())
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=FAINT, fontsize=SMALL)
    axes.legend(
        fontsize=8, labelcolor=TEXT, facecolor=BACKGROUND, edgecolor="none", loc="upper left", handlelength=1.4,
        bbox_to_anchor=(1.0, 1.05), borderaxespad=0.2,
    )  # fmt: skip


@torch.no_grad()
def _draw_views(made: Figure, left: float, top: float, policy: TestTimePolicy) -> None:
    """The views that are averaged at test time, the heaviest first."""
    views, weights = policy.top(policy.z)
    shown, rest = views[:_MOST_VIEWS], len(views) - _MOST_VIEWS
    hint = f"weights of the {policy.z} most probable of {len(policy.operations)}"
    hint += f"; {rest} lighter ones not drawn" if rest > 0 else ""
    axes = _panel(made, left, top, "Views at test time", hint, before=1.0)
    values = weights[: len(shown)].tolist()
    axes.barh(range(len(shown)), values, 0.62, color=_UNDECIDED)
    axes.set_ylim(max(len(shown), 4) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(values))
    axes.set_xticks([])
    size = SMALL if len(shown) <= 8 else _LEAST
    fitted = [_fitted(readable(o.name), 1.3, size) for o in shown]
    small = min(fit for _, fit in fitted)
    axes.set_yticks(range(len(shown)), [text for text, _ in fitted], color=TEXT, fontsize=small)
    for number, value in enumerate(values):
        axes.text(value, number, f" {value:.2f}", color=TEXT, fontsize=size, va="center")
