# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The stream of meta-validation batches: asked for by name, in order, resumed; what a policy is told of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import items, loader, loss, network, record, trainer
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandFlipd, RandSpatialCropd
from torch.utils.data import DistributedSampler

from monai_autoaug.data import EpochCases, MetaSplit, PatchBatches
from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.engines import AutoAugTrainer, TrainingCheckpoint
from monai_autoaug.engines.side_streams import SideStream
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.none import NoAugmentation

OPTIONS: dict[str, Any] = {"warm_up": 0, "update_every": 1, "views": 3, "pool": 2, "meta_batch": 4}


def patches(stream: str = "train", **options: Any) -> PatchBatches:
    given: dict[str, Any] = {"patch_size": (8, 8, 8), "batch_size": 4, "seed": 7, "num_classes": 3, "length": 12}
    return PatchBatches([i | {"case": str(n)} for n, i in enumerate(items())], **(given | {"stream": stream} | options))


def by_epoch(held: int) -> EpochCases[int]:
    return EpochCases(MetaSplit(tuple(range(5)), held, seed=7, resampled=True), length=3, part="meta")


def joint(meta: Any, **options: Any) -> AutoAugTrainer:
    given: dict[str, Any] = {"data": patch_loader(patches()), "epoch_length": 3, "max_epochs": 4} | options
    return trainer("joint_policy", OPTIONS | given.pop("method_options", {}), meta_data_loader=meta, **given)


def test_a_method_that_needs_it_gets_it_or_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method 'joint_policy' needs meta-validation batches.*as meta_data_loader"):
        joint(None)

    class Videos(NoAugmentation):
        name: ClassVar[str] = "videos"
        needs: ClassVar[tuple[str, ...]] = ("train", "video")

    net = network()
    with pytest.raises(ConfigError, match="'videos' needs batches of 'video', which this engine doesn't have"):
        AutoAugTrainer("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(), method=Videos)
    engine = trainer("none", meta_data_loader=[])  # others leave it alone
    engine.run()
    with pytest.raises(ConfigError, match="there is no stream 'meta'"):
        engine.batches.next("meta")


def test_a_policy_is_told_what_there_is_to_know_of_a_run() -> None:
    task = joint(patch_loader(patches("meta")), label_names=("background", "a", "b")).task
    assert (task.steps, task.patch_size, task.label_names) == (12, (8, 8, 8), ("background", "a", "b"))
    assert isinstance(joint(patch_loader(patches("meta"))).method, JointPolicy)
    task = trainer("none", data=loader(batch_size=1), accumulation_steps=2, max_epochs=3, patch_size=[4, 4, 4]).task
    assert (task.steps, task.patch_size, task.label_names) == (3 * 3, (4, 4, 4), ())  # 2 + 2 + 1 batches an epoch
    names = joint(
        patch_loader(patches("meta")), label_names=("background", "a", "b"), method_options={"classes": "labels"}
    ).method.policies()["training"].classes
    assert names == ("background", "a", "b")


def numbers(engine: AutoAugTrainer, stream: PatchBatches) -> list[int]:
    """Which batches of the stream are taken, while the engine runs."""
    taken: list[int] = []
    draw = engine.batches._side

    def note(name: str) -> Any:
        batch = draw(name)
        taken.append(next(n for n in range(len(stream)) if torch.equal(stream[n].image, batch.image)))
        return batch

    engine.batches._side = note
    return taken


def test_batches_come_in_order_and_only_when_they_are_asked_for() -> None:
    stream = patches("meta")
    engine = joint(patch_loader(stream), max_epochs=2, method_options={"update_every": 2})
    taken = numbers(engine, stream)
    engine.run()
    assert taken == [0, 1, 2]


def test_cases_by_epoch_go_with_the_epoch() -> None:
    """Not with the number of batches that were taken before."""
    stream = patches("meta", cases=by_epoch(1))
    engine = joint(patch_loader(stream), method_options={"update_every": 2})
    taken = numbers(engine, stream)
    engine.run()
    assert taken == [0, 1, 3, 6, 7, 9]  # updates 0, 2 | 4 | 6, 8 | 10 in epochs of three


def random_transforms() -> DataLoader:
    """MONAI's own loader, with random transforms that live on in this process."""
    keys = ["image", "label"]
    transform = Compose([RandSpatialCropd(keys, (8, 8, 8)), RandFlipd(keys, prob=0.5)])
    return DataLoader(Dataset(items(), transform), batch_size=4, shuffle=True)


STREAMS = {
    "patches": lambda: patch_loader(patches("meta")),
    "by_epoch": lambda: patch_loader(patches("meta", cases=by_epoch(2))),
    "monai": random_transforms,
}


def whole_run(path: Path, kind: str, stop: int | None = None, resume: bool = False) -> tuple[list[Any], AutoAugTrainer]:
    torch.manual_seed(99 if resume else 0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True)
    saved = TrainingCheckpoint(path, {"model": net, "optimizer": optimizer}, resume=resume)
    engine = joint(STREAMS[kind](), network=net, optimizer=optimizer, train_handlers=[saved])
    if stop is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda: engine.terminate())
    rows = record(engine)
    engine.run()
    return rows, engine


@pytest.mark.parametrize("kind", STREAMS)
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    rows, whole = whole_run(tmp_path / "whole.pt", kind)
    whole_run(tmp_path / "parts.pt", kind, stop=2)
    after, resumed = whole_run(tmp_path / "parts.pt", kind, resume=True)
    assert len(after) == 6
    assert after == rows[6:]
    assert {"meta_loss", "view_loss"} <= set(rows[0])
    for name, policy in whole.method.policies().items():
        assert torch.equal(policy.logits, resumed.method.policies()[name].logits)  # type: ignore[arg-type]
    for a, b in zip(whole.plain_network.parameters(), resumed.plain_network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_meta_patches_of_another_size_are_refused() -> None:
    """Views that keep one size would change another, in the middle of a training."""
    with pytest.raises(ConfigError, match=r"of \(12, 8, 10\) voxels, but training patches of \(8, 8, 8\)"):
        joint(loader(batch_size=4)).run()
    with pytest.raises(ConfigError, match=r"give patch_size=\(12, 8, 10\)"):
        joint(loader(batch_size=4), data=loader(batch_size=4)).run()
    joint(loader(batch_size=4), data=loader(batch_size=4), patch_size=(12, 8, 10), max_epochs=1).run()


def test_a_checkpoint_of_the_time_before_meta_streams_is_read() -> None:
    engine = trainer("adversarial", max_epochs=1)
    engine.run()
    state = engine.autoaug_state.state_dict()
    older = {k: v for k, v in state.items() if k != "streams"} | {"version": 1, "real": {"taken": 7}}
    engine.autoaug_state.load_state_dict(older)
    assert engine.streams["real"].taken == 7


def test_a_distributed_sampler_of_a_given_loader_hears_of_the_epoch() -> None:
    dataset = Dataset(list(range(8)))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0, shuffle=True)
    stream = SideStream(DataLoader(dataset, batch_size=4, sampler=sampler), list, seed=0, own=False, name="meta")

    def epoch(number: int) -> list[Any]:
        stream.start_epoch(number)
        return [int(x) for x in stream.next()]  # type: ignore[attr-defined]

    first = [epoch(e) for e in range(1, 5)]
    assert len({tuple(x) for x in first}) > 1
    assert epoch(2) == first[1]
