# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What tells whether the general augmenter has collapsed: figures of its spatial and of its appearance part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.augmenters import GeneralAugmenter
from monai_autoaug.methods.collapse import collapse_warnings, magnitude_figures, noise_share

__all__ = ["general_figures", "general_warnings"]


@torch.no_grad()
def general_figures(augmenter: GeneralAugmenter, image: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Figures ``affine_*`` and ``appearance_*``, as far as it has these parts, over eight noise vectors and one image.

    Args:
        augmenter: looked at in evaluation mode and put back.
        image: (1, C, D, H, W), with its margin.
        generator: random numbers of the noise.

    Returns:
        Of each part ``noise_share``, the figures of `Transformation.magnitude`, and, where it is bounded,
        ``saturation``: the share of its parameters beyond 0.95 of their bound.
    """
    training = augmenter.training
    augmenter.eval()
    saturated: list[Tensor] = []
    listen = None if augmenter.affine is None else augmenter.affine.register_squash_listener(saturated.append)
    t = augmenter(image.expand(8, *image.shape[1:]), augmenter.sample_noise(8, generator))
    if listen is not None:
        listen()
    augmenter.train(training)
    parts = {"affine": replace(t, additive=None), "appearance": replace(t, matrix=None)}
    figures: dict[str, float] = {}
    for kind in augmenter.parts:
        part = parts[kind]
        found = {"noise_share": noise_share(part)} | magnitude_figures(part)
        bound = augmenter.bounds["additive"]
        unit = saturated[0] if saturated and kind == "affine" else None
        if kind == "appearance" and augmenter.fidelity != "paper" and part.additive is not None and bound:
            unit = part.additive / bound
        if unit is not None:
            found["saturation"] = float((unit.abs() > 0.95).float().mean())
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
    return figures


def general_warnings(figures: Mapping[str, float], parts: Sequence[str]) -> list[str]:
    """Sentences for a user (see `collapse_warnings`); of the discriminators the one that is right more often.

    >>> general_warnings({"affine_noise_share": 0.1}, ["affine"])[0][:48]
    'affine: all samples of an image are nearly alike'
    """
    rights = [value for name, value in figures.items() if name.endswith("_discriminator_accuracy")]
    return collapse_warnings({**figures, "discriminator_accuracy": max(rights, default=0.5)}, parts)
