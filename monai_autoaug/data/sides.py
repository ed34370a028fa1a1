# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Labels that are left and right of one structure, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["lateral_pairs"]

_SIDES = (("left", "right"), ("l", "r"), ("lt", "rt"), ("lh", "rh"), ("sin", "dex"))


def lateral_pairs(labels: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """Pairs of labels whose names differ in nothing but the side: what a user without ``laterality`` is warned of.

    Args:
        labels: names and values.

    >>> lateral_pairs({"background": 0, "kidney_left": 1, "Right-Lung": 2, "kidney_right": 3, "left lung": 4})
    ((1, 3), (4, 2))
    """
    words = {tuple(re.findall(r"[a-z]+|\d+", name.lower())): value for name, value in labels.items()}
    found = []
    for name, value in words.items():
        for left, right in _SIDES:
            for place, word in enumerate(name):
                other = words.get((*name[:place], right, *name[place + 1 :]))
                if word == left and other is not None:
                    found.append((value, other))
    return tuple(found)
