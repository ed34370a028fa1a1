# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A report as one page: HTML with its style and pictures in it, which loads nothing and runs nothing.

`render` makes a page of any template in ``report/templates``; ``base.html.j2`` has the style and the frame of all.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from monai_autoaug.errors import ConfigError
from monai_autoaug.report.charts import line_chart, looks_of
from monai_autoaug.report.content import collect
from monai_autoaug.report.predicted import PredictedCase, predicted_cases
from monai_autoaug.report.reading import read_source
from monai_autoaug.report.shows import epoch_rows, generator_rows, operation_rows
from monai_autoaug.report.source import Source
from monai_autoaug.report.stage import Stage
from monai_autoaug.report.style import COLOURS
from monai_autoaug.report.verdict import read_baseline
from monai_autoaug.writing import write_text

__all__ = ["PAGE", "page_name", "render", "report_page", "write_report"]

PAGE = "report.html"


def render(template: str, **given: Any) -> str:
    """A page, as text.

    Args:
        template: a file in ``report/templates``, such as "report.html.j2".
        given: what it names.

    >>> page = render("base.html.j2", title="Nothing")
    >>> page.startswith("<!DOCTYPE html>"), "<title>Nothing</title>" in page, "://" in page
    (True, True, False)
    """
    environment = Environment(
        loader=PackageLoader("monai_autoaug.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (number, signed, percent, duration, plain, coded)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"structure_colours": COLOURS}
    return environment.get_template(template).render(**given)


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none.

    >>> number(0.84802), number(None), number(12345.6, 0), number(3.0, 2)
    ('0.848', '–', '12346', '3.00')
    """
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign.

    >>> signed(0.0123), signed(-0.5, 1)
    ('+0.012', '−0.5')
    """
    return "\N{EN DASH}" if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plain(value: float | None) -> str:
    """A number of any size in three digits.

    >>> plain(0.001234), plain(12345.0), plain(3.0), plain(None)
    ('0.00123', '12345', '3', '–')
    """
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def coded(text: str) -> Markup:
    """Text in which commands and options of the command line are set as such, and not broken into two.

    >>> coded("give --data <it>")
    Markup('give <code>--data</code> &lt;it&gt;')
    """
    pattern = r"(?<![\w-])(--[a-z][a-z-]*|monai-autoaug [a-z]+)"
    return Markup(re.sub(pattern, r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped


def percent(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """Where a value lies between two, for CSS.

    >>> percent(0.25), percent(2.0), percent(0.0, -1.0, 1.0)
    ('25.00%', '100.00%', '50.00%')
    """
    share = (value - low) / (high - low) if high > low else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def duration(seconds: float | None) -> str:
    """A time, for people.

    >>> duration(42.0), duration(1268.0), duration(9000.0), duration(None)
    ('42 s', '21 min', '2.5 h', '–')
    """
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def report_page(
    source: Source, content: Mapping[str, Any], *, cases: Sequence[PredictedCase] = (), why_no_cases: str = ""
) -> str:
    """The page of a training.

    Args:
        source: the training.
        content: what `collect` says of it.
        cases: validation cases that are shown.
        why_no_cases: where there are none, the reason.
    """
    stage = None if source.kept is None else Stage(source.kept.patch)
    curves = content["curves"]
    rest = [s["name"] for curve in reversed(curves) for s in curve["series"] if curve["figure"] != "dice"]
    kinds = [generator["kind"] for generator in content["generators"]]
    families = {True: looks_of(source.structures), False: looks_of([*kinds, *rest])}
    figures = _figure_rows(content["generators"])
    courses = [] if content["policy"] is None else [_course(n, c) for n, c in content["policy"]["course"].items() if c]
    return render(
        "report.html.j2",
        title=f"Report: {content['method']}",
        c=content,
        stage=stage,
        before=None if stage is None else stage.before(),
        span=_span(content["against"]),
        dice_span=(_least(content["dice"]), 1.0),
        structures=[(n, COLOURS[k % len(COLOURS)]) for k, n in enumerate(source.structures)],
        generators=generator_rows(source, stage) if stage is not None and source.augmenters is not None else [],
        operations=operation_rows(source, stage) if stage is not None and source.policies is not None else [],
        epochs=epoch_rows(source.kept, stage) if stage is not None and source.kept is not None else [],
        cases=cases,
        why_no_cases=why_no_cases,
        charts=[line_chart(curve, families[curve["figure"] == "dice"]) for curve in curves],
        figure_rows=figures,
        any_bad=any(figure and figure["bad"] for _, _, values in figures for figure in values),
        courses=[line_chart(course, looks_of([s["name"] for s in course["series"]])) for course in courses],
    )


def _figure_rows(generators: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[dict[str, Any] | None]]]:
    """Name, hint and one value a generator, None where it has none."""
    by_kind = [{figure["name"]: figure for figure in g["figures"]} for g in generators]
    known = [f for g in generators for f in g["figures"]]
    names = dict.fromkeys(f["name"] for f in sorted(known, key=lambda f: not f["measured"]))
    hints = {name: next((f[name]["hint"] for f in by_kind if name in f), "") for name in names}
    return [(name, hints[name], [figures.get(name) for figures in by_kind]) for name in names]


def _span(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What the differences' axis shows: all intervals, and 0 in the middle."""
    parts = [*rows, *(part for row in rows for part in row["structures"])]
    ends = [abs(v) for part in parts for v in (part["mean"], part["low"], part["high"]) if v is not None]
    most = max([0.01, *ends]) * 1.08
    return -most, most


def _least(dice: Mapping[str, Any] | None) -> float:
    """Where the axis of Dice begins: a tenth below the smallest value, so that differences are seen."""
    values = [v for case in (dice or {}).get("cases", ()) for v in case["dice"].values() if v is not None]
    values += [v for row in (dice or {}).get("rows", ()) for v in (row["low"], row["mean"]) if v is not None]
    return max(0.0, math.floor(10 * min([1.0, *values]) - 1e-9) / 10) if values else 0.0


def _course(name: str, series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A diagram of one class's probabilities."""
    hint = "the operations that have changed most; epoch 0 is the start"
    title = f"Probabilities, class {name}"
    return {"title": title, "hint": hint, "figure": "", "bounds": [0.0, None], "series": list(series)}


def page_name(run: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Where a report is written.

    Args:
        run: see `write_report`.
        output: see `write_report`.

    Raises:
        ConfigError: the name has another ending than ``.html``.

    >>> page_name("run").as_posix(), page_name("run", "pages").as_posix(), page_name("run", "a.html").as_posix()
    ('run/report.html', 'pages/report.html', 'a.html')
    """
    page = Path(run) / PAGE if output is None else Path(output)
    if page.suffix.lower() in (".html", ".htm"):
        return page
    if page.suffix and not page.is_dir():
        raise ConfigError(f"a report is an HTML page, but {page} has another ending; give a name that ends in .html")
    return page / PAGE


def write_report(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    against: Sequence[str | os.PathLike[str]] = (),
    names: bool = False,
) -> Path:
    """Write the report of a training: one page that needs nothing else, and the same as JSON beside it.

    Args:
        run: the folder of a run of ``monai-autoaug train``, or a fold of one of this package's nnU-Net trainers.
        output: the page; a folder: ``report.html`` in it; None: in ``run``.
        data: the data set, for pictures of validation cases; None: where the run says it is, if it is still there.
        against: folders of other trainings (also of plain nnU-Net) that were validated on the same cases.
        names: tell names of cases and paths.

    Returns:
        The page; the JSON has its name with the ending ``.json``.

    Raises:
        ConfigError: a folder is no training, or the output's name doesn't end in ``.html``.
        DataError: a training in ``against`` was validated on other cases, or a file can't be read.
    """
    page = page_name(run, output)
    source = read_source(Path(run))
    content = collect(source, [read_baseline(Path(folder)) for folder in against], names=names)
    cases, why = predicted_cases(source, None if data is None else Path(data), names=names)
    write_text(page, report_page(source, content, cases=cases, why_no_cases=why))
    write_text(page.with_suffix(".json"), json.dumps(content, indent=1, allow_nan=False) + "\n")
    return page
