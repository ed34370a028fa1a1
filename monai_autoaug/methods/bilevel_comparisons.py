# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 003 compares with each other, as options of the one method "bilevel".

All train on the same cases: those that the augmenter learns from are set apart where nothing is learned, too. Where
the paper has translations and affine maps, give ``transformations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.comparisons import Comparison

__all__ = ["COMPARISONS", "MAGNITUDES", "comparison"]

MAGNITUDES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What "validated magnitude" tries, a training each; the best on the validation cases is it."""

_HELD: dict[str, Any] = {"hold_out": True}

COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        "baseline": Comparison("No augmentation.", {"augmentation": "none"} | _HELD),
        "flip": Comparison("A fixed flip alone.", {"augmentation": "none", "flip": [0]} | _HELD),
        "predefined": Comparison(
            "Transformations drawn within hand-made bounds, and a fixed flip.",
            {"augmentation": "predefined", "flip": [0]} | _HELD,
        ),
        "invariant": Comparison(
            "Transformation invariant (STN): learned with the network on the same patches, in place at test time, too.",
            {"augmentation": "invariant"} | _HELD,
        ),
        "magnitude": Comparison(
            "Validated magnitude: one factor on all hand-made bounds; train with each of MAGNITUDES.",
            {"augmentation": "predefined", "flip": [0]} | _HELD,
        ),
        "learned": Comparison("Learned transformations alone.", {}),
        "learned_flip": Comparison("Learned transformations and a fixed flip, the paper's method.", {"flip": [0]}),
        **{
            f"learned_{size}": Comparison(f"The same by the {size} augmenter (Table 2).", {"flip": [0], "size": size})
            for size in ("small", "medium", "large")
        },
        "learned_intensity": Comparison("Learned changes of intensity (Table 4).", {"transformations": "intensity"}),
        "learned_affine_flip": Comparison(
            "Learned affine maps and a fixed flip (Table 6).", {"transformations": "affine", "flip": [0]}
        ),
        "learned_full_flip": Comparison(
            "Learned affine maps and changes of intensity, and a fixed flip (Table 6).",
            {"transformations": "full", "flip": [0]},
        ),
    }
)


def comparison(name: str, **more: Any) -> dict[str, Any]:
    """The options of a row, which ``method_options`` of either host take.

    Args:
        name: one of ``COMPARISONS``.
        more: options that are added, or that take the place of a row's, such as ``transformations="affine"``.

    Raises:
        ConfigError: there is no such row.

    >>> comparison("learned_flip", flip=[1], transformations="affine")
    {'flip': [1], 'transformations': 'affine'}
    """
    if name not in COMPARISONS:
        raise ConfigError(f"there is no comparison {name!r}; choose one of {', '.join(COMPARISONS)}")
    return {**COMPARISONS[name].options, **more}
