# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Left and right under mirroring, while training and at test time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from monai.transforms import RandFlipd
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import (
    Laterality,
    TestTimePolicy,
    TrainingPolicy,
    augment,
    lateral_pairs,
    left_right_axis,
)
from monai_autoaug.transforms import Cascade, Operation, from_monai, operations_at_test_time, training_cascades

NAMES = [c.name for c in training_cascades()]


def chosen(policy: TrainingPolicy, *names: str) -> Tensor:
    """Indices of one sample that gets the operations of these names."""
    return torch.tensor([[max((k for k, o in enumerate(c.operations) if o.name in names), default=0)
                          for c in policy.cascades]])  # fmt: skip


def two_sides(shape: tuple[int, ...] = (8, 6, 7), axis: int = 0) -> tuple[Tensor, Tensor]:
    """An image of positions along the axis, whose halves are labels 1 and 2 but for a background end."""
    ramp = torch.linspace(-1, 1, shape[axis]).view(*[-1 if a == axis else 1 for a in range(3)]).expand(shape)
    numbers = torch.where(ramp < 0, 1, 2)
    numbers = numbers.index_fill(2 if axis != 2 else 1, torch.tensor([0]), 0)
    return ramp[None, None].clone(), F.one_hot(numbers, 3).movedim(-1, 0)[None].float()


@pytest.mark.parametrize(
    ("names", "exchanged"),
    [
        (["flip_d"], True),
        (["flip_h"], False),
        (["flip_d", "flip_w"], True),
        (["flip_h", "flip_w"], False),
        (["flip_d", "rotate_hw_90", "noise_0.050_0.100"], True),
        (["rotate_dh_20_30", "scale_1.10_1.20"], False),
    ],
)
def test_mirroring_exchanges_the_labels_of_a_pair(names: list[str], exchanged: bool) -> None:
    policy, plain = (TrainingPolicy.preset("nnunet", laterality=pairs) for pairs in ([(1, 2)], None))
    image, label = two_sides((8, 6, 6))
    indices = chosen(policy, *names)
    moved, soft = policy.apply(image, label, indices, torch.Generator().manual_seed(0))
    other, before = plain.apply(image, label, chosen(plain, *names), torch.Generator().manual_seed(0))
    assert soft is not None
    assert before is not None
    assert bool(policy.mirrored(indices)) == exchanged
    assert torch.equal(soft, before[:, [0, 2, 1]] if exchanged else before)
    assert moved.shape == other.shape


def test_after_mirroring_each_side_lies_where_it_belongs() -> None:
    """Whatever is drawn of flips, the low half of the left-right axis is label 1."""
    policy = TrainingPolicy.preset("nnunet", laterality=[(1, 2)])
    _, label = two_sides()
    for names in (["flip_d"], ["flip_d", "flip_h"], ["flip_d", "flip_h", "flip_w"]):
        soft = policy.apply(label[:, :1], label, chosen(policy, *names))[1]
        assert soft is not None
        numbers = soft.argmax(1)[0]
        assert set(numbers[:4].unique().tolist()) == {0, 1}
        assert set(numbers[4:].unique().tolist()) == {0, 2}


def test_a_cascades_channels_are_exchanged_too() -> None:
    """What the network is shown of an earlier segmentation agrees with its label, one channel a foreground label."""
    policy = TrainingPolicy.preset("nnunet", laterality=[(1, 2)])
    image, label = two_sides((8, 6, 6))
    batch = Batch(image, label, extra=label[:, 1:])
    for names in (["flip_d"], ["flip_d", "rotate_hw_90"], ["rotate_dh_20_30"], ["flip_h"]):
        moved = augment(policy, batch, chosen(policy, *names), torch.Generator().manual_seed(1))
        assert moved.extra is not None
        assert torch.allclose(moved.extra, moved.label[:, 1:], atol=1e-6)
    for wrong, regions in ((Batch(image, label, extra=label), False), (batch, True)):
        with pytest.raises(ConfigError, match="cascade's channels to be the foreground labels, 2 of them, got"):
            augment(policy, wrong, chosen(policy, "flip_d"), regions=regions)
    plain = TrainingPolicy.preset("nnunet")
    assert augment(plain, Batch(image, label, extra=label), chosen(plain, "flip_d")).extra is not None


def test_only_the_samples_that_were_mirrored() -> None:
    policy = TrainingPolicy.preset("nnunet", laterality=[(1, 2)])
    image, label = two_sides()
    indices = torch.cat([chosen(policy), chosen(policy, "flip_d"), chosen(policy, "flip_h")])
    soft = policy.apply(image.expand(3, -1, -1, -1, -1), label.expand(3, -1, -1, -1, -1), indices)[1]
    assert soft is not None
    assert policy.mirrored(indices).tolist() == [False, True, False]
    assert torch.equal(soft[0], label[0])
    assert torch.equal(soft[1], label[0].flip(1)[[0, 2, 1]])
    assert torch.equal(soft[2], label[0].flip(2))


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_operations_that_are_left_out(axis: int) -> None:
    """Quarter turns of the axis always; mirrors of it if so wished."""
    name = "dhw"[axis]
    names = {o.name for c in training_cascades() for o in c.operations}
    for mirrors in ("swap", "off"):
        sides: Any = Laterality(((1, 2),), axis=axis, mirrors=mirrors)  # type: ignore[arg-type]
        policy = TrainingPolicy.preset("nnunet", laterality=sides)
        left_out = names - {o.name for c in policy.cascades for o in c.operations}
        turns = {f"rotate_{p}_90" for p in ("hw", "dw", "dh") if name in p}
        assert left_out == turns | ({f"flip_{name}"} if mirrors == "off" else set())
        views = TestTimePolicy.preset("nnunet", laterality=sides)
        kept = {o.name for o in views.operations}
        assert len(kept) == 84 - 4 - (4 if mirrors == "off" else 0)
        if mirrors == "off":
            assert not any("flip" in n and name in n for n in kept)
            assert float(views.probabilities()[0]) == pytest.approx(0.2)  # four of eight mirrorings are left


