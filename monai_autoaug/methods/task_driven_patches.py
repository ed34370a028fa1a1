# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a task-driven training makes of a batch: originals, and patches that are deformed or of other intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters import Augmenter, Transformation
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.affine_baseline import affine_baseline
from monai_autoaug.methods.base import Task
from monai_autoaug.methods.fixed_fields import random_contrast, random_elastic
from monai_autoaug.methods.parts import CLEAN, transform
from monai_autoaug.methods.replay import moving
from monai_autoaug.networks import reverse_gradient

__all__ = ["PatchMaker", "field_size", "for_task", "seen_after"]


def seen_after(batch: Batch, move: Transformation) -> Tensor:
    """Images after ``move`` as a generator looks at them: still with their margin, 0 where they must be.

    >>> b = Batch(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), margin=(1, 1))
    >>> seen_after(b, Transformation.identity((8, 8))).shape
    torch.Size([1, 1, 8, 8])
    """
    mask = batch.mask
    outside = None if mask is None else (0.0,) * mask.shape[1]
    image, moved = move.apply_pair(batch.image, mask, outside=outside)
    return image if moved is None else image * (moved >= 0.5).to(image.dtype)


def for_task(moved: Batch, weight: float) -> Batch:
    """Transformed patches whose gradient goes on to what transformed them times the weight of the task.

    Args:
        moved: by a generator.
        weight: 1 leaves the gradient as it is, 0 stops it.

    >>> x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    >>> for_task(Batch(x, torch.zeros(1, 2, 4, 4)), 0.25).image.sum().backward(); float(x.grad.max())
    0.25
    """
    if weight == 1:
        return moved
    scaled: dict[str, Any] = {
        name: reverse_gradient(t, -weight) if weight else t.detach() for name, t in moving(moved).items()
    }
    return replace(moved, **scaled)


def field_size(move: Transformation) -> Tensor:
    """Mean of the field's absolute values: of the displacement in voxels, or of the mask in standard deviations.

    >>> field_size(Transformation((2, 2), additive=torch.full((1, 1, 2, 2), -3.0)))
    tensor(3.)
    """
    field = move.additive if move.displacement is None else move.displacement
    assert field is not None  # noqa: S101  # for the type checker: a generator has made one of the two
    return (field if field.dtype == torch.float64 else field.float()).abs().mean()


class PatchMaker:
    """Draws what happens to patches, and does it in one resampling.

    Args:
        task: what the host owns.
        generators: by kind, "deformation" before "appearance".
        generator: of the random numbers.
        augmentation: see `TaskDriven`, as the others are.
        affine: likewise.
        flip_axis: likewise.
        noise_size: likewise.
    """

    def __init__(
        self,
        task: Task,
        generators: nn.ModuleDict,
        generator: torch.Generator,
        *,
        augmentation: str,
        affine: Sequence[str],
        flip_axis: int,
        noise_size: int,
    ) -> None:
        self.task, self.generators, self.generator = task, generators, generator
        self.augmentation, self.affine, self.flip_axis, self.noise_size = augmentation, affine, flip_axis, noise_size
        self.turns = [0, 0]  # whose turn it is where a number of patches can't be divided

    def divided(self, batch: Batch) -> tuple[Batch, Batch]:
        """The patches that are transformed, and the originals, in random order; of a single one both."""
        n = len(batch.image)
        if n == 1:
            return batch, batch
        count = (n + self.turns[0]) // 2  # of an odd number the smaller half, then the larger one
        self.turns[0] = 1 - self.turns[0]
        order = torch.randperm(n, generator=self.generator, device=self.generator.device).cpu()
        return batch.rows(order[:count]), batch.rows(order[count:])

    def placed(self, batch: Batch) -> Transformation:
        """The affine augmentation of each patch, or the identity."""
        if not self.affine:
            return Transformation(tuple(batch.image.shape[2:]))
        return affine_baseline(
            batch.image, self.affine, self.generator, spacing=batch.spacing, flip_axis=self.flip_axis
        )

    def original(self, batch: Batch) -> Batch:
        """Patches to which nothing but the affine augmentation happens."""
        return transform(batch, self.placed(batch), regions=self.task.regions)

    def move(self, source: Batch, kinds: Sequence[str]) -> Transformation:
        """Affine map, then what the generators make of the patch as it is by then: one grid and one resampling.

        Both have the same noise, as in the released code; the second one sees what the first one has made.

        Args:
            source: patches with their margin.
            kinds: of generators; the gradient reaches those that need one.
        """
        move, size, count = self.placed(source), self.noise_size, len(source.image)
        noise = torch.randn(count, size, generator=self.generator, device=self.generator.device)
        for kind in kinds:
            augmenter = cast(Augmenter, self.generators[kind])
            own = augmenter.sample_noise(count, self.generator)[:, size:]
            with torch.no_grad():
                image = seen_after(source, move)
            with self.task.precision.autocast():
                made: Transformation = augmenter(image, torch.cat([noise.to(own), own], 1), spacing=source.spacing)
            if made.moves_geometry:
                move = replace(made, matrix=move.matrix, deviation=None)
            else:
                move = replace(move, additive=made.additive)
        return move

    def parts(self, batch: Batch) -> dict[str, Batch]:
        """Originals and augmented patches by what was done to them: X_L, and X_V, X_I, X_VI or what replaces them."""
        if self.augmentation == "none":
            return {CLEAN: self.original(batch)}
        source, other = self.divided(batch)
        parts, regions = {CLEAN: self.original(other)}, self.task.regions
        if not self.generators:
            return parts | {self.augmentation: transform(source, self._random(source), regions=regions)}
        kinds = tuple(self.generators)
        ways = [(kind,) for kind in kinds] + [kinds] * (len(kinds) > 1)
        rows = torch.arange(len(source.image))
        way_of = (rows + self.turns[1]) % len(ways)
        self.turns[1] = (self.turns[1] + len(rows)) % len(ways)
        for number, way in enumerate(ways):
            chosen = rows[way_of == number]
            if len(chosen):
                part = source.rows(chosen)
                parts["_".join(way)] = transform(part, self.move(part, way), regions=regions)
        return parts

    def _random(self, source: Batch) -> Transformation:
        """Random elastic deformation or contrast behind the affine map."""
        move = self.placed(source)
        if self.augmentation == "elastic":
            return replace(random_elastic(source.image, self.generator), matrix=move.matrix)
        return replace(move, additive=random_contrast(seen_after(source, move), self.generator).additive)
