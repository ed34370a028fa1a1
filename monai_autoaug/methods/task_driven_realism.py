# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The game of paper 001 between a generator and a discriminator whose real patches are labelled and unlabelled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Batches
from monai_autoaug.methods.parts import interior, jitter, transform
from monai_autoaug.methods.task_driven_patches import PatchMaker
from monai_autoaug.networks.discriminators import adversarial_loss, discriminate_frozen

__all__ = ["Realism"]


class Realism:
    """The discriminator's loss (Eq. 6) and the generator's adversarial one (Eq. 5).

    Args:
        patches: makes untransformed patches pass the affine augmentation.
        weight: lambda_adv.
        labelled_share: share of the real patches that are labelled.
        saturating: see `TaskDriven`.
        resamples: likewise.
    """

    def __init__(
        self, patches: PatchMaker, *, weight: float, labelled_share: float, saturating: bool, resamples: bool
    ) -> None:
        self.patches, self.weight, self.labelled_share = patches, weight, labelled_share
        self.saturating, self.resamples = saturating, resamples
        self.count = 0  # of real patches so far

    def game(
        self, discriminator: nn.Module, moved: Batch, clean: Batch, other: Batch, batches: Batches, *, resampled: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both losses in one, each for its own player; real and transformed patches are one batch.

        Args:
            discriminator: of patches.
            moved: transformed patches.
            clean: originals, as the segmentation network sees them.
            other: the same with their margin and before their affine augmentation.
            batches: of which unlabelled ones are drawn, if there are to be any.
            resampled: whether what the generator makes is resampled where an original is not.

        Returns:
            The loss, and figures.
        """
        fake = self._looked_at(moved)
        with torch.no_grad():
            real = self._real(len(fake), clean, other, batches, blur=resampled and self.resamples)
        count = len(fake)
        with self.patches.task.precision.autocast():
            scores = discriminator(torch.cat([fake.detach(), real]))
            # a pass of its own: in a shared one a batch norm would also hand the generator the real patches' part of
            # the discriminator's loss
            held = discriminate_frozen(discriminator, torch.cat([fake, real]))[:count]
        score_fake, score_real = scores[:count], scores[count:]
        deceiving = -adversarial_loss(held, real=False) if self.saturating else adversarial_loss(held, real=True)
        own = adversarial_loss(score_real, real=True) + adversarial_loss(score_fake, real=False)
        right = torch.cat([(score_real > 0).float(), (score_fake < 0).float()]).mean()
        figures = {"realism": deceiving, "loss_discriminator": own, "discriminator_accuracy": right}
        return self.weight * deceiving + own, figures

    def _real(self, count: int, clean: Batch, other: Batch, batches: Batches, *, blur: bool) -> Tensor:
        """Patches of labelled and of unlabelled images, as the discriminator looks at them."""
        labelled = min(self._labelled(count), len(other.image))
        looks = []
        if labelled:
            rows = slice(0, labelled)  # the originals are in random order
            looks.append(self._as_real(other.rows(rows), blur=True) if blur else self._looked_at(clean.rows(rows)))
        if labelled < count and self.labelled_share < 1:
            pool, generator = batches.next("unlabelled"), self.patches.generator
            order = torch.randperm(len(pool.image), generator=generator, device=generator.device)
            looks.append(self._as_real(pool.rows(order[: count - labelled].cpu()), blur=blur))
        return torch.cat(looks)

    def _labelled(self, count: int) -> int:
        """How many of ``count`` real patches are labelled, so that over the steps it is the share that is wanted."""
        before, self.count = self.count, self.count + count
        return int(self.count * self.labelled_share) - int(before * self.labelled_share)

    def _as_real(self, batch: Batch, *, blur: bool) -> Tensor:
        """Untransformed patches with an affine augmentation of their own; resampled in any case, if that is wanted."""
        move = self.patches.placed(batch)
        if blur:
            shift = jitter(batch.image, self.patches.generator).matrix
            assert shift is not None  # noqa: S101  # for the type checker: that is what it is
            if move.matrix is not None:
                shift = torch.cat([move.matrix[:, :, :-1], move.matrix[:, :, -1:] + shift[:, :, -1:]], dim=2)
            move = replace(move, matrix=shift)
        return self._looked_at(transform(batch, move, regions=self.patches.task.regions))

    def _looked_at(self, batch: Batch) -> Tensor:
        """Images as the discriminator sees them: without the border, where a moved patch shows what lay outside."""
        return interior(batch.image) if self.resamples else batch.image
