# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures of operations and generators show what these do, in mm and standard deviations."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug.methods.sample_file import Kept, Patch, Shot, planes
from monai_autoaug.policies import Policies, TrainingPolicy
from monai_autoaug.policies.evidence import Seen
from monai_autoaug.report.shows import epoch_rows, operation_rows
from monai_autoaug.report.source import Source
from monai_autoaug.report.stage import Stage


def patch(dims: int = 3, **changes: Any) -> Patch:
    image = torch.rand(1, *(16,) * dims, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, *(16,) * dims)
    label[(1, *[slice(4, 10)] * dims)] = 1
    label[0] = 1 - label[1]
    given: dict[str, Any] = {"margin": (2,) * dims, "spacing": (1.0,) * dims, "orientation": "RAS"[:dims],
                             "structures": ("liver",), "regions": False, "cuts": (4,) * dims}  # fmt: skip
    return Patch(image, label, **(given | changes))


def learned(**risen: float) -> Source:
    """A policy in which the first class has come to prefer some operations."""
    policy = TrainingPolicy.preset("nnunet", ("background", "foreground"))
    start = torch.stack([torch.cat(policy.probabilities(name)) for name in policy.classes]).detach()
    names = [o.name for c in policy.cascades for o in c.operations]
    with torch.no_grad():
        for name, logit in risen.items():
            policy.logits[0, names.index(name)] += logit
    infinite = torch.full_like(start, float("inf"))
    return Source("MONAI", Path("run"), "joint_policy", ("liver",), (),
                  policies=Policies(policy, None, {}, Seen(start, torch.zeros_like(start), infinite)))  # fmt: skip


def test_what_rose_most_is_shown_once_a_cascade() -> None:
    rows = operation_rows(learned(rotate_hw_20_30=3.0, rotate_hw_10_20=2.0, flip_d=1.0), Stage(patch()))
    assert [row.title for row in rows] == ["rotate 20\N{EN DASH}30\N{DEGREE SIGN} H-W", "mirror D"]
    assert rows[0].notes[0].startswith("background: 0.02 \N{RIGHTWARDS ARROW} ")


def test_of_a_policy_that_was_given_the_likeliest_are_shown() -> None:
    policy = TrainingPolicy.preset("nnunet", ("all",))
    source = Source("MONAI", Path("run"), "joint_policy", ("liver",), (), policies=Policies(policy))
    rows = operation_rows(source, Stage(patch()))
    assert [row.title for row in rows] == ["mirror D", "mirror H", "mirror W", "gamma 1\N{EN DASH}1.2"]
    assert rows[0].notes == ("all: 0.50",)
    assert operation_rows(learned(), Stage(patch())) == []  # nothing rose


def test_a_rotations_displacement_is_that_of_a_rotation() -> None:
    """By 25 degrees about an axis of cubes of 2 mm: twice the sine of half the angle, times the distance."""
    (row, *_) = operation_rows(learned(rotate_hw_20_30=5.0), Stage(patch(spacing=(2.0, 2.0, 2.0))))
    (change,) = row.changes
    assert change.kind == "heat"
    largest = float(change.scale[2].removesuffix(" mm"))
    corner = 2.0 * math.hypot(5.5, 5.5)  # of the patch of 12 voxels a side without its margin
    assert largest <= 2 * math.sin(math.radians(12.5)) * corner + 0.1
    assert largest > 2 * math.sin(math.radians(12.5)) * 2.0 * 5.5 - 0.1
    assert "dasharray" in row.after.svg  # where the structure was


def test_mirroring_moves_the_label_and_brightness_the_image() -> None:
    risen = {"flip_d": 5.0, "brightness_multiply_1.20_1.30": 4.0, "gamma_1.40_1.60": 3.0}
    rows = {row.title: row for row in operation_rows(learned(**risen), Stage(patch()))}
    mirrored = rows["mirror D"]
    assert mirrored.changes == ()
    assert "dasharray" in mirrored.after.svg
    tinted = [row for row in rows.values() if row.changes and row.changes[0].kind == "tint"]
    assert len(tinted) == 2
    for row in tinted:
        assert re.fullmatch("\N{MINUS SIGN}[\\d.]+ SD", row.changes[0].scale[0])
        assert "dasharray" not in row.after.svg


@pytest.mark.parametrize("dims", [2, 3])
def test_epochs_stand_side_by_side_in_the_plane_that_shows_most(dims: int) -> None:
    given = patch(dims)
    inner = given.image[(0, *[slice(2, -2)] * dims)]
    cut, label = planes(inner, given.cuts), planes(given.foreground, given.cuts)
    shots = tuple(Shot(epoch, kind, draw, cut, label) for epoch in (1, 2) for kind in ("affine", "deformation")
                  for draw in (0, 1))  # fmt: skip
    rows = epoch_rows(Kept(given, shots), Stage(given))
    assert [(row.title, row.draw) for row in rows] == [
        ("affine", 1), ("affine", 2), ("deformation", 1), ("deformation", 2),
    ]  # fmt: skip
    for row in rows:
        assert [epoch for epoch, _ in row.cells] == [0, 1, 2]
        assert row.cells[0][1].svg == row.cells[1][1].svg  # nothing was changed
        assert row.cells[0][1].svg.count("<image") == 1
        assert "epoch 2" in row.cells[2][1].alt


def test_patches_of_unknown_orientation_have_no_sides() -> None:
    stage = Stage(patch(orientation=""))
    assert [mark.text for mark in stage.before().marks] == ["across D", "across H", "across W", "2 mm"]
    assert stage.before().alt.startswith("across D, across H, across W slices of a training patch")
