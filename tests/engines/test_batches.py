# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a method gets to see of a MONAI batch, whatever its labels look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import SIZE, items, loader, record, trainer
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn

from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.batches import Converter, Prepared, count_classes
from monai_autoaug.engines.segmentation import IGNORED, SegmentationLoss
from monai_autoaug.errors import ConfigError, DataError


def converter(**options: Any) -> Converter:
    def prepare(data: Any) -> Any:
        return data["image"], data["label"]

    given: dict[str, Any] = {"spatial_dims": 3, "margin": (0, 0, 0), "soft": True, "num_classes": 3}
    given |= {"loss_function": DiceLoss(to_onehot_y=True, softmax=True)}
    return Converter(prepare, nn.Identity(), torch.device("cpu"), **(given | options))


def first(**options: Any) -> tuple[dict[str, Any], Prepared]:
    data = next(iter(loader(shuffle=False)))
    return data, converter(**options)(data)


def test_metadata_becomes_plain_facts() -> None:
    data, prepared = first()
    batch = prepared.batch
    assert type(batch.image) is Tensor
    assert type(batch.label) is Tensor
    assert isinstance(prepared.inputs, MetaTensor)
    assert batch.case == ("case_0", "case_1")
    assert batch.spacing is not None
    torch.testing.assert_close(batch.spacing, torch.tensor([[1.0, 2.0, 3.0]] * 2))
    assert torch.equal(batch.label.argmax(1, keepdim=True).float(), data["label"].as_tensor())
    assert bool((batch.label.sum(1) == 1).all())


def test_class_of_the_centre_and_margin() -> None:
    data, prepared = first(margin=(2, 1, 0))
    batch = prepared.batch
    middle = tuple(n // 2 for n in SIZE)
    assert batch.classes is not None
    assert batch.classes.tolist() == data["label"][(slice(None), 0, *middle)].long().tolist()
    assert batch.image.shape[2:] == SIZE
    assert batch.cropped().image.shape[2:] == (8, 6, 10)
    assert torch.equal(batch.target, data["label"].as_tensor()[:, :, 2:-2, 1:-1])


def test_margin_is_cut_off_for_the_plain_step() -> None:
    _, prepared = first(soft=False, margin=(2, 1, 0))
    assert prepared.inputs.shape[2:] == prepared.targets.shape[2:] == prepared.batch.image.shape[2:] == (8, 6, 10)
    assert not any(prepared.batch.margin)


@pytest.mark.parametrize("form", ["index", "bare_index", "channels"])
def test_every_form_of_labels(form: str) -> None:
    index = torch.randint(3, (2, *SIZE))
    one_hot = nn.functional.one_hot(index, 3).movedim(-1, 1).float()
    label = {"index": index[:, None], "bare_index": index, "channels": one_hot}[form]
    convert = converter()
    batch = convert({"image": torch.randn(2, 1, *SIZE), "label": label}).batch
    assert convert.form == form
    assert torch.equal(batch.label, one_hot)
    assert batch.target is label


def test_regions_keep_their_channels() -> None:
    label = torch.zeros(1, 2, *SIZE)
    label[:, 0] = 1
    label[:, 1, :, :, 5:] = 1
    batch = converter(regions=True, num_classes=2)({"image": torch.randn(1, 1, *SIZE), "label": label}).batch
    assert torch.equal(batch.label, label)
    assert batch.classes is not None
    assert batch.classes.tolist() == [2]


def test_unknown_voxels_are_marked() -> None:
    label = torch.randint(3, (2, 1, *SIZE)).float()
    label[0, 0, :3] = 255
    loss = DiceLoss(to_onehot_y=True, softmax=True, ignore_index=255)
    batch = converter(loss_function=loss)({"image": torch.randn(2, 1, *SIZE), "label": label}).batch
    assert batch.valid is not None
    assert torch.equal(batch.valid, (label != 255).float())
    assert torch.equal(batch.label.sum(1, keepdim=True), batch.valid)


@pytest.mark.parametrize("method", ["none", "random", "adversarial"])
def test_regions_of_a_users_loader_may_be_unknown(method: str) -> None:
    """Channels that hold the ignored value count for nothing, and move with the image."""
    label = (torch.rand(4, 2, *SIZE) > 0.5).float()
    label[:, :, 6:] = IGNORED
    outside = torch.zeros(4, 2, *SIZE, dtype=torch.bool)
    outside[:, :, 6:] = True
    net = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="instance")
    engine = trainer(method, network=net, data=[{"image": torch.randn(4, 1, *SIZE), "label": label}],
                     loss_function=SegmentationLoss(regions=True, ignore=True),
                     real_data_loader=[{"image": torch.randn(4, 1, *SIZE), "label": label}])  # fmt: skip
    seen: list[Tensor] = []
    engine.add_event_handler(IterationEvents.LOSS_COMPLETED, lambda e: seen.append(e.state.output["label"]))
    rows = record(engine)
    engine.run()
    assert engine.task.regions
    assert np.isfinite(rows[0]["loss"])
    assert bool((seen[0] == IGNORED).any())
    assert bool((seen[0] != IGNORED).any())
    if method == "none":
        assert torch.equal(seen[0] == IGNORED, outside)


