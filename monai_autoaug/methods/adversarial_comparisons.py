# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 000 compares with each other, as options of the one method "adversarial"."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.methods.comparisons import Comparison

__all__ = ["ADVERSARIAL_COMPARISONS", "adversarial_comparison"]

_MODES = {
    "affine": "the affine model alone", "deformation": "the deformation model alone",
    "appearance": "the appearance model alone", "combined": "all three, the paper's method",
}  # fmt: skip
_ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", {}),
    "_without_image": (", W/o image condition", {"image_condition": False}),
    "_without_discriminator": (", W/o discriminator", {"discriminator": False}),
}

ADVERSARIAL_COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        f"{mode}{name}": Comparison(f"Ours: {what}{more}.", {"mode": mode} | options)
        for mode, what in _MODES.items()
        for name, (more, options) in _ABLATIONS.items()
    }
)


def adversarial_comparison(name: str, **more: Any) -> dict[str, Any]:
    """The options of a row of the paper's Table 2 or Fig. 3, which ``method_options`` of any host take.

    Args:
        name: one of ``ADVERSARIAL_COMPARISONS``.
        more: options that are added, or that take the place of a row's, such as ``fidelity="paper"``.

    Raises:
        ConfigError: there is no such row.

    >>> adversarial_comparison("affine_without_image", seed=3)
    {'mode': 'affine', 'image_condition': False, 'seed': 3}
    """
    if name not in ADVERSARIAL_COMPARISONS:
        raise ConfigError(
            f"there is no comparison {name!r}; choose one of {', '.join(ADVERSARIAL_COMPARISONS)}"
            f"{did_you_mean(name, ADVERSARIAL_COMPARISONS)}"
        )
    return {**ADVERSARIAL_COMPARISONS[name].options, **more}
