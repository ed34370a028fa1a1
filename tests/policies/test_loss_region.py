# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Boxes in which the loss is taken: around voxels of the class they are for, in proportion, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.policies.drawing import Drawing
from monai_autoaug.policies.loss_region import restrict_loss


def make(count: int, *, regions: bool = False, margin: int = 2) -> Batch:
    """A large and a small structure; in the margin a label that nothing else has."""
    size = 16 + 2 * margin
    values = torch.zeros(count, size, size, size, dtype=torch.long)
    values[:, margin : margin + 6, margin : margin + 6] = 1
    values[:, -margin - 2 : -margin, -margin - 1, -margin - 1] = 2
    values[:, 0] = 3
    if regions:
        label = torch.stack([values >= 1, values >= 2, values >= 3], 1)
    else:
        label = torch.nn.functional.one_hot(values, 4).movedim(-1, 1)
    return Batch(torch.zeros(count, 1, size, size, size), label.float(), margin=(margin,) * 3)


@pytest.mark.parametrize("regions", [False, True])
def test_classes_are_drawn_in_proportion_and_lie_in_the_middle_of_the_box(regions: bool) -> None:
    batch = make(400, regions=regions)
    part = restrict_loss(batch, 0.5, torch.Generator().manual_seed(0), regions=regions)
    assert part.classes is not None
    assert part.valid is not None
    share = torch.bincount(part.classes, minlength=4) / 400
    assert share.tolist() == pytest.approx([0.5, 0.25, 0.25, 0], abs=0.07)
    values = batch.label.sum(1) if regions else batch.label.argmax(1)
    for k in range(40):
        inside = torch.nonzero(part.valid[k, 0])
        low, high = inside.amin(0), inside.amax(0)
        assert len(inside) == int((high - low + 1).prod())  # a box
        whole = ((low > 0) & (high < 19)).all()
        if whole:
            assert (high - low).tolist() == [8, 8, 8]
            assert values[k][tuple(((low + high) // 2).tolist())] == part.classes[k]


def test_what_is_unknown_is_not_chosen_and_stays_unknown() -> None:
    batch = make(20)
    valid = torch.ones(20, 1, 20, 20, 20)
    valid[:, :, :, 2:8] = 0  # the large structure
    valid[10:] = 0
    part = restrict_loss(Batch(batch.image, batch.label, valid=valid, margin=batch.margin), 0.5)
    assert part.classes is not None
    assert part.valid is not None
    assert not (part.classes == 1).any()
    assert not (part.valid * (1 - valid)).any()
    assert part.valid[:10].flatten(1).any(1).all()


def test_two_dimensions_and_shares_that_make_no_sense() -> None:
    batch = Batch(torch.zeros(3, 1, 12, 12), torch.ones(3, 1, 12, 12))
    part = restrict_loss(batch, 0.25, torch.Generator().manual_seed(0))
    assert part.valid is not None
    assert part.valid.shape == (3, 1, 12, 12)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            restrict_loss(batch, share)


def test_a_box_stays_a_box_when_the_patch_is_made_smaller() -> None:
    """What comes in from outside counts no more than what is outside of the box."""
    policy = TrainingPolicy.preset("uniform", ("all",))
    size = 24
    label = torch.zeros(4, 2, size, size, size)
    label[:, 0] = 1
    batch = Batch(torch.rand(4, 1, size, size, size), label, classes=torch.zeros(4, dtype=torch.long))
    drawn = Drawing(policy, loss_region=0.5)(batch, torch.Generator().manual_seed(0))
    assert drawn.valid is not None
    corners = drawn.valid[:, 0, :: size - 1, :: size - 1, :: size - 1].flatten(1)
    assert float(drawn.valid.flatten(1).sum(1).max()) < 1.5**3 * 13**3  # magnified at most by half on each axis
    assert float(corners.mean()) < 0.2
