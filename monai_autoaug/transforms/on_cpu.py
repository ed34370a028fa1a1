# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`apply` on a CPU without a gradient: what a loader's worker has to do, in a fraction of the time.

The draws and the results are those of `execution.apply`, up to rounding: a margin is never touched where nothing moves,
matrices that leave an axis alone need no grid (see `separable`), operations on values write over their input, and
labels that are still values are made channels no earlier than they must. Whatever else a policy may draw is left to the
functions that `execution.apply` itself calls. It takes one thread, so that a worker's results are the main process's. A
voxel that is not finite may spread to its whole channel, not to its neighbours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import float32_region
from monai_autoaug.tensors import is_derived, one_hot, one_thread
from monai_autoaug.transforms import execution, in_place, spatial
from monai_autoaug.transforms.execution import _State, _Step
from monai_autoaug.transforms.geometry import compose, resample
from monai_autoaug.transforms.gridded import Gridded
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.label_cells import MOST_CLASSES
from monai_autoaug.transforms.registry import Cascade, Context, Operation
from monai_autoaug.transforms.separable import Separable

__all__ = ["apply", "apply_to_channels", "apply_to_values"]


def apply(
    image: Tensor,
    label: Tensor | None,
    indices: Tensor,
    cascades: Sequence[Cascade],
    *,
    generator: torch.Generator | None = None,
    margin: tuple[int, ...] | None = None,
    outside: tuple[float, ...] | None = None,
    reference: Reference | None = None,
    compat: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`execution.apply`, by the way of this module where that can be.

    Image and label go the faster way where both are float32 on a CPU, nobody wants a derivative, each patch is its own
    ``reference``, and ``compat`` is False.

    Args:
        image: see `execution.apply` for all of these.
        label: None goes the other way.
        indices: operations by sample and cascade.
        cascades: of the policy.
        generator: random numbers come from it.
        margin: voxels that are cut off.
        outside: of the label's channels.
        reference: intensities of the whole volumes.
        compat: as the paper's code does it.

    Returns:
        Image and label (plain tensors) without the margin.

    Raises:
        ConfigError: see `execution.apply`; on the faster way also where image and label differ in size, or ``outside``
            has not one number a channel.

    >>> from monai_autoaug.transforms import training_cascades
    >>> x, chosen = torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 15, dtype=torch.int64)
    >>> apply(x, None, chosen, training_cascades())[0].equal(x)
    True
    """
    if label is not None and reference is None and not compat:
        if all(t.device.type == "cpu" and t.dtype == torch.float32 and not is_derived(t) for t in (image, label)):
            return apply_to_channels(
                image.as_subclass(Tensor), label.as_subclass(Tensor), indices, cascades, generator=generator,
                margin=margin, outside=outside,
            )  # fmt: skip
    return execution.apply(
        image, label, indices, cascades, generator=generator, margin=margin, outside=outside, reference=reference,
        compat=compat,
    )  # fmt: skip


def apply_to_values(
    image: Tensor,
    label: Tensor,
    classes: int,
    indices: Tensor,
    cascades: Sequence[Cascade],
    *,
    generator: torch.Generator | None = None,
    margin: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply to every sample the operation that it chose in every cascade, see `execution.apply`.

    Args:
        image: (B, C, D, H, W) float32 on a CPU.
        label: (B, 1, D, H, W) integers from 0 to ``classes`` - 1.
        classes: channels that the soft label is to have.
        indices: (B, number of cascades) int64.
        cascades: see `execution.apply`.
        generator: random numbers come from it; None: torch's global one.
        margin: voxels at each end of each axis that are cut off.

    Returns:
        Image and soft label (B, classes, D, H, W) in float32, both without the margin; neither shares memory with what
        was given.

    Raises:
        ConfigError: ``indices`` do not fit the batch or the cascades, or the label the image; it has no values, or the
            image is not in float32.

    >>> from monai_autoaug.transforms import training_cascades
    >>> x, chosen = torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 15, dtype=torch.int64)
    >>> apply_to_values(x, (x > 0.5).short(), 2, chosen, training_cascades(), margin=(2, 2, 2))[1].shape
    torch.Size([1, 2, 4, 4, 4])
    """
    form = tuple(label.shape)
    if label.is_floating_point() or form[1] != 1:
        raise ConfigError(f"expected label values (B, 1, ...) of an integer type, got {label.dtype} {form}")
    if image.dtype != torch.float32:
        raise ConfigError(f"expected an image in float32, got {image.dtype}")
    small = label.to(torch.uint8) if classes <= 256 else label
    return _apply(image, small, classes, indices, cascades, generator, margin, None)


