# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What nnU-Net's progress.png shows besides its own curves: how undecided the policies are, epoch by epoch.

nnU-Net draws the picture after each epoch, by the plotting library that its logger has loaded, on as many panels as it
asks that library for. It gets them, and ours come below them: one picture, in one style.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.training.logging import nnunet_logger

__all__ = ["Panel", "entropy_panels", "panels_below"]

_MOST = 4  # classes that get a panel: a picture has an end
_COLOURS = 10  # that nnU-Net's style tells apart


@dataclass(frozen=True)
class Panel:
    """Curves over the epochs between 0 and 1.

    Args:
        title: what they are of.
        curves: by name, one value an epoch, None where there is none.
        epochs: of the values.
    """

    title: str
    curves: Mapping[str, Sequence[float | None]]
    epochs: Sequence[int]

    def draw(self, axes: Any) -> None:
        """Draw them on matplotlib's axes, the key above as in nnU-Net's own panels."""
        for number, (name, values) in enumerate(self.curves.items()):
            line = ("-", "--", ":")[number // _COLOURS % 3]
            known = [float("nan") if value is None else value for value in values]
            axes.plot(
                self.epochs, known, color=f"C{number % _COLOURS}", ls=line, label=name, linewidth=4,
                marker="o" if len(known) == 1 else None, markersize=16,
            )  # fmt: skip
        axes.set(ylim=(-0.02, 1.02), xlabel="epoch", ylabel="entropy")
        axes.set_title(f"{self.title} (1: all operations alike, 0: decided)", loc="right")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.04), ncols=5)


def entropy_panels(log: Path, classes: Sequence[str], cascades: Sequence[str]) -> list[Panel]:
    """The policies' entropies in a trainer's ``autoaug.jsonl``: of each class and the views, and of all cascades.

    Args:
        log: the file, which need not be there.
        classes: of the training policy. Of more than four those that are most decided get panels of their own.
        cascades: of the training policy.

    >>> entropy_panels(Path("nowhere.jsonl"), ["all"], ["gamma"])
    []
    """
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    rows = [row for row in map(json.loads, text.splitlines()) if f"entropy_{classes[0]}" in row]
    if not rows:
        return []
    epochs, last = [int(row["epoch"]) for row in rows], rows[-1]
    chosen = sorted(classes, key=lambda name: _known(last[f"entropy_{name}"]))[:_MOST]
    chosen = [name for name in classes if name in chosen]
    of_most = "" if len(chosen) == len(classes) else f", the most decided {len(chosen)} of {len(classes)} classes"
    kinds = [*chosen, *(["views"] if "entropy_views" in last else [])]
    panels = [Panel(f"Policies{of_most}", {k: [row.get(f"entropy_{k}") for row in rows] for k in kinds}, epochs)]
    for name in chosen:
        curves = {cascade: [row.get(f"entropy_{name}_{cascade}") for row in rows] for cascade in cascades}
        panels.append(Panel(f"Cascades, class {name}", curves, epochs))
    return panels


def _known(value: float | None) -> float:
    return 1.0 if value is None else value


@contextmanager
def panels_below(panels: Sequence[Panel]) -> Iterator[None]:
    """Within the block pictures of several rows that nnU-Net's logger draws have these below."""
    own = nnunet_logger.plt
    nnunet_logger.plt = _Taller(own, panels) if panels else own
    try:
        yield
    finally:
        nnunet_logger.plt = own


class _Taller:
    """The logger's plotting library, whose pictures of several rows have some more."""

    def __init__(self, library: Any, panels: Sequence[Panel]) -> None:
        self._library, self._panels = library, panels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def subplots(self, rows: int = 1, columns: int = 1, **given: Any) -> Any:
        """See matplotlib; the rows that were asked for are returned."""
        if rows == 1 or columns > 1 or "figsize" not in given:
            return self._library.subplots(rows, columns, **given)
        width, height = given.pop("figsize")
        more = rows + len(self._panels)
        figure, axes = self._library.subplots(more, 1, figsize=(width, height / rows * more), **given)
        for panel, below in zip(self._panels, axes[rows:], strict=True):
            panel.draw(below)
        return figure, axes[:rows]
