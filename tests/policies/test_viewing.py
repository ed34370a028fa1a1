# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views of meta-validation patches: everything that belongs to a patch moves alike, and predictions come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.policies import TestTimePolicy
from monai_autoaug.policies.viewing import predict_views, view_batch

POLICY = TestTimePolicy.preset("uniform", level="patch", patch_size=(16, 16, 16))


def ball(margin: int) -> Batch:
    """A patch whose image, label, mask, validity and further channel all are one ellipsoid off the centre."""
    n = 16 + 2 * margin
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2] * 3, indexing="ij")
    z, y, x = axes
    inside = ((z - 2) ** 2 / 9 + (y + 1) ** 2 / 16 + (x - 1) ** 2 / 36 < 1).float()[None, None]
    label = torch.cat([1 - inside, inside], 1)
    return Batch(
        inside.clone(), label, valid=1 - 0.5 * inside, extra=inside.clone(), mask=inside.clone(),
        classes=torch.tensor([1]), case=("a",), margin=(margin,) * 3,
    )  # fmt: skip


@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize("place", [k for k, o in enumerate(POLICY.operations) if o.kind in ("identity", "spatial")])
def test_all_that_belongs_to_a_patch_moves_alike(place: int, margin: int) -> None:
    batch = ball(margin)
    seen = view_batch(POLICY, batch, torch.tensor([place]))
    assert seen.image.shape == (1, 1, 16, 16, 16)
    assert seen.extra is not None
    assert seen.valid is not None
    assert torch.allclose(seen.extra, seen.image, atol=1e-5) or POLICY.operations[place].acts == "matrix"
    # half of what is foreground is unknown: its label is known foreground over all that is known
    assert torch.allclose(seen.valid, 1 - 0.5 * seen.extra, atol=1e-5)
    assert torch.allclose(seen.label[:, 1], seen.extra[:, 0], atol=1e-5)
    back = view_batch(POLICY, batch, torch.tensor([0]))
    assert place == 0 or not torch.equal(seen.image, back.image)


@pytest.mark.parametrize("place", range(len(POLICY.operations)))
def test_predictions_come_back_to_where_they_belong(place: int) -> None:
    """A network that answers what it sees gives, brought back, what was there, where the view has seen it."""
    operation = POLICY.operations[place]
    batch = ball(0)
    back, seen = predict_views(POLICY, lambda x, extra: extra, batch, [operation])  # type: ignore[arg-type,return-value]
    assert batch.extra is not None
    assert back.shape == batch.extra.shape
    if operation.exactly_invertible or not operation.moves_label:
        assert torch.equal(back, batch.extra)
        assert bool(seen.all())
        return
    wrong = ((back > 0.5) != (batch.extra > 0.5)) & (seen > 0)
    assert int(wrong.sum()) < 0.12 * float(batch.extra.sum())  # of its border, which two interpolations have blurred
    centre = (slice(None), slice(None), *[slice(6, 10)] * 3)
    assert bool(seen[centre].all())


def test_each_row_of_a_batch_has_a_view_of_its_own() -> None:
    one = ball(1)
    both = Batch(
        torch.cat([one.image] * 2), torch.cat([one.label] * 2), case=("a", "b"), classes=torch.tensor([1, 1]),
        margin=one.margin,
    )  # fmt: skip
    seen = view_batch(POLICY, both, torch.tensor([0, 29]))
    assert torch.equal(seen.image[0].flip(1), seen.image[1])
    assert torch.equal(seen.label[0].flip(1), seen.label[1])
    assert seen.case == ("a", "b")
    assert not any(seen.margin)


def test_left_and_right_change_places_in_label_prediction_and_previous_segmentation() -> None:
    """The network answers with the previous segmentation, whose left and right are exchanged with the image's."""
    policy = TestTimePolicy.preset("nnunet", level="patch", patch_size=(8, 8, 8), laterality=[(1, 2)])
    flip = next(k for k, o in enumerate(policy.operations) if o.name == "flip_d")
    label = torch.zeros(1, 3, 8, 8, 8)
    label[:, 1, :4], label[:, 2, 4:] = 1, 1
    batch = Batch(label[:, 1:2], label, extra=label[:, 1:].clone(), classes=torch.tensor([1]), case=("a",))
    seen = view_batch(policy, batch, torch.tensor([flip]))
    assert torch.equal(seen.label, label)
    assert seen.extra is not None
    assert torch.equal(seen.extra, label[:, 1:])

    def network(image: Tensor, extra: Tensor | None) -> Tensor:
        assert extra is not None
        return torch.cat([torch.zeros_like(image), extra], 1)

    back, _ = predict_views(policy, network, batch, [policy.operations[flip]])
    assert torch.equal(back[:, 1:], label[:, 1:])
