# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a method gets to see of a MONAI batch, and where its second stream comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import SIZE, items, loader, record, trainer, transforms
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.engines.utils import IterationEvents
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, TensorDataset, WeightedRandomSampler

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.batches import Converter, Prepared, count_classes
from monai_autoaug.engines.segmentation import IGNORED, SegmentationLoss
from monai_autoaug.engines.streams import RealStream, second_loader, starting_at
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


def patches(length: int = 20, **options: Any) -> PatchBatches:
    given: dict[str, Any] = {"patch_size": (8, 8, 8), "batch_size": 4, "seed": 7, "num_classes": 3, "length": length}
    return PatchBatches([i | {"case": str(n)} for n, i in enumerate(items())], **(given | options))


@pytest.mark.parametrize("method", ["none", "adversarial"])
def test_own_loader_with_margin_trains(method: str) -> None:
    engine = trainer(method, data=patch_loader(patches(margin=2)), epoch_length=3, max_epochs=2)
    rows = record(engine)
    engine.run()
    assert len(rows) == 6
    assert engine.state.batch.image.shape[2:] == (12, 12, 12)


def test_own_loader_goes_on_where_a_run_stopped() -> None:
    batches = patches()
    numbers: list[int] = []

    def note(engine: Any) -> None:
        numbers.append(next(n for n in range(20) if torch.equal(batches[n].image, engine.state.batch.image)))

    engine = trainer("none", data=patch_loader(batches), epoch_length=3)
    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    engine.run()
    engine.state.max_epochs = 3
    engine.run()
    assert numbers == list(range(9))


def test_starting_within_a_range_that_is_repeated() -> None:
    again = starting_at(patch_loader(patches(5)), 7)
    assert [len(list(again)), len(list(again))] == [3, 5]


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


def test_second_stream_is_independent_and_seeded() -> None:
    data = DataLoader(TensorDataset(torch.arange(40)), batch_size=4, shuffle=True)

    def orders(seed: int, epoch: int) -> list[list[int]]:
        stream = RealStream(second_loader(data, seed), lambda x: x[0].tolist(), seed=seed)
        stream.start_epoch(epoch)
        return [stream.next() for _ in range(12)]

    assert orders(0, 1) == orders(0, 1)
    assert orders(0, 1) != orders(0, 2)
    assert orders(0, 1) != orders(1, 1)
    assert sorted(sum(orders(0, 1)[:10], [])) == list(range(40))
    state = torch.get_rng_state()
    orders(0, 3)
    assert torch.equal(state, torch.get_rng_state())  # the first stream's random numbers are left alone


@pytest.mark.parametrize("sampler", ["weighted", "distributed"])
def test_second_stream_copies_the_sampler(sampler: str) -> None:
    dataset = TensorDataset(torch.arange(8))
    made: Any = {
        "weighted": WeightedRandomSampler([0.0] * 4 + [1.0] * 4, 8),
        "distributed": DistributedSampler(dataset, num_replicas=2, rank=1, shuffle=False),
    }[sampler]
    stream = RealStream(second_loader(DataLoader(dataset, 2, sampler=made), 0), lambda x: x[0].tolist(), seed=0)
    taken = sum((stream.next() for _ in range(8)), [])
    assert len(set(taken)) <= 8
    assert set(taken) <= {4, 5, 6, 7} if sampler == "weighted" else True
    assert made.shuffle is False if sampler == "distributed" else made.generator is None


def test_second_stream_of_patches_has_a_stream_of_its_own() -> None:
    batches = patches()
    stream = RealStream(second_loader(patch_loader(batches), 0), lambda b: b, seed=0)
    one = stream.next()
    assert not torch.equal(one.image, batches[0].image)
    stream.start_epoch(2)
    two = stream.next()
    again = RealStream(second_loader(patch_loader(batches), 0), lambda b: b, seed=0)
    again.load_state_dict({"taken": 1})
    assert torch.equal(again.next().image, two.image)
    assert again.state_dict() == {"taken": 2}


def test_second_loader_of_a_tiny_data_set_still_gives_batches() -> None:
    data = DataLoader(CacheDataset(items(2), transforms(), progress=False), batch_size=4)
    assert len(list(second_loader(data, 0))) == 1


def test_empty_real_loader_is_an_error() -> None:
    with pytest.raises(DataError, match="empty"):
        RealStream([], lambda x: x, seed=0).next()


def test_users_own_real_loader_is_used() -> None:
    marked = [{"image": torch.full((4, 1, *SIZE), 7.0), "label": torch.zeros(4, 1, *SIZE)}]
    engine = trainer(real_data_loader=marked)
    seen: list[Batch] = []
    draw = engine.batches._real
    engine.batches._real = lambda: seen.append(draw()) or seen[-1]
    engine.run()
    assert seen
    assert all(bool((b.image == 7).all()) for b in seen)


def test_plain_method_never_draws_the_second_stream() -> None:
    engine = trainer("none")
    engine.batches._real = lambda: pytest.fail("drawn")
    engine.run()


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
