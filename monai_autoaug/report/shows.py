# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a report shows of the augmentation: a patch before and after each operation or generator, and by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug import augmenters
from monai_autoaug.methods.sample_file import Kept, Patch
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.report.content_policy import most_changed
from monai_autoaug.report.measure import displacement_mm
from monai_autoaug.report.names import readable
from monai_autoaug.report.panels import median_draw
from monai_autoaug.report.policy_rows import policy_rows
from monai_autoaug.report.source import Source
from monai_autoaug.report.stage import Change, Stage
from monai_autoaug.report.strips import Layer, Strip, strip
from monai_autoaug.transforms import apply
from monai_autoaug.transforms.geometry import identity_grid

__all__ = ["EpochRow", "ShownRow", "epoch_rows", "generator_rows", "operation_rows"]

_MOST_ROWS, _EACH = 8, 4  # operations in all, and of a class
_SEED = 11


@dataclass(frozen=True)
class ShownRow:
    """One operation or generator.

    Args:
        title: its name.
        caption: how strong it is here.
        notes: a line for each class: how probable it is.
        after: the patch after it.
        changes: what has changed.
    """

    title: str
    caption: str
    notes: tuple[str, ...]
    after: Strip
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class EpochRow:
    """One augmenter, or one class of a policy, over the epochs.

    Args:
        title: its name.
        draw: number of its draw, counted from 1.
        cells: epochs (0: the original) with their pictures.
    """

    title: str
    draw: int
    cells: tuple[tuple[int, Strip], ...]


@torch.no_grad()
def generator_rows(source: Source, stage: Stage) -> list[ShownRow]:
    """The patch after each learned augmenter; of eight draws the one of median strength.

    Args:
        source: with ``augmenters``.
        stage: the patch.
    """
    assert source.augmenters is not None  # noqa: S101  # callers have asked
    patch, rows = stage.patch, []
    for name, augmenter in augmenters.load(source.augmenters).items():
        noise = augmenter.sample_noise(8, torch.Generator().manual_seed(_SEED))
        size = (8, *patch.image.shape)
        drawn = augmenter(patch.image.expand(size), noise, spacing=torch.tensor([patch.spacing]).expand(8, -1))
        chosen = drawn.rows(median_draw(drawn))
        image, soft = chosen.apply_pair(
            patch.image[None], patch.label[None], margin=patch.margin, outside=stage.outside
        )
        assert soft is not None  # noqa: S101  # a label was given
        grid = chosen.grid(patch.margin)[0] if chosen.moves_geometry else None
        after, changes = stage.after(image[0], soft[0], grid, name)
        rows.append(ShownRow(name, _strength(chosen.magnitude(), grid, patch), (), after, changes))
    return rows


def _strength(figures: Mapping[str, Tensor], grid: Tensor | None, patch: Patch) -> str:
    """How strong a transformation is, in a line."""
    told = []
    if grid is not None:
        length = displacement_mm(grid[None], patch.spacing)
        told.append(f"mean {float(length.mean()):.1f} mm, at most {float(length.max()):.1f} mm")
    if "rotation" in figures:
        told.append(f"rotation {float(figures['rotation'][0]):.0f}\N{DEGREE SIGN}")
    if "additive_mean" in figures:
        told.append(f"mean \N{PLUS-MINUS SIGN}{float(figures['additive_mean'][0]):.2f} SD of intensity")
    return ", ".join(told)


@torch.no_grad()
def operation_rows(source: Source, stage: Stage) -> list[ShownRow]:
    """The patch after the operations that are decided or have become more probable, at the middle of their range.

    Args:
        source: with a training policy.
        stage: the patch.
    """
    assert source.policies is not None  # noqa: S101  # callers have asked
    policy = source.policies.training
    if policy is None or policy.spatial_dims != len(stage.patch.spacing):
        return []
    rows = policy_rows(source.policies, source.no_ops)
    chosen: dict[str, int] = {}
    for kind in policy.classes:
        for place, row in enumerate(most_changed([r for r in rows if r.kind == kind], _EACH)):
            chosen[row.operation] = min(chosen.get(row.operation, place), place)
    shown = []
    for name in sorted(chosen, key=lambda n: chosen[n])[:_MOST_ROWS]:
        notes = []
        for row in (r for r in rows if r.operation == name):
            start = "" if row.start is None else f"{row.start:.2f} \N{RIGHTWARDS ARROW} "
            notes.append(f"{row.kind}: {start}{row.probability:.2f}{' (decided)' if row.decided else ''}")
        after, changes = _after_operation(policy, name, stage)
        shown.append(ShownRow(readable(name), "at the middle of its range", tuple(notes), after, changes))
    return shown


def _after_operation(policy: TrainingPolicy, name: str, stage: Stage) -> tuple[Strip, tuple[Change, ...]]:
    """The patch after one operation."""
    patch = stage.patch
    column = next(k for k, c in enumerate(policy.cascades) if name in [o.name for o in c.operations])
    place = [o.name for o in policy.cascades[column].operations].index(name)
    operation = policy.cascades[column][place]
    indices = torch.zeros(1, len(policy.cascades), dtype=torch.int64)
    indices[0, column] = place

    def applied(image: Tensor) -> tuple[Tensor, Tensor]:
        moved, soft = apply(
            image[None], patch.label[None], indices, policy.cascades, quantile=0.5, sign=1, margin=patch.margin,
            generator=torch.Generator().manual_seed(_SEED), outside=stage.outside,
        )  # fmt: skip
        assert soft is not None  # noqa: S101  # a label was given
        return moved[0], soft if patch.regions else policy.exchange(soft, indices)

    image, soft = applied(patch.image)
    grid = None
    if operation.acts in ("matrix", "field"):  # where the positions themselves are taken
        positions = identity_grid(tuple(patch.image.shape[1:])).movedim(-1, 1)[0]
        within = torch.ones_like(positions[:1])
        within[(0,) * within.ndim] = 0.0  # outside of the patch an image has its darkest value: there this is 0
        taken = applied(torch.cat([positions, within]))[0].movedim(0, -1)
        grid = torch.where(taken[..., 3:] > 0.99, taken[..., :3], torch.nan)
    return stage.after(image, soft[0], grid, readable(name))


def epoch_rows(kept: Kept, stage: Stage) -> list[EpochRow]:
    """What each augmenter, or each class's policy, made of the patch from epoch to epoch; one plane.

    Args:
        kept: samples.
        stage: their patch.
    """
    areas = [float(part.sum()) for part in stage.label]
    best = max(stage.planes, key=lambda plane: areas[plane.cut or 0])
    k = best.cut or 0

    def one(image: NDArray[Any], label: NDArray[Any], what: str) -> Strip:
        images, labels = list(stage.image), list(stage.label)
        images[k], labels[k] = image, label
        alt = f"{best.name} slice of a training patch, {what}"
        return strip(
            [best], images, stage.patch.spacing, stage.window, layers=[Layer.of_label(labels)], alt=alt, named=False
        )

    rows = []
    for kind, draw in dict.fromkeys((shot.kind, shot.draw) for shot in kept.shots):
        cells = [(0, one(stage.image[k], stage.label[k], "original"))]
        for shot in kept.shots:
            if (shot.kind, shot.draw) == (kind, draw):
                pair = shot.image[k].double().numpy(), shot.label[k].double().numpy()
                cells.append((shot.epoch, one(*pair, f"{kind}, epoch {shot.epoch}")))
        rows.append(EpochRow(kind, draw + 1, tuple(cells)))
    return rows
