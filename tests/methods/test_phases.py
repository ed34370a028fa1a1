# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Phases of a training: their epochs, fresh networks, and checkpoints that know the phase."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_helpers import losses, unet
from torch import nn

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods import Batches, Method, Phase, Player, Task
from monai_autoaug.methods.phases import phase_at, schedule_epochs, spans
from monai_autoaug.networks import add_auxiliary_norms, auxiliary_state, norm_groups
from monai_autoaug.precision import Precision

THREE = (Phase("a", 1), Phase("b", 1), Phase("c", 2, fresh=True))


def test_epochs_are_shared_out_without_rest() -> None:
    assert spans(THREE, 8) == (range(2), range(2, 4), range(4, 8))
    assert spans(THREE, 3) == (range(1), range(1, 2), range(2, 3))
    assert [len(s) for s in spans((Phase("a", 0.001), Phase("b", 1)), 5)] == [1, 4]  # each has one at least
    assert [len(s) for s in spans((Phase("a", 1), Phase("b", 0.001)), 5)] == [4, 1]
    for epochs in range(3, 40):
        bounds = spans(THREE, epochs)
        assert [e for span in bounds for e in span] == list(range(epochs))
        assert [phase_at(THREE, epochs, e) for e in range(epochs)] == [k for k, s in enumerate(bounds) for _ in s]
    with pytest.raises(ConfigError, match=r"3 phases \(a, b, c\).*got 2 epochs"):
        spans(THREE, 2)
    with pytest.raises(ConfigError, match="share of the epochs above 0, got 0"):
        Phase("a", 0)


def test_a_schedule_goes_from_one_fresh_network_to_the_next() -> None:
    assert [schedule_epochs(THREE, 8, n) for n in range(3)] == [range(4), range(4), range(4, 8)]


class TwoPhases(Method):
    """Has another player in each phase."""

    name: ClassVar[str] = "two"
    phases = (Phase("first"), Phase("second", fresh=True))

    def __init__(self, task: Task, *, seed: int = 0) -> None:
        super().__init__(task, seed=seed)
        self.calls: list[str] = []
        self.players["one"] = self.player(1.0)

    def player(self, value: float) -> Player:
        module = nn.ParameterList([nn.Parameter(torch.tensor(value))])
        return Player(module, torch.optim.SGD(module.parameters(), 0.1, momentum=0.9))

    def on_phase(self) -> None:
        self.calls.append(self.phase.name)
        self.players = {"two": self.player(2.0)}

    def step(self, batches: Batches) -> dict[str, float]:
        (parameters,) = [list(p.module.parameters()) for p in self.players.values()]
        output = self.task.forward(torch.ones(2, 1, 8, 8, 8)) * parameters[0]
        self.descend(output.square().mean())
        return {}


def build() -> nn.Module:
    return add_auxiliary_norms(unet("BATCH"))


def task(**options: Any) -> Task:
    torch.manual_seed(1)
    network = build()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return Task(network, optimizer, losses, Precision("cpu"), **({"build": build} | options))


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()} | auxiliary_state(network)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_fresh_network_is_the_seeded_one_of_the_builder_and_the_optimiser_forgets() -> None:
    """Spec check 19: it differs from what was trained, and equals the seeded fresh one; objects stay the same."""
    mine = task()
    kept = [id(p) for p in mine.network.parameters()]
    with norm_groups(mine.network, torch.tensor([0, 1])):
        mine.network(torch.randn(2, 1, 8, 8, 8)).sum().backward()
    mine.optimizer.step()
    mine.optimizer.param_groups[0]["lr"] = 0.001
    trained, numbers = state(mine.network), torch.get_rng_state()
    mine.fresh(5)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not same(state(mine.network), trained)
    torch.manual_seed(5)
    assert same(state(mine.network), state(build()))
    assert [id(p) for p in mine.network.parameters()] == kept
    assert not mine.optimizer.state
    assert mine.optimizer.param_groups[0]["lr"] == 0.1
    before = state(mine.network)
    mine.fresh(6)
    assert not same(state(mine.network), before)


def test_fresh_is_refused_where_nothing_or_another_network_is_built() -> None:
    with pytest.raises(ConfigError, match="the host can't build one"):
        task(build=None).fresh(0)
    with pytest.raises(ConfigError, match="makes another one than the one that trains"):
        task(build=lambda: unet("INSTANCE")).fresh(0)


def test_a_phase_begins_once_and_a_checkpoint_knows_it() -> None:
    one = TwoPhases(task())
    one.step(None)  # type: ignore[arg-type]  # it draws nothing
    first = one.state_dict()
    one.begin_phase(1)
    assert (one.phase.name, one.calls, one.phase_steps, one.steps) == ("second", ["second"], 0, 1)
    one.step(None)  # type: ignore[arg-type]
    assert (one.phase_steps, one.steps) == (1, 2)
    saved, network = one.state_dict(), state(one.task.network)

    two = TwoPhases(task())
    two.load_state_dict(saved)
    assert (two.phase.name, two.calls, two.phase_steps) == ("second", ["second"], 1)
    assert torch.equal(two.players["two"].module[0], one.players["two"].module[0])  # type: ignore[index]
    assert torch.equal(
        two.players["two"].optimizer.state_dict()["state"][0]["momentum_buffer"],
        one.players["two"].optimizer.state_dict()["state"][0]["momentum_buffer"],
    )
    assert not same(state(two.task.network), network)  # the network is the host's to load
    again = TwoPhases(task())
    again.load_state_dict(first)
    assert (again.phase_number, again.calls) == (0, [])


def test_a_checkpoint_of_other_phases_is_refused() -> None:
    method = TwoPhases(task())
    method.begin_phase(1)
    saved = method.state_dict()
    other = TwoPhases(task())
    other.phases = (Phase("first"), Phase("third"))
    with pytest.raises(CheckpointError, match="of phase 2, 'second'; this run's phases are first, third"):
        other.load_state_dict(saved)


def test_a_checkpoint_from_before_there_were_phases_is_of_the_first() -> None:
    method = TwoPhases(task())
    old = {k: v for k, v in method.state_dict().items() if not k.startswith("phase")}
    method.load_state_dict(old)
    assert method.phase.name == "first"
