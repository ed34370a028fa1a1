# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two gloo ranks with each of nnU-Net's trainers: what is learned is the same on both after every update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_raw
from test_ranks import PACKAGE, free_port

from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled

SCRIPT = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from monai_autoaug.nnunet.trainers import TRAINERS

dist.init_process_group("gloo")
rank = dist.get_rank()


def everywhere(value):
    both = [None, None]
    dist.all_gather_object(both, value)
    return both


plans, dataset_json, output, name, options = json.loads(Path(sys.argv[1]).read_text())
plans["configurations"]["3d_fullres"]["autoaug"] |= {
    "batch_size": 4, "epochs": 3, "iterations_per_epoch": 2, "method_options": options,
}
plans["continue_training"] = False
trainer = TRAINERS[name](plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.disable_checkpointing = True
trainer.initialize()
step, seen, moved = trainer.train_step, [], set()


def learned():
    method = trainer.method
    modules = {n: p.module for n, p in method.players.items()} | dict(method.policies())
    state = {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}
    return state | {f"network.{k}": p.detach().clone() for k, p in trainer.task.network.named_parameters()}


def train_step(batch):
    seen.append(float(batch["data"].sum()))
    before = learned()
    found = step(batch)
    here, there = everywhere(learned())
    assert here.keys() == there.keys()
    for key in here:
        assert torch.equal(here[key], there[key]), key
    moved.update(k.split(".")[0] for k, v in here.items() if k in before and not torch.equal(v, before[k]))
    return found


trainer.train_step = train_step
trainer.run_training()
assert len(seen) == 6
here, there = everywhere(seen)
assert all(a != b for a, b in zip(here, there))  # each rank draws patches of its own
here, there = everywhere(trainer.method.generator.get_state())
assert not torch.equal(here, there)  # and noise
Path(output, f"rank_{rank}").write_text(json.dumps(sorted(moved)))
dist.destroy_process_group()
"""

SMALL = {"width": 2, "noise_size": 4}
METHODS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nnUNetTrainerAutoAugAdversarial": (SMALL | {"warm_up": 0}, {"generators", "discriminator"}),
    "nnUNetTrainerAutoAugBilevel": ({"update_every": 1}, {"augmenter"}),
    "nnUNetTrainerAutoAugGeneral": (
        SMALL | {"width_discriminator": 2}, {"generator", "class_discriminator", "dissimilarity_discriminator"}
    ),
    "nnUNetTrainerAutoAugTaskDriven": (SMALL | {"warm_up": 0}, {"generator", "discriminator"}),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n.endswith("Bilevel") else pytest.mark.long) for n in METHODS
])  # fmt: skip
def test_what_is_learned_is_the_same_after_every_update(
    name: str, tiny: Any, make_dataset: Callable[..., Any], tmp_path: Path
) -> None:
    if name.endswith("TaskDriven"):  # one of its own, for what is preprocessed beside it
        tiny = make_dataset(labels={"background": 0, "shell": 1, "core": 2})
        write_raw(tmp_path / "further", labels={}, cases=3, shape=(20, 24, 20))
        preprocess_unlabelled(tiny.name, "3d_fullres", tmp_path / "further" / "imagesTr")
    script, given = tmp_path / "ranks.py", tmp_path / "given.json"
    options, players = METHODS[name]
    script.write_text(SCRIPT)
    given.write_text(json.dumps([tiny.plans, tiny.json, str(tmp_path), name, options]))
    environment = os.environ | {
        "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "nnUNet_n_proc_DA": "0",
        "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", "nnUNet_results": str(tmp_path / "results"),
    }  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(given)], env=environment | {"RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=900) for rank in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    moved = [set(json.loads((tmp_path / f"rank_{rank}").read_text())) for rank in range(2)]
    assert moved[0] == moved[1] == players | {"network"}
