# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What tells a user that an augmentation has collapsed."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.augmenters import AffineAugmenter, Transformation
from monai_autoaug.methods.collapse import collapse_figures, collapse_warnings, noise_share

HEALTHY = {
    "affine_noise_share": 0.9, "affine_saturation": 0.05, "affine_jacobian_minimum": 0.4,
    "affine_displacement_mean": 3.0, "affine_translation_share": 0.1, "discriminator_accuracy": 0.7,
}  # fmt: skip


def test_a_healthy_augmentation_is_not_warned_of() -> None:
    assert collapse_warnings(HEALTHY, ["affine"]) == []


@pytest.mark.parametrize(
    ("figure", "value", "says"),
    [
        ("affine_noise_share", 0.1, "nearly alike"),
        ("affine_saturation", 0.5, "at their bounds"),
        ("affine_jacobian_minimum", -0.1, "folds"),
        ("affine_displacement_mean", 0.01, "collapsed to the identity"),
        ("affine_translation_share", 0.95, "a translation to 95%"),
        ("discriminator_accuracy", 0.99, "the discriminator is right"),
    ],
)
def test_every_collapse_has_its_sentence(figure: str, value: float, says: str) -> None:
    (warning,) = collapse_warnings(HEALTHY | {figure: value}, ["affine"])
    assert says in warning


def test_learned_share_is_what_the_trunks_noise_does_alone() -> None:
    torch.manual_seed(0)
    augmenter = AffineAugmenter(3, 1, noise_size=8, width=4)
    augmenter.strength.fill_(1.0)
    image = torch.randn(1, 1, 12, 12, 12)
    fresh = collapse_figures(augmenter, image, torch.Generator().manual_seed(0))
    assert fresh["affine_learned_share"] < 1e-3 < 0.9 < fresh["affine_noise_share"]
    with torch.no_grad():
        for parameter in augmenter.head.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    assert collapse_figures(augmenter, image, torch.Generator().manual_seed(0))["affine_learned_share"] > 0.1


def test_noise_share_by_hand() -> None:
    fields = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    assert noise_share(Transformation((1, 1, 1), additive=fields)) == pytest.approx((1 / 5) ** 0.5)
    assert noise_share(Transformation((1, 1, 1), additive=torch.zeros(2, 1, 1, 1, 1))) == 0