def apply_to_channels(
    image: Tensor,
    channels: Tensor,
    indices: Tensor,
    cascades: Sequence[Cascade],
    *,
    generator: torch.Generator | None = None,
    margin: tuple[int, ...] | None = None,
    outside: tuple[float, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for regions, for labels that are unknown somewhere, and for whatever else moves with an image.

    Args:
        image: see `apply_to_values`.
        channels: (B, K, D, H, W) float32.
        indices: see `apply_to_values`.
        cascades: see `apply_to_values`.
        generator: see `apply_to_values`.
        margin: see `apply_to_values`.
        outside: value of each channel outside the volume; None: 1 for the first and 0 for the others.

    Returns:
        Image and channels (B, K, D, H, W), both without the margin; neither shares memory with what was given.

    Raises:
        ConfigError: ``indices`` do not fit the batch or the cascades, or the channels the image, or ``outside`` them.

    >>> from monai_autoaug.transforms import training_cascades
    >>> x, chosen = torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 15, dtype=torch.int64)
    >>> apply_to_channels(x, x.gt(0.5).float(), chosen, training_cascades(), outside=(0.0,))[1].shape
    torch.Size([1, 1, 8, 8, 8])
    """
    fill = (1.0, *[0.0] * (channels.shape[1] - 1)) if outside is None else outside
    if len(fill) != channels.shape[1]:
        raise ConfigError(f"outside needs a number a channel, {channels.shape[1]} of them, got {len(fill)}")
    return _apply(image, channels, channels.shape[1], indices, cascades, generator, margin, fill)


@torch.no_grad()
@float32_region("cpu")
@one_thread()
def _apply(
    image: Tensor,
    label: Tensor,
    classes: int,
    indices: Tensor,
    cascades: Sequence[Cascade],
    generator: torch.Generator | None,
    margin: tuple[int, ...] | None,
    outside: tuple[float, ...] | None,
) -> tuple[Tensor, Tensor]:
    """Of label values, or of channels (B, ``classes``, ...) and what they are ``outside``."""
    if image.shape[2:] != label.shape[2:] or len(image) != len(label):
        sizes = f"{tuple(image.shape)} and {tuple(label.shape)}"
        raise ConfigError(f"expected an image and a label of the same samples and size, got {sizes}")
    steps = execution._plan(image, indices, cascades, generator, None, None, False)
    full = tuple(image.shape[2:])
    margin = margin or (0,) * len(full)
    shape = tuple(n - 2 * m for n, m in zip(full, margin, strict=True))
    state = _State(list(image.split(1)), list(label.split(1)), [])
    late = execution._gather_spatial(state, steps, full, shape, generator)
    for i in range(len(image)):
        _move(state, i, classes, margin, shape, outside)
    for step in _joined(late):
        if step.operation.acts == "pair":  # of another library, which takes channels
            for i in step.rows:
                state.labels[i] = _soft(state.labels[i], classes)
        if not in_place.run(state.images, step.operation, step.rows, step.magnitude, generator):
            execution._run(state, step, Context(generator))
    images, labels = [x.contiguous() for x in state.images], [_soft(y, classes) for y in state.labels]
    return (images[0], labels[0]) if len(images) == 1 else (torch.cat(images), torch.cat(labels))


def _joined(steps: list[_Step]) -> list[_Step]:
    """Permutations sample by sample, since labels of some have channels by then; flips in a row become one."""
    made: list[_Step] = []
    for step in steps:
        if step.operation.acts != "permutation":
            made.append(step)
            continue
        axes = _flipped(step.operation)
        for k, row in enumerate(step.rows):
            last = next((n for n in reversed(range(len(made))) if row in made[n].rows), None)
            before = _flipped(made[last].operation) if last is not None else None
            if axes is None or before is None or last is None:
                made.append(_Step(step.operation, [row], step.magnitude[k : k + 1]))
            else:
                both = tuple(sorted({*before} ^ {*axes}))
                function = partial(spatial.flip, axes=both)
                made[last] = _Step(replace(step.operation, function=function), [row], step.magnitude[k : k + 1])
    return made


def _flipped(operation: Operation) -> tuple[int, ...] | None:
    """The axes of one of our flips."""
    function = operation.function
    if isinstance(function, partial) and function.func is spatial.flip:
        axes: tuple[int, ...] = function.keywords["axes"]
        return axes
    return None


def _soft(label: Tensor, classes: int) -> Tensor:
    """(1, K, ...), of what nothing has interpolated (1, 1, ...), too."""
    return label.contiguous() if label.is_floating_point() else one_hot(label, classes)


def _move(
    state: _State, i: int, classes: int, margin: tuple[int, ...], shape: tuple[int, ...],
    outside: tuple[float, ...] | None,
) -> None:  # fmt: skip
    """The one resampling of a sample, or its window."""
    matrix, field = state.matrices.get(i), state.fields.get(i)
    x, y = state.images[i], state.labels[i]
    full = tuple(x.shape[2:])
    if matrix is None and field is None:
        window = (slice(None), slice(None), *[slice(m, n - m) for n, m in zip(full, margin, strict=True)])
        state.images[i], state.labels[i] = (t[window].clone(memory_format=torch.contiguous_format) for t in (x, y))
        return
    if field is None and matrix is not None and len(full) == 3 and (outside is not None or classes <= MOST_CLASSES):
        way = Separable.of(matrix[0], full, shape) or Gridded(matrix[0], full, shape)
        state.images[i] = way.image(x[0])[None]
        state.labels[i] = (way.label(y[0, 0], classes) if outside is None else way.image(y[0], outside))[None]
        return
    affine = None
    if matrix is not None:
        affine = torch.cat([matrix.to(x), torch.zeros(1, len(full), 1)], -1)
    grid = compose(affine, field, full, margin=margin, like=x)
    moved, soft = resample(x, grid, label=_soft(y, classes), outside=outside)
    assert soft is not None  # noqa: S101  # for the type checker: a label was given
    state.images[i], state.labels[i] = moved, soft
