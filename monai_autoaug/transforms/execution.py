# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Applying one chosen operation of every cascade to every sample of a batch.

Samples that chose the same operation are processed together, and the others pay nothing. All matrices and fields of a
sample become one grid, through which image and label are resampled once. Random numbers come from one generator: first
a quantile and a sign for every sample and cascade, then what the operations themselves draw, in order of execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.geometry import compose, resample
from monai_autoaug.transforms.intensity import Reference, at_least_float32
from monai_autoaug.transforms.registry import Cascade, Context, Operation

__all__ = ["apply"]


@dataclass
class _Step:
    """One operation, the samples that chose it, and their magnitudes."""

    operation: Operation
    rows: list[int]
    magnitude: Tensor


@dataclass
class _State:
    """The batch as a list of samples (1, C, ...), so that an operation on a few of them copies only those."""

    images: list[Tensor]
    labels: list[Tensor]
    references: list[Reference]
    matrices: dict[int, Tensor] = field(default_factory=dict)
    fields: dict[int, Tensor] = field(default_factory=dict)


def _join(samples: list[Tensor], rows: list[int]) -> Tensor:
    return samples[rows[0]] if len(rows) == 1 else torch.cat([samples[i] for i in rows])


def _put(samples: list[Tensor], rows: list[int], batch: Tensor) -> None:
    for i, sample in zip(rows, batch.split(1), strict=True):
        samples[i] = sample


