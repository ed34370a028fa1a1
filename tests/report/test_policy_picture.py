# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The picture of policies: every operation against its start, decided only where it is, nothing cut off or covered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from looking import colour_share, texts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import Evidence, Policies, Sampled, TestTimePolicy, TrainingPolicy
from monai_autoaug.report import policy_figure, policy_rows, readable, readable_cascade
from monai_autoaug.report.names import headings
from monai_autoaug.report.policy_rows import verdict
from monai_autoaug.report.style import COLOURS

TWO = ("background", "foreground")
FACTORS = tuple(f"brightness_multiply_{a}" for a in ("1.00_1.10", "1.10_1.20", "1.20_1.30"))


def learned(classes: tuple[str, ...] = TWO, *, decided: bool = True, z: int = 8, **options: Any) -> Policies:
    """Mirroring along the first axis was better for the first class, and has become more probable for all of them."""
    training = TrainingPolicy.preset("nnunet", classes, **options)
    evidence, start = Evidence(training), training.logits.detach().clone()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randint(len(c), (200,), generator=generator) for c in training.cascades], 1)
    h = torch.randn(200, generator=generator)
    if decided:
        evidence.add(Sampled(h - 2.0 * drawn[:, 4], torch.zeros(200, dtype=torch.long), drawn))
    place = [o.name for c in training.cascades for o in c.operations].index("flip_d")
    with torch.no_grad():
        training.logits[:, place] += 1.0
    test_time = TestTimePolicy.preset("nnunet", z=z)
    with torch.no_grad():
        test_time.logits.normal_(generator=generator)
    return Policies(training, test_time, {}, evidence.seen(start))


def log(classes: tuple[str, ...] = TWO, epochs: int = 5) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for e in range(1, epochs + 1):
        row: dict[str, Any] = {"epoch": e, "loss": 1.0, "entropy_views": 0.9 - 0.01 * e}
        rows.append(row | {f"entropy_{name}": 0.8 - 0.02 * e for name in classes} | {f"entropy_{TWO[0]}_scale": 0.1})
    return rows


def test_rows_say_what_has_become_of_every_operation() -> None:
    rows = policy_rows(learned(), FACTORS)
    assert len(rows) == 2 * 62
    (first, second) = [row for row in rows if row.operation == "flip_d"]
    assert (first.kind, first.cascade, first.start, first.rose, first.decided) == (
        "background", "mirrorS", pytest.approx(0.5), True, True,
    )  # fmt: skip
    assert first.probability == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=1e-6)
    assert second.rose
    assert not second.decided  # probable, but nothing was seen of it
    assert {row.operation for row in rows if row.no_op} == set(FACTORS)
    assert not any(row.rose for row in rows if row.cascade == "gamma")
    plain = policy_rows(Policies(training=TrainingPolicy.preset("nnunet")))
    assert not any(row.decided or row.rose or row.start is not None for row in plain)
    assert policy_rows(Policies(test_time=TestTimePolicy.preset("nnunet"))) == []


def test_decided_is_marked_where_the_evidence_says_so_alone(tmp_path: Path, made: list[Figure]) -> None:
    policy_figure(learned(), tmp_path / "sure.png", log=log(), no_ops=FACTORS)
    policy_figure(learned(decided=False), tmp_path / "unsure.png")
    assert colour_share(tmp_path / "sure.png", COLOURS[0]) > 2 * colour_share(tmp_path / "unsure.png", COLOURS[0])
    sure, unsure = texts(made[0]), texts(made[1])
    assert "decided (advantage above 3 standard errors)" in sure
    assert not any(text.startswith("decided") for text in unsure)
    assert "1 of 15 cascades decided; not decided: pale" in sure
    assert "none of 15 cascades is decided" in unsure
    diamonds = [len([line for line in f.axes[0].lines if line.get_marker() == "D"]) for f in made]
    crosses = [len([line for line in f.axes[0].lines if line.get_marker() == "x"]) for f in made]
    assert diamonds == [1, 0]
    assert crosses == [2 * len(FACTORS), 0]
    assert "no effect on this network" in sure
    assert "no effect on this network" not in unsure


def test_it_shows_every_class_and_cascade_the_entropies_and_the_views(tmp_path: Path, made: list[Figure]) -> None:
    found = learned(z=5)
    policy_figure(found, tmp_path / "p.png", log=log())
    said = texts(made[0])
    assert found.training is not None
    assert found.test_time is not None
    for cascade in found.training.cascades:
        assert readable_cascade(cascade.name) in said
    assert {"rotF", "badd", "0–10°", "±0–0.1 SD", "blur 0.4–0.6"} <= set(said)
    assert sum(text == "foreground" for text in said) == len(found.training.cascades) + 1  # and the curve's name
    assert "weights of the 5 most probable of 84" in said
    views, weights = found.test_time.top(5)
    for view, weight in zip(views, weights.tolist(), strict=True):
        assert readable(view.name) in said
        assert f" {weight:.2f}" in said
    curves = {line.get_label(): list(line.get_ydata()) for line in made[0].axes[1].lines}
    assert set(curves) == {*TWO, "views"}
    assert curves["foreground"] == pytest.approx([row["entropy_foreground"] for row in log()])