class Positions(torch.nn.Module):
    """Says 1 at the low and 2 at the high half of the first axis, as sure as it is far from the middle."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, x.shape[2]).view(-1, 1, 1).expand(x.shape[2:])
        return torch.stack([torch.zeros_like(ramp), -ramp, ramp])[None]


@pytest.mark.parametrize("z", [1, 2, 8])
def test_views_exchange_the_channels_of_a_pair(z: int) -> None:
    image = torch.rand(1, 1, 8, 6, 6)
    expected = Positions()(image)
    policy = TestTimePolicy.preset("nnunet", laterality=[(1, 2)])
    assert torch.allclose(policy.apply(Positions(), image, z), expected, atol=1e-6)
    if z == 8:
        blind = TestTimePolicy.preset("nnunet").apply(Positions(), image, z)
        assert float(blind.abs().max()) < 1e-6  # left and right cancel


@pytest.mark.parametrize("level", ["volume", "patch"])
def test_views_of_a_cascades_channels(level: Any) -> None:
    """A network that repeats its earlier segmentation, which values' operations must not touch."""
    image, label = two_sides((8, 6, 6))

    def repeat(x: Tensor) -> Tensor:
        return torch.cat([1 - x[:, 1:].sum(1, keepdim=True), x[:, 1:]], 1)

    x = torch.cat([image, label[:, 1:]], 1)
    for name in ("flip_d", "flip_dhw", "brightness_add_+0.25", "noise_0.125", "rotate_hw_+90"):
        view = next(o for o in operations_at_test_time() if o.name == name)
        policy = TestTimePolicy([view], level=level, laterality=[(1, 2)])
        assert torch.allclose(policy.apply(repeat, x, 1, still=2), label, atol=1e-6)
        changed = policy.view(view, x, still=2)[:, :1]
        assert not torch.equal(changed, image) or name == "rotate_hw_+90"


def test_transforms_of_other_libraries_have_to_say_whether_they_mirror() -> None:
    flip = RandFlipd(["image", "label"], prob=1.0, spatial_axis=0)
    image, label = two_sides()
    unknown = Cascade("mine", (Operation("identity"), from_monai(flip, "my_flip", kind="spatial")))
    with pytest.raises(ConfigError, match=r"operation my_flip: .*say which axes it mirrors"):
        TrainingPolicy([unknown], laterality=[(1, 2)])
    TrainingPolicy([unknown])
    told = Cascade("mine", (Operation("identity"), from_monai(flip, "my_flip", kind="spatial", mirrors=(0,))))
    soft = TrainingPolicy([told], laterality=[(1, 2)]).apply(image, label, torch.tensor([[1]]))[1]
    assert soft is not None
    assert torch.equal(soft, label.flip(2)[:, [0, 2, 1]])


def test_what_makes_no_pairs_is_refused() -> None:
    for pairs, message in (
        ([(1, 1)], "one pair only"),
        ([(1, 2), (2, 3)], "one pair only"),
        ([(1, 2, 3)], "pairs must be such as"),
        ([(-1, 2)], "one pair only"),
        ([("left", "right")], "pairs must be such as"),
    ):
        with pytest.raises(ConfigError, match=message):
            Laterality.of(pairs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="axis must be 0, 1 or 2, got 3"):
        Laterality(((1, 2),), axis=3)
    with pytest.raises(ConfigError, match="mirrors must be 'swap' or 'off', got 'on'"):
        Laterality(((1, 2),), mirrors="on")  # type: ignore[arg-type]
    for kind in (TrainingPolicy, TestTimePolicy):
        with pytest.raises(ConfigError, match="axis must be below 2, the axes of an image, got 2"):
            kind.preset("nnunet", spatial_dims=2, laterality=Laterality(((1, 2),), axis=2))
    policy = TrainingPolicy.preset("nnunet", laterality=[(1, 5)])
    with pytest.raises(ConfigError, match=r"pair \(1, 5\) does not fit labels of 3 channels, the first being 0"):
        policy.apply(*two_sides(), chosen(policy, "flip_d"))


def test_the_axis_comes_from_the_orientation() -> None:
    assert [left_right_axis(o) for o in ("RAS", "LPS", "PSR", "ail")] == [0, 0, 2, 2]
    oblique = np.array([[0.2, -2.9, 0, 5], [0.9, 0.3, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert left_right_axis(oblique) == 1
    for wrong in ("ASI", np.eye(3), np.full((4, 4), np.nan)):
        with pytest.raises(ConfigError, match="orientation must be three letters"):
            left_right_axis(wrong)


def test_names_that_look_lateral() -> None:
    labels = {"background": 0, "L kidney": 1, "R kidney": 2, "lung_upper_lobe_left": 3, "lung_upper_lobe_right": 4,
              "left_ventricle": 5, "myocardium": 6, "rh-cortex": 7, "lh-cortex": 8}  # fmt: skip
    assert set(lateral_pairs(labels)) == {(1, 2), (3, 4), (8, 7)}
    assert lateral_pairs({"background": 0, "Anterior": 1, "Posterior": 2}) == ()
