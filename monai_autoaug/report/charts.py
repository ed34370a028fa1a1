# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Line charts as SVG whose colours are those of the page, so that they follow it into the dark and onto paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from monai_autoaug.methods.collapse import WARN_ABOVE, WARN_BELOW

__all__ = ["Chart", "line_chart", "looks_of", "ticks"]

_WIDTH, _HEIGHT = 340, 180  # of the view box, about the pixels that a chart gets
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 8, 24
_DASHES = ("", "5 3", "2 2", "8 3 2 3")
COLOURS = 8  # that the page knows, as --s1 to --s8


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Args:
        title: above it.
        hint: how its values are read.
        svg: what is inside of the ``<svg>``.
        width: of the view box.
        height: of the view box.
        key: name, class and dashes of each line.
        alt: the chart in words.
    """

    title: str
    hint: str
    svg: str
    width: int
    height: int
    key: tuple[tuple[str, str, str], ...]
    alt: str


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, at most ``most`` + 1.

    >>> ticks(0.0, 1.0), ticks(0.83, 0.91)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.84, 0.86, 0.88, 0.9])
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next((n * power for n in (1, 2, 5, 10) if (high - low) / (n * power) <= most), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour's class and dashes for each name, the same in all charts; the mean is drawn in ink.

    >>> looks_of(["mean", "liver"])
    {'mean': ('s0', ''), 'liver': ('s1', '')}
    """
    others = [name for name in dict.fromkeys(names) if name != "mean"]
    looks = {"mean": ("s0", "")}
    for k, name in enumerate(others):
        looks[name] = f"s{k % COLOURS + 1}", _DASHES[k // COLOURS % len(_DASHES)]
    return looks


def line_chart(curve: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> Chart:
    """One diagram.

    Args:
        curve: ``title``, ``hint``, ``figure`` (by which a limit is known), ``bounds`` (what the vertical axis shows at
            least, each a number or None) and ``series``: a list of ``name``, ``epochs`` and ``values``.
        looks: see `looks_of`.
    """
    series = [(s["name"], [(e, v) for e, v in zip(s["epochs"], s["values"], strict=True) if v is not None])
              for s in curve["series"]]  # fmt: skip
    series = [(name, points) for name, points in series if points]
    figure = curve.get("figure", "")
    limit = WARN_BELOW.get(figure, WARN_ABOVE.get(figure))
    if figure == "displacement_mean":
        limit = None  # it is a number of voxels
    low, high = _range([v for _, points in series for _, v in points], curve["bounds"], limit)
    epochs = [e for _, points in series for e, _ in points]
    first, last = min([*epochs, 1]), max([*epochs, 1])
    across = _WIDTH - _LEFT - _RIGHT

    def x(epoch: float) -> float:
        return round(_LEFT + across * ((epoch - first) / (last - first) if last > first else 0.5), 2)

    def y(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low)), 2)

    parts = _axes(low, high, first, last, x, y)
    if limit is not None:
        edge = y(low) if figure in WARN_BELOW else y(high)
        top, bottom = sorted((y(limit), edge))
        parts.append(f'<rect class="beyond" x="{_LEFT}" y="{top}" width="{across}" height="{bottom - top:.2f}"/>')
        parts.append(f'<path class="limit" d="M{_LEFT} {y(limit)}h{across}"/>')
    for name, points in series:
        colour, dashes = looks.get(name, ("s0", ""))
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        path = "L".join(f"{x(e)} {y(v)}" for e, v in points)
        if len(points) > 1:
            parts.append(f'<path class="line {colour}"{dash} d="M{path}"/>')
        every = max(1, len(points) // 8)
        dots = points[::every] if len(points) > 1 else points
        parts += [f'<circle class="dot {colour}" cx="{x(e)}" cy="{y(v)}" r="2.4"/>' for e, v in dots]
    told = [f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in series]
    side = "below" if figure in WARN_BELOW else "above"
    hint = curve["hint"] + (f"; warns {side} {limit:g}" if limit is not None else "")
    alt = f"{curve['title']}, epochs {first} to {last}. {'; '.join(told)}."
    key = tuple((name, *looks.get(name, ("s0", ""))) for name, _ in series)
    return Chart(curve["title"], hint, "".join(parts), _WIDTH, _HEIGHT, key, alt)


def _range(values: Sequence[float], bounds: Sequence[float | None], limit: float | None) -> tuple[float, float]:
    """What the vertical axis shows: all values, bounds and the limit, and never less than can be told apart."""
    known = [*values, *(b for b in (*bounds, limit) if b is not None)] or [0.0, 1.0]
    low, high = min(known), max(known)
    least = 0.1 * max(abs(low), abs(high)) or 0.1
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    room = 0.06 * (high - low)
    fixed_low = bounds[0] is not None and low >= bounds[0]
    fixed_high = bounds[1] is not None and high <= bounds[1] and bounds != [0.0, 0.0]
    return (low if fixed_low and bounds != [0.0, 0.0] else low - room), (high if fixed_high else high + room)


def _axes(low: float, high: float, first: int, last: int, x: Any, y: Any) -> list[str]:
    """Grid, numbers and the name of the horizontal axis."""
    parts = []
    for value in ticks(low, high):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        text = f"{value:g}".replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 3.6:.2f}" text-anchor="end">{text}</text>')
    between = {round(value) for value in ticks(first, last)}
    shown = sorted({first, last} | {e for e in between if min(x(last) - x(e), x(e) - x(first)) > 22})
    for epoch in shown:
        place = f'x="{x(epoch)}" y="{_HEIGHT - 8}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{epoch}</text>')
    parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{_HEIGHT - 8}" text-anchor="end">{escape("epoch")}</text>')
    return parts
