# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two ranks train one set of networks: equal after every update, with noise of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.precision import Precision


def losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    return -(label * output.float().log_softmax(1)).sum(1).flatten(1).mean(1)


class OwnBatches:
    """Every rank has other patches."""

    def __init__(self, number: int) -> None:
        self.generator = torch.Generator().manual_seed(number)

    def next(self, stream: str) -> Batch:
        image = torch.randn(4, 1, 16, 16, 16, generator=self.generator)
        label = nn.functional.one_hot((image[:, 0] > 0).long(), 3).movedim(-1, 1).float()
        return Batch(image, label, case=("",) * 4)


OPTIONS: dict[str, dict[str, Any]] = {
    "adversarial": {"warm_up": 0}, "general_adversarial": {"width": 2}, "bilevel": {"update_every": 2},
    "task_driven": {"width": 4, "warm_up": 1},
    "joint_policy": {"warm_up": 0, "update_every": 1, "pool": 2, "views": 2},
}  # fmt: skip
# with batch norms, of which each rank sees samples of its own
PAPER: dict[str, dict[str, Any]] = {
    "adversarial": {"warm_up": 0, "width": 4, "noise_size": 4}, "task_driven": {"width": 4, "warm_up": 1},
    "general_adversarial": {"width": 2, "width_discriminator": 2, "noise_size": 4},
}  # fmt: skip
PLAYERS = {
    "adversarial": {"generators", "discriminator"},
    "general_adversarial": {"generator", "class_discriminator", "dissimilarity_discriminator"},
    "bilevel": {"augmenter"},
    "task_driven": {"generator", "discriminator"},
    "joint_policy": set(),
}


def built() -> nn.Module:
    return methods.prepare("adversarial", UNet(3, 1, 3, (4, 8), (2,), num_res_units=1))


def _train(number: int, folder: str, name: str, paper: bool = False) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    torch.manual_seed(0)
    adversarial = name == "adversarial"
    network = built() if adversarial else UNet(3, 1, 3, (4, 8), (2,), num_res_units=1)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    task = Task(network, optimizer, losses, Precision("cpu"), steps=20, build=built)
    options = {**PAPER[name], "fidelity": "paper"} if paper else OPTIONS[name]
    method = methods.build(name, task, seed=3, **options)
    batches, history = OwnBatches(number), []
    learned: dict[str, nn.Module] = {n: p.module for n, p in method.players.items()} | dict(method.policies())
    for _ in range(3):
        method.step(batches)
        history.append({f"{n}.{k}": v.clone() for n, m in learned.items() for k, v in m.state_dict().items()})
    content: dict[str, Any] = {
        "network": {k: v.clone() for k, v in network.state_dict().items()},
        "method": method.state_dict(),
    }
    if adversarial:
        task.fresh(number)  # even from seeds of their own, ranks begin with the same weights
    torch.save(content | {"fresh": network.state_dict(), "history": history}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


LONG = [pytest.param(n, marks=pytest.mark.long) for n in ("general_adversarial", "task_driven")]


def _equal_after_every_update(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> None:
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), key
    assert any(not torch.equal(v, first[0][k]) for k, v in first[-1].items())


@pytest.mark.parametrize("name", ["adversarial", "bilevel", "joint_policy", *LONG])
def test_two_ranks_stay_together(name: str, tmp_path: Path) -> None:
    """Whatever a method learns is the same on both after each update, weights and running statistics."""
    mp.spawn(_train, (str(tmp_path), name), nprocs=2)
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in range(2))
    assert not torch.equal(first["method"]["generator"], second["method"]["generator"])  # noise differs by rank
    _equal_after_every_update(first["history"], second["history"])
    pairs = [(first["network"], second["network"])]
    players = first["method"]["players"]
    pairs += [(players[n]["module"], second["method"]["players"][n]["module"]) for n in players]
    assert set(players) == PLAYERS[name]
    if name == "adversarial":
        pairs.append((first["method"]["auxiliary"], second["method"]["auxiliary"]))
        pairs.append((first["fresh"], second["fresh"]))
        assert not all(torch.equal(first["fresh"][k], first["network"][k]) for k in first["fresh"])
    for one, other in pairs:
        assert one
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), key
    if "balancer" in first["method"]:
        assert torch.equal(first["method"]["balancer"], second["method"]["balancer"])
    if name in ("bilevel", "task_driven"):  # where there is nothing to learn from, no optimiser makes a step
        player = "augmenter" if name == "bilevel" else "generator"
        made = {int(s["step"]) for s in players[player]["optimizer"]["state"].values()}
        assert made == {1 if name == "bilevel" else 2}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n == "task_driven" else pytest.mark.long) for n in PAPER
])  # fmt: skip
def test_running_statistics_of_players_are_shared(name: str, tmp_path: Path) -> None:
    """A checkpoint holds the players of one rank for all: they are the same after each step."""
    mp.spawn(_train, (str(tmp_path), name, True), nprocs=2)
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in range(2))
    _equal_after_every_update(first["history"], second["history"])
    means = [k for k in first["history"][0] if k.endswith("running_mean")]
    assert {k.split(".")[0] for k in means} >= PLAYERS[name] - {"class_discriminator", "dissimilarity_discriminator"}
    assert any(not torch.equal(first["history"][-1][k], first["history"][0][k]) for k in means)