def apply(
    image: Tensor,
    label: Tensor | None,
    indices: Tensor,
    cascades: Sequence[Cascade],
    *,
    generator: torch.Generator | None = None,
    quantile: Tensor | float | None = None,
    sign: Tensor | int | None = None,
    margin: tuple[int, ...] | None = None,
    outside: tuple[float, ...] | None = None,
    reference: Reference | None = None,
    noise: Tensor | None = None,
    compat: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Apply to every sample the operation that it chose in every cascade, in the order of execution.

    Args:
        image: (B, C, D, H, W).
        label: (B, K, D, H, W) one-hot or soft, or None.
        indices: (B, number of cascades) int64, places in the cascades, 0 being the identity.
        cascades: from `training_cascades`, `extra_cascades`, or a user's own.
        generator: random numbers come from it; None: torch's global one.
        quantile: (B, number of cascades) or a number, where in its range a magnitude lies; None: drawn uniformly.
        sign: (B, number of cascades) or a number, +1 or -1; None: drawn, each with probability 1/2.
        margin: voxels at each end of each axis by which the patch is larger than what is wanted, so that rotations
            bring no corners.
        outside: value of each label channel outside the volume; None: 1 for the first and 0 for the others.
        reference: intensities of the whole volumes, for gamma, contrast and clipping; None: each sample's own.
        noise: (B, C, D, H, W) of the patch's size, unit deviation, in place of the noise operations' draws.
        compat: as the paper's code: zeros outside the volume, labels hardened after every resampling, even sizes
            resampled half a voxel off, and its ranges of brightness.

    Returns:
        The image in its own dtype and the label in float32 (float64 stays), both without the margin.

    Raises:
        ConfigError: ``indices`` do not fit the batch or the cascades.

    >>> from monai_autoaug.transforms import training_cascades
    >>> x, chosen = torch.rand(2, 1, 8, 8, 8), torch.zeros(2, 15, dtype=torch.int64)
    >>> chosen[1, 4] = 1  # the second sample is mirrored
    >>> y, _ = apply(x, None, chosen, training_cascades(), generator=torch.Generator().manual_seed(0))
    >>> torch.equal(y[0], x[0]), torch.equal(y[1], x[1].flip(1))
    (True, True)
    """
    steps = _plan(image, indices, cascades, generator, quantile, sign, compat)
    x = at_least_float32(image)
    soft = None if label is None else at_least_float32(label)
    labels = [] if soft is None else list(soft.split(1))
    state = _State(list(x.split(1)), labels, reference.split() if reference else [])
    shape = tuple(n - 2 * m for n, m in zip(x.shape[2:], margin or (0,) * (x.ndim - 2), strict=True))
    late = _gather_spatial(state, steps, tuple(x.shape[2:]), shape, generator)
    _resample(state, margin, outside, compat)
    for step in late:
        _run(state, step, Context(generator, None, compat, noise))
    moved = torch.cat(state.images).to(image.dtype)
    return moved, torch.cat(state.labels) if state.labels else None


def _plan(
    image: Tensor,
    indices: Tensor,
    cascades: Sequence[Cascade],
    generator: torch.Generator | None,
    quantile: Tensor | float | None,
    sign: Tensor | int | None,
    compat: bool,
) -> list[_Step]:
    """Who does what and how strongly, in order of execution."""
    size = (len(image), len(cascades))
    if tuple(indices.shape) != size:
        raise ConfigError(f"indices must be (samples, cascades) = {size}, got {tuple(indices.shape)}")
    device = image.device if generator is None else generator.device
    drawn = torch.rand(2, *size, generator=generator, device=device).to(image.device)
    quantiles = torch.as_tensor(drawn[0] if quantile is None else quantile, device=image.device).expand(size)
    signs = torch.as_tensor(torch.where(drawn[1] < 0.5, 1, -1) if sign is None else sign, device=image.device)
    signs = signs.expand(size)
    steps = []
    for column, (cascade, chosen) in enumerate(zip(cascades, indices.t().tolist(), strict=True)):
        if not all(0 <= k < len(cascade) for k in chosen):
            last = len(cascade) - 1
            raise ConfigError(f"cascade {cascade.name} has operations 0 to {last}, got {sorted(set(chosen))}")
        for k in sorted(set(chosen)):
            if cascade[k].acts != "nothing":
                rows = [i for i, c in enumerate(chosen) if c == k]
                magnitude = cascade[k].magnitude(quantiles[rows, column], signs[rows, column])
                steps.append(_Step(cascade[k], rows, magnitude))
    if compat:
        steps = _official_brightness(steps, cascades, quantiles, signs)
    return sorted(steps, key=lambda s: s.operation.order)


def _official_brightness(
    steps: list[_Step], cascades: Sequence[Cascade], quantiles: Tensor, signs: Tensor
) -> list[_Step]:
    """The paper's code asks for the shift where it means the factor.

    Multiplying alone takes ``1 - U(0, middle of the range - 1)``, and adding alone also multiplies by
    ``1 + U(0, .05)``; both together are as intended.
    """
    names = [c.name for c in cascades]
    if "badd" not in names or "bmul" not in names:
        return steps
    column, factors = names.index("bmul"), cascades[names.index("bmul")]
    added = {i for s in steps if s.operation.cascade == "badd" for i in s.rows}
    multiplied = {i for s in steps if s.operation.cascade == "bmul" for i in s.rows}

    def step(operation: Operation, rows: list[int], high: float) -> _Step:
        q, s = quantiles[rows, column], signs[rows, column]
        return _Step(operation, rows, replace(operation, low=1.0, high=high).magnitude(q, s))

    kept = []
    for s in steps:
        alone = [i for i in s.rows if i not in added] if s.operation.cascade == "bmul" else []
        together = [k for k, i in enumerate(s.rows) if i not in alone]
        if alone:
            kept.append(step(s.operation, alone, 2 - sum(s.operation.range) / 2))
        if together:
            kept.append(_Step(s.operation, [s.rows[k] for k in together], s.magnitude[together]))
    if added - multiplied:
        kept.append(step(factors[1], sorted(added - multiplied), 1.05))
    return kept


def _gather_spatial(
    state: _State, steps: list[_Step], full: tuple[int, ...], shape: tuple[int, ...], generator: torch.Generator | None
) -> list[_Step]:
    """Collect every sample's matrix and field; what is left is done voxel by voxel afterwards.

    A quarter turn of a plane whose two sizes differ is no permutation: all quarter turns of that sample then join its
    matrix.
    """
    late: list[_Step] = []
    turns = [s for s in steps if s.operation.matrix is not None and s.operation.acts == "permutation"]
    folded = {i for s in turns for i in s.rows if _turned(s, shape) != shape}
    for step in steps:
        operation = step.operation
        if operation.acts == "field":
            moved = operation(step.magnitude, full, generator)
            for i, one in zip(step.rows, moved.split(1), strict=True):
                state.fields[i] = state.fields[i] + one if i in state.fields else one
            continue
        join = [k for k, i in enumerate(step.rows) if operation.acts == "matrix" or (step in turns and i in folded)]
        if join:
            make = operation if operation.matrix is None else operation.matrix
            matrices = make(step.magnitude[join], len(shape))
            for k, one in zip(join, matrices.split(1), strict=True):
                i = step.rows[k]
                state.matrices[i] = state.matrices[i] @ one if i in state.matrices else one
        rest = [k for k in range(len(step.rows)) if k not in join]
        if rest:
            late.append(_Step(operation, [step.rows[k] for k in rest], step.magnitude[rest]))
    return late


def _turned(step: _Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after a permutation."""
    empty = torch.empty((1, 1, *shape), device="meta")
    return tuple(step.operation(empty, step.magnitude[:1].to("meta")).shape[2:])


def _resample(
    state: _State,
    margin: tuple[int, ...] | None,
    outside: tuple[float, ...] | None,
    compat: bool,
) -> None:
    """The one resampling of every sample that has a matrix or a field; the margin goes off the others."""
    images, labels = state.images, state.labels
    full = tuple(images[0].shape[2:])
    both = [i for i in range(len(images)) if i in state.fields]
    affine = [i for i in state.matrices if i not in state.fields]
    inner = [slice(m, n - m) for n, m in zip(full, margin or (0,) * len(full), strict=True)]
    window = (slice(None), slice(None), *inner)
    for i in range(len(images)):
        if i not in both and i not in affine:
            images[i] = images[i][window]
            if labels:
                labels[i] = labels[i][window]
    for rows in (affine, both):
        if not rows:
            continue
        x = _join(images, rows)
        matrix = torch.cat([state.matrices.get(i, torch.eye(len(full), device=x.device)[None]).to(x) for i in rows])
        shift = torch.zeros(len(rows), len(full), 1).to(x)
        if compat:  # coordinates are counted from (n - 1) / 2 and put back at n // 2
            shift = shift + torch.tensor([n // 2 - (n - 1) / 2 for n in full]).to(x)[:, None]
        displacement = torch.cat([state.fields[i] for i in rows]) if rows is both else None
        grid = compose(torch.cat([matrix, shift], -1), displacement, full, margin=margin, like=x)
        y = _join(labels, rows) if labels else None
        if compat and outside is None and y is not None:
            outside = (0.0,) * y.shape[1]
        moved, soft = resample(x, grid, label=y, padding="zero" if compat else "minimum", outside=outside)
        _put(images, rows, moved)
        if soft is not None:
            _put(labels, rows, _hardened(soft) if compat else soft)


def _hardened(soft: Tensor) -> Tensor:
    """One-hot labels by the paper's code: the last label that reaches one half, otherwise background."""
    order = torch.arange(soft.shape[1], device=soft.device).view(1, -1, *[1] * (soft.ndim - 2))
    winner = torch.where(soft >= 0.5, order, 0).amax(1, keepdim=True)
    return (order == winner).to(soft)


def _run(state: _State, step: _Step, context: Context) -> None:
    """One exact permutation, or one operation on values."""
    operation, rows = step.operation, step.rows
    x = _join(state.images, rows)
    if operation.acts == "permutation":
        _put(state.images, rows, operation(x, step.magnitude))
        if state.labels:
            _put(state.labels, rows, operation(_join(state.labels, rows), step.magnitude))
        return
    reference = Reference.join([state.references[i] for i in rows]) if state.references else None
    noise = None if context.noise is None else context.noise[rows]
    context = replace(context, reference=reference, noise=noise)
    if operation.acts == "pair":
        moved, soft = operation(x, _join(state.labels, rows) if state.labels else None, step.magnitude, context)
        _put(state.images, rows, moved)
        if soft is not None:
            _put(state.labels, rows, soft)
        return
    _put(state.images, rows, operation(x, step.magnitude, context))
    if reference is not None and operation.moves_reference:
        for i, moved in zip(rows, _move(reference, step, context).split(), strict=True):
            state.references[i] = moved


def _move(reference: Reference, step: _Step, context: Context) -> Reference:
    """The reference after an operation, which treats it like an image."""
    if reference.values is not None:
        flat = reference.values.flatten(2)
        return Reference(step.operation(flat[..., None, None], step.magnitude, context)[..., 0, 0])
    if step.operation.unit == "exponent":  # gamma keeps mean and deviation, and the range up to a little
        return reference
    ends = torch.stack([reference.minimum, reference.mean, reference.maximum], -1)
    low, mean, high = step.operation(ends[..., None, None], step.magnitude, context)[..., 0, 0].unbind(-1)
    stretch = (high - low) / (reference.maximum - reference.minimum).clamp(min=1e-7)
    return Reference(minimum=low, maximum=high, mean=mean, std=reference.std * stretch)
