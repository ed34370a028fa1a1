# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a task-driven training says of its generators and of its phases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_autoaug.augmenters import Augmenter, TrunkAugmenter
from monai_autoaug.methods.collapse import collapse_figures, magnitude_figures, noise_share
from monai_autoaug.methods.phases import Phase

__all__ = ["cost_of_phases", "generator_figures"]


@torch.no_grad()
def generator_figures(kind: str, augmenter: Augmenter, image: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Figures ``<kind>_<figure>`` of one generator, over eight noise vectors and one image.

    Args:
        kind: "deformation" or "appearance".
        augmenter: looked at in evaluation mode and put back.
        image: (1, C, D, H, W), with its margin.
        generator: random numbers of the noise.

    Returns:
        Those of `collapse_figures`; of the paper's form without what there is none of.
    """
    if isinstance(augmenter, TrunkAugmenter):
        return collapse_figures(augmenter, image, generator)
    training = augmenter.training
    augmenter.eval()
    move = augmenter(image.expand(8, *image.shape[1:]), augmenter.sample_noise(8, generator))
    augmenter.train(training)
    found = {"noise_share": noise_share(move)} | magnitude_figures(move)
    return {f"{kind}_{name}": value for name, value in found.items()}


def cost_of_phases(phases: Sequence[Phase], updates: int | None) -> list[str]:
    """What phases cost, in words: which share of the updates each takes, and what is left for the network.

    Args:
        phases: of a training, the last of which trains what is deployed.
        updates: of the whole training; None: not known.

    >>> cost_of_phases((Phase("appearance"), Phase("network", fresh=True)), 1000)[0]
    'Training has 2 phases: appearance (50 % of the epochs, about 500 updates), network (50 %, about 500)'
    """
    if len(phases) == 1:
        return []
    total = sum(p.share for p in phases)
    parts = []
    for number, phase in enumerate(phases):
        share = phase.share / total
        epochs = "" if number else " of the epochs"
        count = "" if updates is None else f", about {round(share * updates)}{'' if number else ' updates'}"
        parts.append(f"{phase.name} ({share:.0%}{epochs}{count})".replace("%", " %"))
    factor = total / phases[-1].share
    return [
        f"Training has {len(phases)} phases: {', '.join(parts)}",
        "Each phase has a segmentation network of its own. That of the last one is deployed, the others are there to"
        " learn an augmentation, at the price of an update of generator and discriminator beside each of theirs. For"
        f" as many updates of the deployed network as in a plain training, ask for {factor:.3g} times its epochs",
    ]