def ticks_outside(picture: Figure) -> list[Text]:
    """Labels of ticks beyond the ends of their axis, which matplotlib keeps and doesn't draw."""
    found = []
    for axes in picture.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if not axes.axison or not low <= t.get_loc() <= high]
    return found


MANY = ("background", *(f"structure number {k} of the left hemisphere" for k in range(1, 40)))
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "usual": ({}, log()),
    "many classes": ({"classes": MANY, "z": 84}, log(MANY, 200)),
    "extra cascades": ({"extra": ("elastic", "bias_field", "gibbs", "channel_scale")}, log(epochs=1)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_all_text_is_large_enough_and_inside(case: str, tmp_path: Path, made: list[Figure]) -> None:
    """Nothing below 7 points, nothing beyond the picture, and no two texts on each other."""
    options, rows = CASES[case]
    policy_figure(learned(**options), tmp_path / "p.png", log=rows, no_ops=FACTORS)
    picture = made[0]
    FigureCanvasAgg(picture).draw()
    width, height = picture.bbox.width, picture.bbox.height
    boxes, outside = [], ticks_outside(picture)
    for text in picture.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().strip() or not text.get_visible() or text in outside:
            continue
        box = text.get_window_extent()
        assert text.get_fontsize() >= 7, text.get_text()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()  # noqa: PT018
        boxes.append((text.get_text(), box))
    for n, (one, a) in enumerate(boxes):
        for other, b in boxes[n + 1 :]:
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{one!r} on {other!r}"


def test_parts_may_be_missing(tmp_path: Path, made: list[Figure]) -> None:
    both = learned()
    policy_figure(Policies(training=both.training), tmp_path / "training.png")
    policy_figure(Policies(test_time=both.test_time), tmp_path / "views.png", log=log(())[:2])
    policy_figure(Policies(test_time=both.test_time), tmp_path / "alone.png")
    assert [len(f.axes) for f in made] == [1, 2, 1]
    assert not any("start" in text or "decided" in text for text in texts(made[0]))
    assert "Views at test time" in texts(made[1])
    with pytest.raises(ConfigError, match="needs a training-time or a test-time policy"):
        policy_figure(Policies(), tmp_path / "none.png")


def test_the_verdict_tells_a_collapse_and_what_was_only_given() -> None:
    found = learned()
    assert found.training is not None
    place = [o.name for c in found.training.cascades for o in c.operations].index("contrast_1.00_1.10")
    with torch.no_grad():
        found.training.logits[1, place] += 6.0
    told, well = verdict(policy_rows(found))
    assert told == (
        "1 of 15 cascades decided; not decided: pale; 1 collapsed onto an operation that is not decided"
    )
    assert not well
    assert verdict(policy_rows(learned())) == ("1 of 15 cascades decided; not decided: pale", True)
    assert verdict(policy_rows(learned(), ("flip_d",)))[0] == "none of 15 cascades is decided"  # by chance alone
    assert verdict(policy_rows(Policies(training=found.training)))[0].startswith("given, not learned")


def test_no_start_hides_a_bar_and_every_bar_is_seen(tmp_path: Path, made: list[Figure]) -> None:
    policy_figure(learned(), tmp_path / "p.png")
    axes = made[0].axes[0]
    bars = [patch.get_bbox() for patch in axes.patches]
    assert min(box.width for box in bars) >= 0.015 - 1e-9  # inches
    starts = [line for line in axes.lines if line.get_marker() == 6]  # a triangle that hangs below its place
    assert len(starts) == 2 * 62
    bottoms = {round(float(box.y1), 4) for box in bars}  # the axis points downwards
    assert {round(float(line.get_ydata()[0]), 4) for line in starts} <= bottoms


def test_every_operation_has_a_name_that_people_say() -> None:
    """Of the catalogues; no two operations of a cascade, and no two views, look alike."""
    extra = ("elastic", "bias_field", "gibbs", "channel_scale")
    for cascade in TrainingPolicy.preset("nnunet", extra=extra).cascades:
        names = [o.name for o in cascade.operations[1:]]
        for words in (list(map(readable, names)), headings(names)):
            assert len(set(words)) == len(names)
            assert "_" not in "".join(words)
        assert "_" not in readable_cascade(cascade.name)
    views = [readable(o.name) for o in TestTimePolicy.preset("nnunet").operations]
    assert len(set(views)) == 84
    assert "_" not in "".join(views)
    assert readable("user_made") == readable_cascade("user_made") == "user_made"
