# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two processes that train together: DistributedDataParallel as bundles use it, and a resumed run of two."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_helpers import items, loss, network, record, transforms
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, ValidationHandler
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from monai_autoaug import methods
from monai_autoaug.engines import AtomicCheckpointSaver, AutoAugTrainer, TrainingCheckpoint

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not part of this build of torch")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def train(folder: Path, method: str, epochs: int, resume: bool) -> dict[str, Any]:
    """What each rank does, as multi_gpu_train.json has it."""
    torch.manual_seed(100 * dist.get_rank() + resume)  # ranks start apart; wrapper and trainer bring them together
    net = DistributedDataParallel(methods.prepare(method, network()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    dataset = Dataset(items(16), transforms())
    data = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset))
    engine = AutoAugTrainer("cpu", epochs, data, net, optimizer, loss(), method=method)
    saved = {"model": net, "optimizer": optimizer, "autoaug": engine.autoaug_state, "trainer": engine}
    if resume:
        CheckpointLoader(str(folder / "checkpoint_epoch=1.pt"), saved).attach(engine)
    AtomicCheckpointSaver(str(folder), saved, save_interval=1).attach(engine)
    rows = record(engine)
    images: list[torch.Tensor] = []
    engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda e: images.append(e.state.batch["image"].as_tensor()))
    engine.run()
    players = {n: p.module.state_dict() for n, p in engine.method.players.items()}
    return {"network": net.module.state_dict(), "players": players, "rows": rows, "images": images}


def worker(rank: int, folder: Path, port: int, method: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {
        "whole": train(folder / "whole", method, 2, False),
        "first": train(folder / "parts", method, 1, False),
        "second": train(folder / "parts", method, 2, True),
    }
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_stay_together_and_resume(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, args=(tmp_path, free_port(), "adversarial"), nprocs=2)
    zero, one = (torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1))
    for run in zero:
        assert all(torch.equal(v, one[run]["network"][k]) for k, v in zero[run]["network"].items())
        for name, state in zero[run]["players"].items():
            assert all(torch.equal(v, one[run]["players"][name][k]) for k, v in state.items())
    assert not torch.equal(zero["whole"]["images"][0], one["whole"]["images"][0])  # each rank its own data
    for rank in (zero, one):
        assert rank["second"]["rows"] == rank["whole"]["rows"][-len(rank["second"]["rows"]) :]
        assert all(torch.equal(v, rank["whole"]["network"][k]) for k, v in rank["second"]["network"].items())


def shuffled(path: Path, epochs: int, resume: bool) -> list[float]:
    """What each rank sees in its last epoch, where its order comes from torch's global random state."""
    torch.manual_seed(100 + dist.get_rank())
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    evaluator = SupervisedEvaluator("cpu", DataLoader(Dataset(items(2)), batch_size=1), net)
    handlers = [
        ValidationHandler(1, evaluator),  # each of its loader's iterators draws a number
        TrainingCheckpoint(path, {"model": net, "optimizer": optimizer}, resume=resume),
    ]
    engine = AutoAugTrainer(
        "cpu", epochs, DataLoader(Dataset(items(8)), batch_size=2, shuffle=True), net, optimizer, loss(),
        method="none", train_handlers=handlers,
    )  # fmt: skip
    seen: list[float] = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.clear())
    engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda e: seen.append(float(e.state.batch["image"].sum())))
    engine.run()
    return seen


def shuffling_worker(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    whole = shuffled(folder / "whole.pt", 2, False)
    shuffled(folder / "part.pt", 1, False)
    dist.barrier()  # rank 0 has written
    (folder / f"rank{rank}.json").write_text(json.dumps([whole, shuffled(folder / "part.pt", 2, True)]))
    dist.destroy_process_group()


def test_random_numbers_drawn_by_validation_are_not_drawn_again(tmp_path: Path) -> None:
    """The states of all ranks are those after validation, not only those of the one that writes."""
    multiprocessing.spawn(shuffling_worker, args=(tmp_path, free_port()), nprocs=2)
    for rank in (0, 1):
        whole, resumed = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert len(whole) == 4
        assert resumed == whole, rank
