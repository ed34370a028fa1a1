# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an augmenter that sees noise alone has become: how strong, how diverse, how near to its bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_autoaug.augmenters import ParametricAugmenter
from monai_autoaug.methods.collapse import magnitude_figures

__all__ = ["parametric_figures"]

_LOOKS = 16  # noise vectors


@torch.no_grad()
def parametric_figures(
    augmenter: ParametricAugmenter, shape: tuple[int, ...], generator: torch.Generator
) -> dict[str, float]:
    """Figures over 16 noise vectors, named ``parametric_<figure>``.

    Args:
        augmenter: in any mode; looked at in evaluation mode and put back.
        shape: (B, C, D, H, W) of its images.
        generator: random numbers of the noise.

    Returns:
        ``noise_share`` (deviation of the parameters over noise / root mean square: 0 is one fixed transformation),
        ``saturation`` (share of parameters beyond 0.95 of their bound), ``mean`` (root mean square of the parameters'
        means over noise, in bounds), ``deviation`` (of their deviations), and every figure of
        `Transformation.magnitude`.

    >>> made = ParametricAugmenter(2, 1, transformations="intensity")
    >>> sorted(parametric_figures(made, (1, 1, 8, 8), torch.Generator().manual_seed(0)))[:3]
    ['parametric_brightness', 'parametric_contrast', 'parametric_deviation']
    """
    training = augmenter.training
    augmenter.eval()
    heard: list[Tensor] = []
    listen = augmenter.register_squash_listener(heard.append)
    image = torch.zeros(1, *shape[1:], device=generator.device).expand(_LOOKS, *shape[1:])
    move = augmenter(image, augmenter.sample_noise(_LOOKS, generator))
    listen()
    augmenter.train(training)
    unit = heard[0].double()
    spread = (unit - unit.mean(0)).square().mean().sqrt()
    total = unit.square().mean().sqrt()
    figures = {
        "noise_share": float(spread / total) if float(total) > 0 else 0.0,
        "saturation": float((unit.abs() > 0.95).double().mean()),
        "mean": float(unit.mean(0).square().mean().sqrt()),
        "deviation": float(spread),
    }
    figures |= magnitude_figures(move)
    return {f"{augmenter.kind}_{name}": value for name, value in figures.items()}
