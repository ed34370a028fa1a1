# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training policy's operations on all that belongs to a batch of patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms import on_cpu
from monai_autoaug.transforms.intensity import Reference

__all__ = ["augment"]


def augment(
    policy: TrainingPolicy,
    batch: Batch,
    indices: Tensor,
    generator: torch.Generator | None = None,
    *,
    regions: bool = False,
    reference: Reference | None = None,
    known_outside: bool = True,
) -> Batch:
    """Apply the operations that were drawn to everything in a batch that moves, and cut off its margin.

    Further channels, validity and non-zero mask move with the label, and left and right are exchanged in a cascade's
    channels, too; operations on values touch the image alone, which is 0 again where the mask is. At the edge of what
    is known the label comes from known voxels alone.

    Args:
        policy: what ``indices`` were drawn from.
        batch: patches with their margin.
        indices: (B, cascades) int64.
        generator: random numbers come from it; None: torch's global one.
        regions: the label's channels are regions, not classes.
        reference: intensities of the whole volumes; None: each patch's own.
        known_outside: what comes in from outside of the enlarged patch counts for the loss, as background; always so in
            a batch that has no ``valid``.

    Raises:
        ConfigError: ``indices`` do not fit, another library's spatial transform meets more than image and label, or
            laterality meets further channels that are not the foreground labels.

    >>> policy, batch = TrainingPolicy.preset("nnunet"), Batch(torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8))
    >>> augment(policy, batch, policy.sample(torch.tensor([1]))[0]).label.shape
    torch.Size([1, 1, 8, 8, 8])
    """
    known = batch.label if batch.valid is None else batch.label * batch.valid
    riders = {name: getattr(batch, name) for name in ("valid", "mask", "extra") if getattr(batch, name) is not None}
    stack = {"label": known} | riders
    widths = {name: t.shape[1] for name, t in stack.items()}
    if riders or regions:
        _refuse_foreign(policy, indices)
    if policy.laterality is not None and "extra" in riders and (regions or widths["extra"] != widths["label"] - 1):
        raise ConfigError(
            f"laterality: expected a cascade's channels to be the foreground labels, {widths['label'] - 1} of them, got"
            f" {widths['extra']}{' beside regions' if regions else ''}; their left and right can't be exchanged"
        )
    # outside the volume is background for certain, or unknown
    known_outside = known_outside or batch.valid is None
    first = {"label": float(known_outside and not regions), "valid": float(known_outside)}
    outside = [v for name, t in stack.items() for v in (first.get(name, 0.0), *[0.0] * (t.shape[1] - 1))]
    channels = torch.cat([t.to(known.dtype) for t in stack.values()], 1) if riders else known
    image, soft = on_cpu.apply(
        batch.image, channels, indices, policy.cascades,
        generator=generator, margin=batch.margin, outside=tuple(outside), reference=reference,
    )  # fmt: skip
    assert soft is not None  # noqa: S101  # for the type checker: channels were given
    moved = dict(zip(stack, soft.split(list(widths.values()), dim=1), strict=True))
    label = moved.pop("label")
    if "valid" in moved:
        label = label / moved["valid"].clamp(min=1e-3)  # `valid` alone weighs a voxel, however little of it is known
    if "mask" in moved:
        image = image * (moved["mask"] >= 0.5).to(image.dtype)
    if "extra" in moved:
        extra = policy.exchange(moved["extra"], indices, first=1)
        moved["extra"] = extra.to(riders["extra"].dtype)
    none = (0,) * len(batch.margin)
    label = policy.exchange(label, indices)
    return replace(batch, image=image, label=label, margin=none, target=None, **moved)


def _refuse_foreign(policy: TrainingPolicy, indices: Tensor) -> None:
    """Another library's spatial transform takes the label for one-hot and would spoil whatever else moves with it."""
    for cascade, chosen in zip(policy.cascades, indices.t().tolist(), strict=True):
        for operation in {cascade[k].name: cascade[k] for k in chosen}.values():
            if operation.acts == "pair" and operation.moves_label:
                raise ConfigError(
                    f"operation {operation.name} moves an image and its one-hot label alone, but the batch also has"
                    " regions, an ignore label, a mask or a cascade's channels. To do: leave it out of the policy"
                )
