# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Batches of this package's own loader go on where a run stopped; the second stream is independent and seeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_helpers import SIZE, items, record, trainer, transforms
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from torch.utils.data import DistributedSampler, TensorDataset, WeightedRandomSampler

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.loading import loader as patch_loader
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.side_streams import SideStream
from monai_autoaug.engines.streams import second_loader, starting_at
from monai_autoaug.errors import DataError


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


@pytest.mark.parametrize("workers", [0, 1])
def test_starting_within_a_range_that_is_repeated(workers: int) -> None:
    batches = patches(5)
    again = starting_at(patch_loader(batches, num_workers=workers), 7)
    for numbers in ([2, 3, 4], [0, 1, 2, 3, 4]):
        found = list(again)
        assert len(found) == len(numbers)
        assert all(torch.equal(f.image, batches[n].image) for f, n in zip(found, numbers, strict=True))


def test_second_stream_is_independent_and_seeded() -> None:
    data = DataLoader(TensorDataset(torch.arange(40)), batch_size=4, shuffle=True)

    def orders(seed: int, epoch: int) -> list[list[int]]:
        stream = SideStream(second_loader(data, seed), lambda x: x[0].tolist(), seed=seed)
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
    stream = SideStream(second_loader(DataLoader(dataset, 2, sampler=made), 0), lambda x: x[0].tolist(), seed=0)
    taken = sum((stream.next() for _ in range(8)), [])
    assert len(set(taken)) <= 8
    assert set(taken) <= {4, 5, 6, 7} if sampler == "weighted" else True
    assert made.shuffle is False if sampler == "distributed" else made.generator is None


def test_second_stream_of_patches_has_a_stream_of_its_own() -> None:
    batches = patches()
    stream = SideStream(second_loader(patch_loader(batches), 0), lambda b: b, seed=0)
    one = stream.next()
    assert not torch.equal(one.image, batches[0].image)
    stream.start_epoch(2)
    two = stream.next()
    again = SideStream(second_loader(patch_loader(batches), 0), lambda b: b, seed=0)
    again.load_state_dict({"taken": 1})
    assert torch.equal(again.next().image, two.image)
    assert again.state_dict() == {"taken": 2}


def test_second_loader_of_a_tiny_data_set_still_gives_batches() -> None:
    data = DataLoader(CacheDataset(items(2), transforms(), progress=False), batch_size=4)
    assert len(list(second_loader(data, 0))) == 1


def test_empty_real_loader_is_an_error() -> None:
    with pytest.raises(DataError, match="empty"):
        SideStream([], lambda x: x, seed=0).next()


def test_users_own_real_loader_is_used() -> None:
    marked = [{"image": torch.full((4, 1, *SIZE), 7.0), "label": torch.zeros(4, 1, *SIZE)}]
    engine = trainer(real_data_loader=marked)
    seen: list[Batch] = []
    draw = engine.batches._side
    engine.batches._side = lambda name: seen.append(draw(name)) or seen[-1]
    engine.run()
    assert seen
    assert all(bool((b.image == 7).all()) for b in seen)


def test_plain_method_never_draws_the_second_stream() -> None:
    engine = trainer("none")
    drawn: list[str] = []
    engine.batches._side = drawn.append
    engine.run()
    assert engine.state.iteration > 0
    assert not drawn
