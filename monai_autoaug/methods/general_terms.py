# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The generator's loss of paper 004: what the two discriminators and the network say of what it makes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.balancer import Balancer
from monai_autoaug.methods.base import Task
from monai_autoaug.methods.general_looks import Looks
from monai_autoaug.methods.general_losses import missing_the_label
from monai_autoaug.networks import frozen, held
from monai_autoaug.networks.discriminators import adversarial_loss, discriminate_frozen

__all__ = ["TERMS", "GeneratorTerms"]

TERMS = ("class", "dissimilarity", "adversarial")


class GeneratorTerms:
    """Up to three terms, each with a weight; the players that judge are held as they are.

    Args:
        task: what the host owns.
        looks: how discriminators see patches.
        discriminators: by the name of their term.
        weights: alpha, beta and gamma by the names of ``TERMS``; a term without weight is left out.
        balance: weights are ratios of the gradients at the patch, see `GeneralAdversarial`.

    Source: Mounsaveng et al. 2019, Eq. 2.
    """

    def __init__(
        self,
        task: Task,
        looks: Looks,
        discriminators: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        *,
        balance: bool,
    ) -> None:
        self.task, self.looks, self.discriminators = task, looks, discriminators
        self.weights, self.balance = weights, balance
        self.names = tuple(name for name in TERMS if weights.get(name))
        self.balancer = Balancer(TERMS, task.device)

    def loss(self, source: Batch, moved: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What a backward of the generator starts from, and figures.

        Args:
            source: patches with their margin.
            moved: what the generator has made of them.

        Returns:
            The loss, whose gradient has the weights, and each term and their weighted sum as figures.
        """
        image, maps = self.looks.seen(moved, made=True)
        found: dict[str, Tensor] = {}
        with self.task.precision.autocast():
            if "class" in self.names:
                pair = self.tap("class", torch.cat([image, maps.to(image.dtype)], dim=1))
                found["class"] = adversarial_loss(discriminate_frozen(self.discriminators["class"], pair), real=True)
            if "dissimilarity" in self.names:
                pair = torch.cat([self.looks.first(source), self.tap("dissimilarity", image)], dim=1)
                score = discriminate_frozen(self.discriminators["dissimilarity"], pair)
                found["dissimilarity"] = adversarial_loss(score, real=True)
        if "adversarial" in self.names:
            found["adversarial"] = self.adversarial(moved)
        own = dict.fromkeys(found, 1.0) if self.balance else self.weights
        loss = torch.stack([own[n] * term for n, term in found.items()]).sum()
        total = torch.stack([self.weights[n] * term.detach() for n, term in found.items()]).sum()
        return loss, {f"generator_{n}": term for n, term in found.items()} | {"generator_loss": total}

    def adversarial(self, moved: Batch) -> Tensor:
        """``- log(1 - C_y)`` by the network as it would be deployed, through image and label alike."""
        image, label = moved.image, moved.label
        if label.ndim == image.ndim:
            both = self.tap("adversarial", torch.cat([image, label.to(image.dtype)], dim=1))
            image, label = both[:, : image.shape[1]], both[:, image.shape[1] :]
        else:
            image = self.tap("adversarial", image)
        network = self.task.network
        with frozen(network), held(network):
            logits = self.task.logits(self.task.forward(image, moved.extra))
        return missing_the_label(logits, label, moved.valid, sigmoid=self.task.sigmoid)

    def tap(self, name: str, x: Tensor) -> Tensor:
        """Scale the gradient of a term to its weight over the first term's, times that one's gradient."""
        first = self.names[0]
        if not self.balance:
            return x
        if name == first:
            return self.balancer.metered(name)(x)
        return self.balancer.ratio(name, first, self.weights[name] / self.weights[first])(x)
