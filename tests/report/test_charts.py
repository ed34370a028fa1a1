# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Lines go where their values are, limits are drawn, and the same in words."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from monai_autoaug.report.charts import line_chart, looks_of, ticks


def curve(**changes: Any) -> dict[str, Any]:
    series = [{"name": "mean", "epochs": [1, 2, 3], "values": [0.9, 0.5, 0.1]},
              {"name": "liver & co", "epochs": [1, 3], "values": [0.2, 0.8]}]  # fmt: skip
    return {
        "title": "Loss",
        "hint": "lower is better",
        "figure": "loss",
        "bounds": [0.0, 1.0],
        "series": series,
    } | changes


def parsed(chart: Any) -> ElementTree.Element:
    return ElementTree.fromstring(f"<svg>{chart.svg}</svg>")  # noqa: S314  # our own


def lines(chart: Any) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for path in parsed(chart).iter("path"):
        if path.get("class", "").startswith("line"):
            numbers = [float(n) for n in re.findall(r"[\d.]+", path.get("d", ""))]
            found[path.get("class", "").split()[1]] = list(zip(numbers[::2], numbers[1::2], strict=True))
    return found


def test_lines_are_linear_in_epochs_and_values() -> None:
    chart = line_chart(curve(), looks_of(["mean", "liver & co"]))
    mean, other = lines(chart)["s0"], lines(chart)["s1"]
    assert mean[1][0] == pytest.approx((mean[0][0] + mean[2][0]) / 2, abs=0.02)
    assert mean[1][1] == pytest.approx((mean[0][1] + mean[2][1]) / 2, abs=0.02)
    assert mean[0][1] < mean[2][1]  # larger values are further up
    assert (other[0][0], other[1][0]) == (mean[0][0], mean[2][0])
    step = (mean[2][1] - mean[0][1]) / 0.8
    assert other[0][1] - other[1][1] == pytest.approx(0.6 * step, abs=0.05)
    words = [text.text for text in parsed(chart).iter("text")]
    assert {"0", "0.2", "1", "2", "3", "epoch"} <= set(words)
    assert chart.alt == "Loss, epochs 1 to 3. mean: from 0.9 to 0.1; liver & co: from 0.2 to 0.8."
    assert [name for name, _, _ in chart.key] == ["mean", "liver & co"]


@pytest.mark.parametrize(("figure", "below"), [("noise_share", True), ("saturation", False)])
def test_what_a_run_warns_of_is_marked(figure: str, below: bool) -> None:
    chart = line_chart(curve(figure=figure), {})
    (zone,) = parsed(chart).iter("rect")
    (limit,) = [path for path in parsed(chart).iter("path") if path.get("class") == "limit"]
    height = float(re.findall(r"[\d.]+", limit.get("d", ""))[1])
    top = float(zone.get("y", ""))
    assert (top == pytest.approx(height)) is below
    assert f"warns {'below' if below else 'above'} 0.3" in chart.hint


def test_gaps_single_points_and_flat_lines_can_be_drawn() -> None:
    gap = curve(series=[{"name": "a", "epochs": [1, 2, 3], "values": [0.1, None, 0.3]}])
    assert [len(points) for points in lines(line_chart(gap, looks_of(["a"]))).values()] == [2]
    single = line_chart(curve(series=[{"name": "a", "epochs": [1], "values": [0.5]}]), looks_of(["a"]))
    assert lines(single) == {}
    assert len(list(parsed(single).iter("circle"))) == 1
    flat = curve(bounds=[None, None], series=[{"name": "a", "epochs": [1, 2], "values": [2.0, 2.0]}])
    (points,) = lines(line_chart(flat, looks_of(["a"]))).values()
    assert 20 < points[0][1] < 150  # in the middle
    nothing = curve(series=[{"name": "a", "epochs": [1], "values": [None]}])
    assert "nan" not in line_chart(nothing, {}).svg


def test_zero_is_shown_where_it_matters() -> None:
    gain = line_chart(curve(bounds=[0.0, 0.0], series=[{"name": "a", "epochs": [1, 2], "values": [-0.02, -0.01]}]), {})
    assert "0" in [text.text for text in parsed(gain).iter("text")]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.02), (1, 1000), (1e-5, 3e-5), (0.5, 0.5)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert found == sorted(set(found))


def test_names_keep_their_look_and_are_told_apart() -> None:
    looks = looks_of([f"n{k}" for k in range(20)])
    assert len(set(looks.values())) == 21  # with the mean
    assert looks_of(["n0", "n1"])["n1"] == looks["n1"]
