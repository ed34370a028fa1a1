# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 002 compares with each other, as options of the one method "joint_policy".

All but "heuristic_all_cases" and "fine_tuning" train on the same cases: those that policies learn from are set apart
where nothing is learned, too, so that what they cost doesn't hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from monai_autoaug.errors import ConfigError

__all__ = ["COMPARISONS", "Comparison", "comparison"]


@dataclass(frozen=True)
class Comparison:
    """A row of the paper's tables.

    Args:
        what: how the paper calls it, and what that is.
        options: of the method "joint_policy"; what isn't named is as by default.

    >>> Comparison("joint", {}).options
    {}
    """

    what: str
    options: Mapping[str, Any]


_FIXED: dict[str, Any] = {"learn_training": False}
_NO_VIEWS: dict[str, Any] = {"test_time": False}
_HELD: dict[str, Any] = {"hold_out": True}
_HEURISTIC = _FIXED | _NO_VIEWS | _HELD

COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        "no_augmentation": Comparison(
            "TRA none, TEA none: the network sees the training cases as they are.", _HEURISTIC | {"preset": "none"}
        ),
        "heuristic": Comparison(
            "TRA heuristic, TEA none: the preset's probabilities as they are, on the training cases alone.", _HEURISTIC
        ),
        "heuristic_all_cases": Comparison(
            "TRA heuristic, TEA none, on the training cases and those that policies would learn from.",
            _FIXED | _NO_VIEWS,
        ),
        "fine_tuning": Comparison(
            "Heuristic fine-tuning: on the training cases first, then on those that policies would learn from; how long"
            " the paper doesn't say.",
            _FIXED | _NO_VIEWS | {"fine_tune": 0.2},
        ),
        "learned": Comparison(
            "TRA learned, TEA none: one policy for all classes, as by methods before the paper.",
            {"classes": "all"} | _NO_VIEWS,
        ),
        "class_specific": Comparison("TRA learned class-specific, TEA none.", {"classes": "foreground"} | _NO_VIEWS),
        **{
            f"randaugment_{size[0]}": Comparison(
                f"RandAugment-{size[0].upper()}: TRA heuristic with {size} operations alone, TEA none.",
                _HEURISTIC | {"magnitude": size},
            )
            for size in ("small", "medium", "large")
        },
        "heuristic_tea": Comparison(
            "TRA heuristic, TEA heuristic: the preset's views are averaged.",
            _FIXED | _HELD | {"learn_test_time": False},
        ),
        "class_specific_heuristic_tea": Comparison(
            "TRA learned class-specific, TEA heuristic, of which TRA knows nothing.",
            {"classes": "foreground", "learn_test_time": False, "joint": False},
        ),
        "learned_tea": Comparison(
            "TRA learned class-specific, TEA learned afterwards, for the trained network.",
            {"classes": "foreground", "joint": False, "views_after": 200},
        ),
        "joint_all": Comparison(
            "Joint learned: TRA and TEA learned together, one TRA policy for all classes.", {"classes": "all"}
        ),
        "joint": Comparison(
            "Joint learned class-specific: TRA and TEA learned together, the paper's method.",
            {"classes": "foreground"},
        ),
    }
)


def comparison(name: str, **more: Any) -> dict[str, Any]:
    """The options of a row, which ``method_options`` of either host take.

    Args:
        name: one of ``COMPARISONS``.
        more: options that are added, or that take the place of a row's, such as ``preset="deepmedic"``.

    Raises:
        ConfigError: there is no such row.

    >>> comparison("learned"), comparison("joint", preset="deepmedic")
    ({'classes': 'all', 'test_time': False}, {'classes': 'foreground', 'preset': 'deepmedic'})
    """
    if name not in COMPARISONS:
        raise ConfigError(f"there is no comparison {name!r}; choose one of {', '.join(COMPARISONS)}")
    return {**COMPARISONS[name].options, **more}
