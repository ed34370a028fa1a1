# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""One subject through each augmenter: the panels of `augmentation_figure`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monai_autoaug.augmenters import Augmenter, Transformation
from monai_autoaug.report.augmentations import Panel
from monai_autoaug.transforms.geometry import identity_grid

__all__ = ["augmentation_panels", "median_draw"]

TITLES = {"affine": "affine", "deformation": "deformed", "appearance": "appearance"}


def augmentation_panels(
    augmenters: Mapping[str, Augmenter], image: Tensor, label: Tensor, *, seed: int = 0
) -> list[Panel]:
    """Transform one subject by each augmenter.

    Of eight draws the one of median strength is shown, neither the weakest nor the strongest.

    Args:
        augmenters: by name, in evaluation mode as they were saved.
        image: (C, D, H, W), normalised.
        label: (K, D, H, W), one-hot, background first.
        seed: of the draws.

    Returns:
        The original, then a panel an augmenter.
    """
    panels = [Panel("original", image, label)]
    shape = tuple(image.shape[1:])
    for name, augmenter in augmenters.items():
        device = augmenter.strength.device
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            noise = augmenter.sample_noise(8, generator)
            drawn = augmenter(image.to(device).expand(8, *image.shape), noise)
            chosen = drawn.rows(median_draw(drawn))
            moved, moved_label = chosen.apply_pair(image[None].to(device), label[None].to(device))
            grid = None
            if chosen.displacement is not None or chosen.matrix is not None:
                first_voxel = identity_grid(shape).flatten(0, -2)[0]
                grid = (chosen.grid().cpu() - first_voxel)[0]
        assert moved_label is not None  # noqa: S101  # a label was given
        title = TITLES.get(name, name)
        panels.append(Panel(title, moved[0].cpu(), moved_label[0].cpu(), grid, _caption(chosen)))
    return panels


def median_draw(drawn: Transformation) -> slice:
    """The draw of median strength, neither the weakest nor the strongest.

    Args:
        drawn: some transformations.
    """
    figures = drawn.magnitude()
    strength = figures.get("displacement_mean", figures.get("additive_mean"))
    if strength is None:
        return slice(0, 1)
    middle = int(strength.argsort()[len(strength) // 2])
    return slice(middle, middle + 1)


def _caption(t: Transformation) -> str:
    """Its strength in one line."""
    figures = {name: float(value[0]) for name, value in t.magnitude().items()}
    if "rotation" in figures:
        return f"rotation {figures['rotation']:.0f}\N{DEGREE SIGN}, shift {figures['translation']:.1f} voxels"
    if "displacement_mean" in figures:
        return f"mean {figures['displacement_mean']:.1f}, max {figures['displacement_max']:.1f} voxels"
    if "additive_mean" in figures:
        return f"mean \N{PLUS-MINUS SIGN}{figures['additive_mean']:.2f} SD of intensity"
    return f"brightness {figures['brightness']:.2f}, noise {figures['noise']:.2f} SD, gamma {figures['gamma']:.2f}"
