# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The course of a training can be read: whole epochs, one look for a name, what is good and where a run warns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from looking import colour_share, texts
from matplotlib.figure import Figure
from matplotlib.image import imread

from monai_autoaug.errors import DataError
from monai_autoaug.methods.collapse import WARN_ABOVE, WARN_BELOW
from monai_autoaug.report import training_curves
from monai_autoaug.report.curves import TOPICS, _looks, read_log
from monai_autoaug.report.style import COLOURS


def test_training_curves(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"epoch": e, "loss": 1 / e, "dice": 1 - 1 / e, "affine_noise_share": 0.9, "note": "x"} for e in (1, 2, 3)]
    rows[0]["dice"] = None
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    few = imread(training_curves(log, tmp_path / "few.png"))
    assert colour_share(tmp_path / "few.png", COLOURS[0]) > 0.0005
    rows[2] |= {"discriminator_accuracy": 0.5, "affine_saturation": 0.1}
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert imread(training_curves(log, tmp_path / "more.png")).shape[0] > few.shape[0]
    log.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is not an object"):
        read_log(log)
    log.write_text('{"epoch": 1}\n')
    with pytest.raises(DataError, match="nothing that can be drawn"):
        training_curves(log, tmp_path / "nothing.png")
    with pytest.raises(DataError, match="can't be read as a training log"):
        training_curves(tmp_path / "missing.jsonl", tmp_path / "nothing.png")


def test_names_have_one_look_and_structures_the_colours_of_the_other_pictures() -> None:
    curve = ([1], [1.0])
    loss, dice, share, *_ = TOPICS
    found = {loss: {"mean": curve, "affine": curve}, dice: {"mean": curve, "tail": curve, "head": curve},
             share: {"affine": curve}}  # fmt: skip
    looks = _looks(found, ["head", "tail"])
    assert list(looks) == ["mean", "head", "tail", "affine"]
    assert [looks[n]["color"] for n in ("head", "tail", "affine")] == list(COLOURS[:3])
    many = _looks({dice: {str(k): curve for k in range(30)}}, [])
    assert len({(look["color"], look["marker"]) for n, look in many.items() if n != "mean"}) == 30


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_epochs_are_whole_numbers_and_the_same_in_all_diagrams(tmp_path: Path, made: list[Figure], epochs: int) -> None:
    log = tmp_path / "log.jsonl"
    rows: list[dict[str, float]] = [{"epoch": e, "loss": 1 / e} for e in range(1, epochs + 1)]
    rows[-1] |= {"dice": 0.8, "affine_saturation": 0.1}
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    training_curves(log, tmp_path / "t.png")
    ticks = [[t for t in axes.get_xticks() if 0.5 <= t <= epochs + 0.5] for axes in made[0].axes]
    assert ticks[0]
    assert all(t == round(t) for t in ticks[0])
    assert ticks == [ticks[0]] * 3


def test_curves_say_what_is_good_and_where_a_run_warns(tmp_path: Path, made: list[Figure]) -> None:
    log = tmp_path / "log.jsonl"
    figures = {"loss": 1.0, "dice": 0.5, "discriminator_accuracy": 0.5} | {f"affine_{n}": 0.5 for n in WARN_BELOW}
    log.write_text(json.dumps({"epoch": 1, **figures, "affine_saturation": 0.1}) + "\n")
    training_curves(log, tmp_path / "t.png")
    said = texts(made[0])
    assert {"lower is better", "higher is better, 1 is perfect"} <= set(said)
    drawn = {f"warns below {v:g}" for v in WARN_BELOW.values()}
    drawn |= {f"warns above {WARN_ABOVE[n]:g}" for n in ("saturation", "discriminator_accuracy")}
    for words in drawn:
        assert sum(text.endswith(words) for text in said) == 1
    assert len(made[0].axes) == 8
    for axes in made[0].axes[2:]:  # loss and Dice have no limit
        low, high = axes.get_ylim()
        (limit,) = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert low < limit < high


def test_no_curve_leaves_its_diagram(tmp_path: Path, made: list[Figure]) -> None:
    log = tmp_path / "log.jsonl"
    extreme = {"dice": 0.0, "affine_jacobian_minimum": 1.4, "deformation_jacobian_minimum": -2.05,
               "affine_displacement_mean": 0.001, "appearance_additive_mean": 0.0}  # fmt: skip
    log.write_text(json.dumps({"epoch": 1, "loss": float("nan"), **extreme}) + "\n")
    training_curves(log, tmp_path / "t.png")
    for axes in made[0].axes[1:]:
        low, high = axes.get_ylim()
        assert all(low < value < high for line in axes.lines for value in line.get_ydata())


def test_one_epoch_is_told_and_its_losses_are_not_torn_apart(tmp_path: Path, made: list[Figure]) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"epoch": e, "loss": 1.557, "loss_clean": 1.554} for e in (1, 2)]
    for number in (1, 2):
        log.write_text("".join(json.dumps(r) + "\n" for r in rows[:number]))
        training_curves(log, tmp_path / "t.png")
    assert ["epoch (there is only one, so no curves)" in texts(picture) for picture in made] == [True, False]
    low, high = made[0].axes[0].get_ylim()
    assert low < 1.554 < 1.557 < high
    assert high - low > 0.25
