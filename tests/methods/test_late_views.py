# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views that are learned after training: once, again after a kill with the same result, and for this network alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import Fixed, losses
from torch import nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.precision import Precision

AFTER = 4


class Streams(Fixed):
    """Meta-validation patches are others each time."""

    def __init__(self) -> None:
        super().__init__(shape=(8, 8, 8))
        self.batches.pop("real")
        self.number = 0

    def next(self, stream: str) -> Batch:
        batch = super().next("train")
        if stream == "train":
            return batch
        self.asked[-1] = stream
        self.number += 1
        noise = torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(self.number))
        return replace(batch, image=batch.image + noise)


class Host:
    """A training of a few steps with dropout and batch norm, whose method hears what it says."""

    def __init__(self, steps: int = 3, **options: Any) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout3d(0.5), nn.ReLU(), nn.Conv3d(4, 3, 1)
        )
        self.told: list[tuple[int, int]] = []
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)
        self.task = Task(self.network, self.optimizer, losses, Precision("cpu"), steps=steps, listener=self.hear)
        settings: dict[str, Any] = {"learn_training": False, "views": 3, "views_after": AFTER} | options
        self.method, self.streams = JointPolicy(self.task, **settings), Streams()

    def hear(self, event: str, values: Mapping[str, Any]) -> None:
        if event == "finish":
            self.told.append((values["done"], values["total"]))

    def train(self, steps: int = 3) -> None:
        for _ in range(steps):
            self.method.step(self.streams)

    def state(self) -> dict[str, Any]:
        """What a host's checkpoint holds."""
        return deepcopy({"network": self.network.state_dict(), "method": self.method.state_dict(),
                         "number": self.streams.number})  # fmt: skip

    def resume(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(deepcopy(state["method"]))
        self.streams.number = state["number"]

    @property
    def logits(self) -> torch.Tensor:
        assert self.method.test_time is not None
        return self.method.test_time.logits.detach().clone()


def test_the_network_is_trained_first_and_then_left_alone() -> None:
    host = Host()
    start = host.logits
    host.train()
    assert host.streams.asked == ["train"] * 3
    assert torch.equal(host.logits, start)
    before = host.state()["network"]
    figures = host.method.finish(host.streams)
    assert host.streams.asked[3:] == ["meta"] * AFTER
    assert {"view_loss", "identity_loss", "views_gain"} == set(figures)
    assert not torch.equal(host.logits, start)
    assert all(torch.equal(v, before[k]) for k, v in host.network.state_dict().items())  # statistics, too
    assert host.network.training
    assert all(p.grad is None or not p.requires_grad for p in host.method.policies()["test_time"].parameters())
    assert host.told == [(k + 1, AFTER) for k in range(AFTER)]


@pytest.mark.parametrize("options", [{}, {"learn_training": True, "pool": 2}])
def test_killed_and_done_again(options: dict[str, Any]) -> None:
    """From what was saved after the last step, whatever the process drew until it was killed."""
    whole = Host(**options)
    whole.train()
    saved = whole.state()
    whole.method.finish(whole.streams)
    killed = Host(**options)
    killed.resume(saved)
    killed.method.finishing = 2  # ... of four updates
    killed.method.finish(killed.streams)
    again = Host(**options)
    again.resume(saved)
    figures = again.method.finish(again.streams)
    assert torch.equal(again.logits, whole.logits)
    assert len(figures) == 3
    assert not torch.equal(killed.logits, whole.logits)


def test_what_is_finished_is_not_finished_twice() -> None:
    host = Host()
    host.train()
    host.method.finish(host.streams)
    before = host.logits
    assert host.method.finish(host.streams) == {}
    resumed = Host()
    resumed.resume(host.state())
    assert resumed.method.finish(resumed.streams) == {}
    assert torch.equal(resumed.logits, before)
    assert resumed.told == []


def test_a_network_that_was_trained_on_gets_views_of_its_own() -> None:
    host = Host(steps=5)
    host.train()
    host.method.finish(host.streams)
    before = host.logits
    host.train(2)
    assert torch.equal(host.logits, before)
    whole = Host(steps=5)  # which nobody took for finished in between
    whole.train(5)
    whole.streams.number = host.streams.number
    assert all(torch.equal(v, whole.network.state_dict()[k]) for k, v in host.network.state_dict().items())
    for each in (host, whole):
        assert each.method.finish(each.streams)
    assert not torch.equal(host.logits, before)
    assert torch.equal(host.logits, whole.logits)


def test_the_learning_rate_goes_by_the_updates_and_falls() -> None:
    rates: list[float] = []
    host = Host(views_after=100)
    host.train()
    assert host.method.viewing is not None
    group = host.method.viewing.player.optimizer.param_groups[0]
    host.task.notify = lambda event, values: rates.append(group["lr"])  # type: ignore[method-assign,assignment]
    host.method.finishing = 3
    host.method.finish(host.streams)
    assert rates == pytest.approx([0.1, 0.1 * 0.99**0.9, 0.1 * 0.98**0.9])
    assert Host(views_after=100, learning_rate_test_time=0.3).method.late.rate == 0.3  # type: ignore[union-attr]


def test_users_are_told() -> None:
    assert any("after the last step, in 4 updates" in line for line in Host().method.announcement())
    assert any("updated 4 times only" in line for line in Host().method.warnings())
    assert not Host(views_after=60).method.warnings()
