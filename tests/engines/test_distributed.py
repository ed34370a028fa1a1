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
from monai_autoaug.data import PatchBatches, loader
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


def learn_policies(folder: Path, epochs: int, *, stop: int | None = None, resume: bool = False) -> dict[str, Any]:
    """What each rank does with a stream of meta-validation patches of its own."""
    torch.manual_seed(100 * dist.get_rank() + resume)
    net = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    given: dict[str, Any] = {"patch_size": (8, 8, 8), "seed": 1, "num_classes": 3, "length": 9}
    given |= {"batch_size": 4, "rank": dist.get_rank()}
    train, meta = (PatchBatches(items(), stream=stream, **given) for stream in ("train", "meta"))
    handler = TrainingCheckpoint(folder / "checkpoint.pt", {"model": net, "optimizer": optimizer}, resume=resume)
    engine = AutoAugTrainer(
        "cpu", epochs, loader(train), net, optimizer, loss(), method="joint_policy", meta_data_loader=loader(meta),
        method_options={"warm_up": 0, "update_every": 1, "views": 3, "pool": 4}, epoch_length=3,
        train_handlers=[handler],
    )  # fmt: skip
    if stop is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda: engine.terminate())
    history: list[list[torch.Tensor]] = []

    def keep() -> None:
        learned = [p for module in engine.method.policies().values() for p in module.parameters()]
        history.append([p.detach().clone() for p in (*learned, *net.module.parameters())])

    engine.add_event_handler(Events.ITERATION_COMPLETED, keep)
    images: list[torch.Tensor] = []
    draw = engine.batches._side

    def note(name: str) -> Any:
        batch = draw(name)
        images.append(batch.image)
        return batch

    engine.batches._side = note  # type: ignore[method-assign]
    engine.run()
    return {"history": history, "images": images}


def learning_worker(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    whole = learn_policies(folder / "whole", 3)
    learn_policies(folder / "parts", 3, stop=1)
    dist.barrier()  # rank 0 has written
    torch.save([whole, learn_policies(folder / "parts", 3, resume=True)], folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_policies_are_the_same_on_all_ranks_after_every_update(tmp_path: Path) -> None:
    """Each rank has meta-validation patches of its own; what is learned from them is learned together, and resumed."""
    multiprocessing.spawn(learning_worker, args=(tmp_path, free_port()), nprocs=2)
    zero, one = (torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1))
    history = zero[0]["history"]
    assert len(history) == len(zero[0]["images"]) == 9
    assert not torch.equal(history[0][0], history[-1][0])  # the training policy has learned
    assert not torch.equal(history[0][1], history[-1][1])  # and the test-time policy
    for a, b in zip(history, one[0]["history"], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(zero[0]["images"][0], one[0]["images"][0])
    for rank in (zero, one):
        for a, b in zip(rank[1]["history"], rank[0]["history"][3:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


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
