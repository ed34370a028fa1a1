# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 004 compares with each other, as options of the one method "general_adversarial"."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.comparisons import Comparison

__all__ = ["GENERAL_COMPARISONS", "general_comparison"]

_NOT_AGAINST: dict[str, Any] = {"weight_adversarial": 0.0}
_CLASS_ALONE = _NOT_AGAINST | {"weight_dissimilarity": 0.0}
_DISSIMILARITY_ALONE = _NOT_AGAINST | {"weight_class": 0.0}
_NO_MAP: dict[str, Any] = {"spatial": False}

GENERAL_COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        "a": Comparison("C: the network on patches as they are.", {"augmentation": "none"}),
        "b": Comparison(
            "C + T: a standard spatial transformer in front of the network, which makes it invariant.",
            {"augmentation": "stn"},
        ),
        "c": Comparison("C + T + D_C + D_D: the generator without U-Net.", _NOT_AGAINST | {"appearance": False}),
        "d": Comparison(
            "C + DEC + D_C: images made from noise and label instead of transformed ones.",
            _CLASS_ALONE | {"augmentation": "decoder"},
        ),
        "e": Comparison(
            "C + ENC + DEC + D_C: the U-Net alone, with the class discriminator alone.", _CLASS_ALONE | _NO_MAP
        ),
        "f": Comparison(
            "C + ENC + DEC + D_D: the U-Net alone, with the dissimilarity discriminator alone.",
            _DISSIMILARITY_ALONE | _NO_MAP,
        ),
        "g": Comparison("C + ENC + DEC + D_C + D_D: the U-Net alone, with both.", _NOT_AGAINST | _NO_MAP),
        "h": Comparison("C + ENC + DEC + T + D_C + D_D: spatial transformer and U-Net, with both.", _NOT_AGAINST),
        "l": Comparison("C + ENC + DEC + T + D_C + D_D + G_ADV: the paper's method, by default.", {}),
        "light": Comparison("Baseline + light DA: shifts by up to an eighth.", {"augmentation": "light"}),
        "strong": Comparison(
            "Baseline + strong DA: also rotations by up to 10 degree and scales of 0.5 to 2.",
            {"augmentation": "strong"},
        ),
        **{
            f"separate_{epochs}": Comparison(
                f"Separate training: the generator alone for {epochs} epochs, then a fresh network for 1000; for other"
                f" lengths {epochs} to 1000 is kept.",
                _NOT_AGAINST | {"separate": epochs / (epochs + 1000)},
            )
            for epochs in (200, 500, 700, 1000)
        },
    }
)


def general_comparison(name: str, **more: Any) -> dict[str, Any]:
    """The options of a row of the paper's Tables 1 and 3 or of its Fig. 4, which ``method_options`` of any host take.

    Args:
        name: one of ``GENERAL_COMPARISONS``; single letters are those of Table 3.
        more: options that are added, or that take the place of a row's, such as ``fidelity="paper"``.

    Raises:
        ConfigError: there is no such row.

    >>> general_comparison("f", seed=3)
    {'weight_adversarial': 0.0, 'weight_class': 0.0, 'spatial': False, 'seed': 3}
    """
    if name not in GENERAL_COMPARISONS:
        raise ConfigError(f"there is no comparison {name!r}; choose one of {', '.join(GENERAL_COMPARISONS)}")
    return {**GENERAL_COMPARISONS[name].options, **more}
