# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What paper 001 compares with each other, as options of the one method "task_driven".

The rows of adversarial training of the segmentation network itself (Adv Tr SL and SSL), which are methods of others,
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.comparisons import Comparison

__all__ = ["TASK_DRIVEN_COMPARISONS", "task_driven_comparison"]

_UNREGULARISED: dict[str, Any] = {"weight_adversarial": 0.0, "weight_big": 0.0}

TASK_DRIVEN_COMPARISONS: Mapping[str, Comparison] = MappingProxyType(
    {
        "none": Comparison("Aug_none: patches as they are.", {"augmentation": "none", "affine": ()}),
        "affine": Comparison("Aug_A: affine augmentation, which all further rows have too.", {"augmentation": "none"}),
        "random_elastic": Comparison("Aug_A,RD: random elastic deformations.", {"augmentation": "elastic"}),
        "random_intensity": Comparison("Aug_A,RI: random contrast and brightness.", {"augmentation": "contrast"}),
        "learned_deformation": Comparison("Aug_A,GD: the deformation generator.", {"augmentation": "deformation"}),
        "learned_deformation_unregularised": Comparison(
            "Aug_A,GD with lambda_adv = lambda_big = 0: learned from the task alone.",
            {"augmentation": "deformation"} | _UNREGULARISED,
        ),
        "learned_intensity": Comparison("Aug_A,GI: the intensity generator.", {"augmentation": "appearance"}),
        "learned_intensity_unregularised": Comparison(
            "Aug_A,GI with lambda_adv = lambda_big = 0: learned from the task alone.",
            {"augmentation": "appearance"} | _UNREGULARISED,
        ),
        "both": Comparison("Aug_A,GD,GI: both generators and their chain.", {"augmentation": "both"}),
        "mixup": Comparison("Aug_A,Mixup: Mixup of affinely augmented patches.",
                            {"augmentation": "none", "mixup": True}),
        "both_mixup": Comparison("Aug_A,GD,GI,Mixup: Mixup over all of these.",
                                 {"augmentation": "both", "mixup": True}),
    }
)  # fmt: skip


def task_driven_comparison(name: str, **more: Any) -> dict[str, Any]:
    """The options of a row of the paper's Table 1, which ``method_options`` of any host take.

    Args:
        name: one of ``TASK_DRIVEN_COMPARISONS``.
        more: options that are added, or that take the place of a row's, such as ``fidelity="paper"``.

    Raises:
        ConfigError: there is no such row.

    >>> task_driven_comparison("mixup", mixup_alpha=0.4)
    {'augmentation': 'none', 'mixup': True, 'mixup_alpha': 0.4}
    """
    if name not in TASK_DRIVEN_COMPARISONS:
        raise ConfigError(f"there is no comparison {name!r}; choose one of {', '.join(TASK_DRIVEN_COMPARISONS)}")
    return {**TASK_DRIVEN_COMPARISONS[name].options, **more}
