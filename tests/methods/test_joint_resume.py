# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training with policies that goes on from a checkpoint is the one that never stopped."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import unet
from test_joint_policy import Streams, build

from monai_autoaug.errors import CheckpointError
from monai_autoaug.optim import LazyAdam


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """Network, policies, what waits in the pool, and random numbers."""
    streams, options = Streams(shape=(16, 16, 16)), {"pool": 5, "update_every": 2}
    whole = build(steps=8, **options)
    for _ in range(8):
        whole.step(streams)
    half = build(steps=8, **options)
    for _ in range(4):
        half.step(streams)
    half.on_epoch(1)
    rest = build(steps=8, **options)
    rest.task.network.load_state_dict(half.task.network.state_dict())
    rest.task.optimizer.load_state_dict(deepcopy(half.task.optimizer.state_dict()))
    rest.load_state_dict(deepcopy(half.state_dict()))
    half.on_epoch(1)
    for _ in range(4):
        rest.step(streams)
    assert whole.updates == rest.updates == 4
    assert torch.equal(whole.training.logits, rest.training.logits)
    assert whole.test_time is not None
    assert rest.test_time is not None
    assert torch.equal(whole.test_time.logits, rest.test_time.logits)
    for a, b in zip(whole.task.network.parameters(), rest.task.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("learn", [True, False])
def test_a_run_that_is_resumed_within_an_epoch(learn: bool, tmp_path: Path) -> None:
    """What the guard of the views judges at the epoch's end, and the epoch's figures, come from before it, too."""
    options: dict[str, Any] = {"update_every": 3, "learn_test_time": learn, "meta_batch": 6, "steps": 8}
    streams = Streams(size=6, shape=(16, 16, 16), margin=(2, 2, 2), everything=True)
    whole = build(unet(channels=2), **options)
    for _ in range(5):
        whole.step(streams)
    torch.save(whole.state_dict(), tmp_path / "method.pt")
    rest = build(unet(channels=2), **options)
    rest.task.network.load_state_dict(whole.task.network.state_dict())
    rest.task.optimizer.load_state_dict(deepcopy(whole.task.optimizer.state_dict()))
    rest.load_state_dict(torch.load(tmp_path / "method.pt", weights_only=True))
    figures = []
    for method in (whole, rest):
        figures.append([method.on_epoch(1)])
        for _ in range(3):
            method.step(streams)
        figures[-1].append(method.on_epoch(2))
    assert "views_gain" in figures[0][0]
    assert figures[0] == figures[1]
    for a, b in zip(whole.policies().values(), rest.policies().values(), strict=True):
        assert torch.equal(a.logits, b.logits)  # type: ignore[arg-type]
    for p, q in zip(whole.task.network.parameters(), rest.task.network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_older_checkpoints_load() -> None:
    """Before, they were written where an epoch ends only, and had but the number of harmful epochs."""
    state = build().state_dict()
    del state["viewing"], state["epoch"]
    method = build()
    method.load_state_dict(state | {"harm": 3})
    assert method.viewing is not None
    assert method.viewing.harm == 3
    assert method.viewing.gain() is None


def test_checkpoints_of_other_policies_are_refused() -> None:
    """Other classes, operations or learners than those of the run."""
    state = build().state_dict()
    for options in ({"classes": "all"}, {"without": ["gamma"]}, {"test_time": False}, {"learn_training": False}):
        with pytest.raises(CheckpointError, match="is of other policies"):
            build(**options).load_state_dict(state)  # type: ignore[arg-type]


def test_a_checkpoint_loads_onto_another_device() -> None:
    """Moments and counts of the logits' optimiser go where its parameters are."""
    source = torch.nn.Parameter(torch.zeros(3))
    optimizer = LazyAdam([source], 0.1)
    source.grad = torch.ones(3)
    optimizer.step()
    elsewhere = torch.nn.Parameter(torch.zeros(3, device="meta"))
    resumed = LazyAdam([elsewhere], 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert {t.device.type for t in resumed.state[elsewhere].values()} == {"meta"}