def test_a_loss_on_channels_that_can_leave_nothing_out_is_refused() -> None:
    label = torch.full((4, 2, *SIZE), 255.0)
    label[:, :, :6] = 1
    data = [{"image": torch.randn(4, 1, *SIZE), "label": label}]
    net = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="instance")
    engine = trainer("random", network=net, data=data, loss_function=DiceLoss(sigmoid=True, ignore_index=255))
    with pytest.raises(ConfigError, match=r"SegmentationLoss\(regions=True, ignore=True\)"):
        engine.run()


def test_label_outside_the_classes_names_the_case() -> None:
    data = next(iter(loader(shuffle=False)))
    with pytest.raises(DataError, match="case_0, case_1.*expected 0 to 1, came 2"):
        converter(num_classes=2)(data)


def test_counting_classes_changes_nothing() -> None:
    net = UNet(3, 1, 4, channels=(4, 8), strides=(2,), norm="batch", dropout=0.5).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    image = torch.randn(2, 1, 8, 8, 8)
    state = torch.get_rng_state()
    assert count_classes(net, image, 3) == 4
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in net.modules())


def test_own_loader_with_unknown_voxels_needs_a_loss_that_leaves_them_out() -> None:
    cases = [i | {"label": torch.where(i["image"] > 1.5, 9, i["label"])} for i in items()]
    batches = PatchBatches(cases, patch_size=(8, 8, 8), batch_size=4, seed=0, num_classes=3, length=9, ignore_label=9)
    with pytest.raises(ConfigError, match="DiceCELoss can't leave voxels out"):
        trainer("none", data=patch_loader(batches), epoch_length=2).run()
    able = DiceLoss(to_onehot_y=True, softmax=True, ignore_index=255)
    for method in ("none", "random"):
        engine = trainer(method, data=patch_loader(batches), epoch_length=2, loss_function=able)
        rows = record(engine)
        engine.run()
        assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("method", ["none", "random", "adversarial"])
def test_slices_of_the_own_loader_with_margin(method: str) -> None:
    """Nothing in the host takes three axes for granted; images, labels and what the method adds have two."""
    cases = [{"image": i["image"][..., 4], "label": i["label"][..., 4], "case": str(n)} for n, i in enumerate(items())]
    batches = PatchBatches(cases, patch_size=(8, 8), batch_size=4, seed=1, num_classes=3, length=9, margin=2)
    net = UNet(2, 1, 3, channels=(4, 8), strides=(2,), norm="instance")
    engine = trainer(method, network=net, data=patch_loader(batches), margin=2, epoch_length=3)
    rows = record(engine)
    engine.run()
    assert engine.state.batch.margin == (2, 2)
    assert engine.state.output[0]["pred"].shape == (3, 8, 8)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert np.isfinite(list(engine.state.metrics.values())).all()
    assert ("discriminator_accuracy" in rows[0]) == (method == "adversarial")


@pytest.mark.parametrize("dims", [2, 3])
def test_regions_in_two_and_three_dimensions(dims: int) -> None:
    size = (16, 12, 8)[:dims]
    net = UNet(dims, 2, 2, channels=(4, 8), strides=(2,), norm="instance")
    label = (torch.rand(4, 2, *size) > 0.5).float()
    data = [{"image": torch.randn(4, 2, *size), "label": label}]
    engine = trainer("random", network=net, data=data, loss_function=DiceCELoss(sigmoid=True))
    rows = record(engine)
    engine.run()
    assert engine.task.regions
    assert engine.task.spatial_dims == dims
    assert np.isfinite(rows[0]["loss"])
    logits = torch.tensor([[0.0, 3.0]]).view(1, 2, *[1] * dims)
    torch.testing.assert_close(engine.task.probabilities(logits), logits.sigmoid())


class Unstacked(nn.Module):
    """A loss on DynUNet's stacked levels, as its users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return sum(0.5**n * self.loss(level, target) for n, level in enumerate(output.unbind(1)))  # type: ignore[return-value]


def test_stacked_deep_supervision_of_dynunet() -> None:
    net = DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], deep_supervision=True, deep_supr_num=1)
    data = [{"image": torch.randn(4, 1, 8, 8, 8), "label": torch.randint(3, (4, 1, 8, 8, 8)).float()}]
    engine = trainer("random", network=net, data=data, loss_function=Unstacked())
    rows = record(engine)
    engine.run()
    assert np.isfinite(rows[0]["loss"])
    assert engine.task.probabilities(torch.zeros(1, 2, 3, 4, 4, 4)).shape == (1, 3, 4, 4, 4)


@pytest.mark.parametrize("options", [{}, {"margin": (2, 1, 0)}])
def test_class_indices_stay_values_for_those_who_want_them(options: dict[str, Any]) -> None:
    data = next(iter(loader(shuffle=False)))
    channels, values = converter(**options)(data), converter(**options)(data, values=True)
    assert (channels.batch.heads, values.batch.heads) == (0, 3)
    assert torch.equal(values.batch.with_channels().label, channels.batch.label)
    assert values.batch.classes is not None
    assert channels.batch.classes is not None
    assert torch.equal(values.batch.classes, channels.batch.classes)
    unknown = data | {"label": data["label"].clone()}
    unknown["label"][:, :, 0] = IGNORED
    ignoring = converter(loss_function=SegmentationLoss(ignore=True))(unknown, values=True)
    assert ignoring.batch.heads == 0  # what is unknown has no value
    assert ignoring.batch.valid is not None
