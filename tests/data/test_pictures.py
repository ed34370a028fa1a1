# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Synthetic pictures: reproducible, balanced, and different enough to be told apart by eye."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.data import pictures
from monai_autoaug.errors import ConfigError


def test_pictures_are_a_function_of_the_seed_and_classes_take_turns() -> None:
    first, again, other = pictures(6, classes=3), pictures(6, classes=3), pictures(6, classes=3, seed=1)
    assert [int(p["label"]) for p in first] == [0, 1, 2, 0, 1, 2]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
    assert len({p["case"] for p in first}) == 6


def test_without_noise_shapes_are_what_they_are_called() -> None:
    disc, cross, ring = (p["image"] for p in pictures(3, size=64, classes=3, channels=2, noise=0))
    assert disc.shape == (2, 64, 64)
    for image in (disc, cross, ring):
        values = image.unique()
        assert len(values) == 2
        assert values[0] == 0
        assert 0.7 <= float(values[1]) <= 1.3
    inside = [image[0] > 0 for image in (disc, cross, ring)]
    centres = [m.nonzero().float().mean(0).round().long().tolist() for m in inside]
    assert [bool(m[tuple(c)]) for m, c in zip(inside, centres, strict=True)] == [True, True, False]  # a ring is hollow


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 4}, {"classes": 4}, {"classes": 1}, {"noise": -1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="pictures need"):
        pictures(**({"count": 2} | wrong))  # type: ignore[arg-type]
