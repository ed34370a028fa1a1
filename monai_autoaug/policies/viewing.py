# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views of meta-validation patches: of image and label for the training policy, of predictions for the test-time one.

A patch is viewed with its margin, which is cut off afterwards, so that a view shows what lies around the patch. All
views keep the patch's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.transforms.registry import Operation
from monai_autoaug.transforms.views import apply_view

__all__ = ["predict_views", "view_batch", "view_image"]


def view_image(
    operation: Operation, image: Tensor, margin: tuple[int, ...], generator: torch.Generator | None = None
) -> Tensor:
    """A view of patches without their margin.

    Args:
        operation: one of `operations_at_test_time` that keeps the patch's size.
        image: (B, C, D, H, W).
        margin: voxels at each end of each axis that are cut off.
        generator: for the views that add noise; None: torch's global one.

    >>> from monai_autoaug.transforms import operations_at_test_time
    >>> view_image(operations_at_test_time()[5], torch.rand(1, 1, 8, 8, 8), (1, 1, 1)).shape
    torch.Size([1, 1, 6, 6, 6])
    """
    if operation.acts == "matrix":
        return centre_crop(apply_view(operation, image, enlarge=False), margin)
    return apply_view(operation, centre_crop(image, margin), generator=generator)


def view_batch(
    policy: TestTimePolicy,
    batch: Batch,
    indices: Tensor,
    generator: torch.Generator | None = None,
    *,
    regions: bool = False,
) -> Batch:
    """One view of every patch, of all that moves with its image (Eq. 16).

    Args:
        policy: whose ``operations`` are meant.
        batch: patches with their margin.
        indices: (B,) int64, places among the operations.
        generator: for the views that add noise; None: torch's global one.
        regions: the label's channels are regions, not classes.

    >>> policy, label = TestTimePolicy.preset("uniform"), torch.zeros(1, 2, 4, 4, 4)
    >>> label[:, 0] = 1
    >>> view_batch(policy, Batch(torch.rand(1, 1, 4, 4, 4), label), torch.tensor([11])).label.sum(1).unique()
    tensor([1.])
    """
    rows = [
        _view_row(policy, batch.rows(slice(i, i + 1)), policy.operations[k], generator, regions)
        for i, k in enumerate(indices.tolist())
    ]
    names = [n for n in ("image", "label", "valid", "extra") if getattr(rows[0], n) is not None]
    joined: dict[str, Any] = {name: torch.cat([getattr(r, name) for r in rows]) for name in names}
    return replace(batch.cropped(), target=None, mask=None, **joined)


def _view_row(
    policy: TestTimePolicy, row: Batch, operation: Operation, generator: torch.Generator | None, regions: bool
) -> Batch:
    """One patch."""
    image = view_image(operation, row.image, row.margin, generator)
    if row.mask is not None:  # where the image must stay 0 moves with it
        mask = _moved(operation, row.mask, row.margin)
        image = image * (mask >= 0.5).to(image.dtype)
    label = _moved(operation, row.label if regions else row.label[:, 1:], row.margin)
    if policy.laterality is not None and policy.laterality.reverses(operation):
        label = policy.laterality.swapped(label, first=0 if regions else 1)
    valid = extra = None
    if row.valid is not None:  # outside the volume is background for certain
        unknown = _moved(operation, 1 - row.valid, row.margin)
        valid = 1 - unknown
    if not regions:  # what no structure claims and is known is background
        there = 1.0 if valid is None else valid
        label = torch.cat([(there - label.sum(1, keepdim=True)).clamp(min=0), label], 1)
    if row.extra is not None:
        extra = _moved_extra(policy, operation, row.extra, row.margin)
    return replace(row, image=image, label=label, valid=valid, extra=extra, mask=None, margin=(), target=None)


def _moved_extra(policy: TestTimePolicy, operation: Operation, extra: Tensor, margin: tuple[int, ...]) -> Tensor:
    """A previous segmentation, one channel a foreground label, whose left and right change places with the image's."""
    moved = _moved(operation, extra, margin).to(extra.dtype)
    if policy.laterality is not None and policy.laterality.reverses(operation):
        moved = policy.laterality.swapped(moved, first=1)
    return moved


def _moved(operation: Operation, x: Tensor, margin: tuple[int, ...]) -> Tensor:
    """What isn't an image: it moves, and its values stay; 0 outside, which is its minimum."""
    if not operation.moves_label:
        return centre_crop(x, margin)
    if operation.acts != "matrix":
        return view_image(operation, x, margin)
    return centre_crop(apply_view(operation, x.float(), enlarge=False, padding="zero"), margin)


def predict_views(
    policy: TestTimePolicy,
    network: Callable[[Tensor, Tensor | None], Tensor],
    batch: Batch,
    operations: Sequence[Operation],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Predictions of several views of one patch, brought back to where they belong (Eq. 12).

    Args:
        policy: says which labels a view exchanges.
        network: from image and further channels (n, ..., D, H, W) to logits (n, K, D, H, W).
        batch: one patch with its margin.
        operations: views that keep the patch's size.
        generator: for the views that add noise; None: torch's global one.

    Returns:
        (n, K, D, H, W) logits, and (n, 1, D, H, W) 1 where a view has seen the voxel.

    >>> policy, batch = TestTimePolicy.preset("uniform"), Batch(torch.rand(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4))
    >>> logits, seen = predict_views(policy, lambda x, extra: x, batch, policy.operations[29:32])
    >>> torch.equal(logits, batch.image.expand(3, -1, -1, -1, -1)), seen.shape
    (True, torch.Size([3, 1, 4, 4, 4]))
    """
    images = torch.cat([view_image(o, batch.image, batch.margin, generator) for o in operations])
    extra = None
    if batch.extra is not None:
        extra = torch.cat([_moved_extra(policy, o, batch.extra, batch.margin) for o in operations])
    output = network(images, extra)
    shape = tuple(images.shape[2:])
    back, seen = [], []
    for operation, logits in zip(operations, output.split(1), strict=True):
        returned, covered = policy.revert(operation, logits, shape)
        back.append(returned)
        seen.append((covered > 0.5).to(returned).expand(1, 1, *shape))
    return torch.cat(back), torch.cat(seen)
