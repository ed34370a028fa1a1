# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two gloo ranks on the CPU, which plain nnU-Net refuses: equal players, different patches, the host's gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import launcher

PACKAGE = str(Path(launcher.__file__).parents[2])

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.losses import soft_losses
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial, with_autoaug

dist.init_process_group("gloo")
rank = dist.get_rank()


def same_everywhere(tensor):
    both = [torch.zeros_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor.contiguous())
    return torch.equal(*both)


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# batch Dice over ranks: value and gradient of nnU-Net's own loss
torch.manual_seed(rank)
logits = torch.randn(2, 3, 6, 6, 6, requires_grad=True)
label = torch.randint(0, 3, (2, 1, 6, 6, 6)) * rank
host = DC_and_CE_loss(
    {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": True}, {}, dice_class=MemoryEfficientSoftDiceLoss
)
expected = host(logits, label)
(wanted,) = torch.autograd.grad(expected, logits)
one_hot = torch.zeros(2, 3, 6, 6, 6).scatter_(1, label, 1)
soft = soft_losses(host)(logits, one_hot, None).mean()
(got,) = torch.autograd.grad(soft, logits)
torch.testing.assert_close(soft, expected)
torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)

plans, dataset_json, output = json.loads(Path(sys.argv[1]).read_text())
configuration = plans["configurations"]["3d_fullres"]
configuration["autoaug"] |= {"batch_size": 3, "epochs": 2, "iterations_per_epoch": 4, "save_every": 1}
configuration["autoaug"] |= {"optimizer": "adamw", "method_options": {"warm_up": 0}}  # all players play at once
configuration["batch_dice"] = True
try:
    nnUNetTrainerAutoAugAdversarial(plans, "3d_fullres", 0, dataset_json, torch.device("cpu")).initialize()
    raise SystemExit("three patches on two ranks with batch Dice were not refused")
except ConfigError as error:
    assert "divisible" in str(error)
configuration["batch_dice"] = False
for cls in (nnUNetTrainerAutoAugAdversarial, with_autoaug(nnUNetTrainerBN, "adversarial")):
    plans["continue_training"] = False
    trainer = cls(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    assert trainer.device.type == "cpu"
    assert trainer.is_ddp
    trainer.initialize()
    assert trainer.batch_size == 2 - rank  # three patches over two ranks
    assert trainer.run_seed == 0
    start = flat(trainer.task.network)
    assert same_everywhere(start)
    players = {name: flat(player.module) for name, player in trainer.method.players.items()}
    parts, generate = [], trainer.method.generate

    def divided(batch):
        made = generate(batch)
        parts.append({part.kind for part in made})
        return made

    trainer.method.generate = divided
    cases = []
    step = trainer.train_step

    def noted(batch):
        cases.append(float(batch["data"][:1].mean()))
        return step(batch)

    trainer.train_step = noted
    trainer.run_training()
    end = flat(trainer.task.network)
    assert not torch.equal(start, end)
    assert same_everywhere(end)
    # a batch smaller than four goes through the parts in turn; one rank may have no augmented patch where the other has
    assert all(len(kinds) == trainer.batch_size for kinds in parts)
    assert set().union(*parts) == {"clean", "affine", "deformation", "appearance"}
    assert rank == 0 or {"clean"} in parts
    assert set(players) == {"generators", "discriminator"}
    for name, player in trainer.method.players.items():
        assert same_everywhere(flat(player.module)), name
        assert not torch.equal(flat(player.module), players[name]), name
    assert same_everywhere(torch.cat([t.flatten() for t in trainer.method.state_dict()["auxiliary"].values()]))
    statistics = [b.flatten() for b in trainer.task.network.buffers() if b.is_floating_point()]
    assert not statistics or same_everywhere(torch.cat(statistics))
    assert not same_everywhere(torch.tensor(cases))
    dist.barrier()
    # resumed from the first epoch's checkpoint each rank goes on with its own random numbers
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    kept = torch.load(path, weights_only=False)["autoaug"]
    assert len(kept["ranks"]) == 2
    assert not torch.equal(kept["ranks"][0]["method"]["generator"], kept["ranks"][1]["method"]["generator"])
    dist.barrier()
    plans["continue_training"] = True
    again = cls(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    again.load_checkpoint(str(path))
    assert torch.equal(again.method.generator.get_state(), kept["ranks"][rank]["method"]["generator"])
    assert torch.equal(flat(again.task.network), end)
dist.barrier()
Path(output, f"rank_{rank}").write_text("passed")
dist.destroy_process_group()
"""


JOINT = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from monai_autoaug.nnunet.task import TrainerBatches
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug

dist.init_process_group("gloo")
rank = dist.get_rank()


def everywhere(value):
    both = [None, None]
    dist.all_gather_object(both, value)
    return both


plans, dataset_json, output = json.loads(Path(sys.argv[1]).read_text())
options = {"warm_up": 0, "update_every": 1, "pool": 2, "views": 2, "meta_batch": 2}
plans["configurations"]["3d_fullres"]["autoaug"] |= {
    "batch_size": 4, "epochs": 2, "iterations_per_epoch": 3, "method_options": options, "meta_split": "resampled",
}
plans["continue_training"] = False
trainer = nnUNetTrainerAutoAug(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
start = {n: p.logits.detach().clone() for n, p in trainer.method.policies().items()}
served, draw = [], TrainerBatches.next


def noted(batches, stream):
    batch = draw(batches, stream)
    served.append(float(batch.image.sum()))
    return batch


TrainerBatches.next = noted
trainer.run_training()
for epoch in range(2):
    a, b = everywhere(trainer._split.meta(epoch))
    assert a == b
a, b = everywhere(served)
assert len(a) == len(b) == 12  # training and meta-validation
assert a != b  # each rank draws patches of its own
for name, policy in trainer.method.policies().items():
    a, b = everywhere(policy.logits.detach())
    assert torch.equal(a, b), name
    assert not torch.equal(a, start[name]), name
a, b = everywhere({n: t for n, t in trainer.task.network.state_dict().items()})
assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
assert "autoaug.test_time" in a
dist.barrier()
Path(output, f"rank_{rank}").write_text("passed")
dist.destroy_process_group()
"""


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


@pytest.mark.parametrize("content", [SCRIPT, JOINT], ids=["adversarial", "joint_policy"])
def test_two_ranks(tiny: Any, tmp_path: Path, content: str) -> None:
    script, given = tmp_path / "ranks.py", tmp_path / "given.json"
    script.write_text(content)
    given.write_text(json.dumps([tiny.plans, tiny.json, str(tmp_path)]))
    environment = os.environ | {
        "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "nnUNet_n_proc_DA": "0",
        "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(given)], env=environment | {"RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    assert {p.name for p in tmp_path.glob("rank_*")} == {"rank_0", "rank_1"}


OWN_TRAINER = '''
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from monai_autoaug.nnunet import with_autoaug


class nnUNetTrainerOfMyOwn(with_autoaug(nnUNetTrainer, "adversarial")):
    """Leaves each rank's weights behind and validates nothing."""

    def on_train_end(self):
        super().on_train_end()
        weights = {k: v.cpu() for k, v in self.network.module.state_dict().items()}
        torch.save(weights, f"{self.output_folder}/rank_{dist.get_rank()}.pt")

    def perform_actual_validation(self, save_probabilities=False):
        assert self.network.module is not None
'''


def test_the_launcher_trains_on_two_cpu_ranks(
    make_dataset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer of the user's own, in a folder of the user's own, from pretrained weights."""
    dataset = make_dataset(labels={"background": 0, "shell": 1, "core": 2})
    (tmp_path / "trainers_of_my_own.py").write_text(OWN_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plain = nnUNetTrainer(
        dataset.plans | {"continue_training": False}, "3d_fullres", 1, dataset.json, torch.device("cpu")
    )
    plain.initialize()
    plain.save_checkpoint(str(tmp_path / "pretrained.pth"))
    arguments = [
        str(dataset.number),
        "3d_fullres",
        "0",
        "-tr",
        "nnUNetTrainerOfMyOwn",
        "-num_gpus",
        "2",
        "-device",
        "cpu",
    ]
    launcher.train([*arguments, "-pretrained_weights", str(tmp_path / "pretrained.pth")])
    folder = dataset.results / dataset.name / "nnUNetTrainerOfMyOwn__nnUNetPlans__3d_fullres" / "fold_0"
    a, b = (torch.load(folder / f"rank_{rank}.pt") for rank in range(2))
    assert a.keys() == b.keys() == plain.network.state_dict().keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert len(final["autoaug"]["ranks"]) == 2
    for flags, message in ((["--c", "--val"], "only validates"), (["--c", "-pretrained_weights", "x"], "begin anew")):
        with pytest.raises(ConfigError, match=message):
            launcher.train([*arguments, *flags])


@pytest.mark.long
def test_two_cpu_ranks_validate_and_continue(make_dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands with all their flags, and nnU-Net's final validation, whose cases the ranks share."""
    dataset = make_dataset(labels={"background": 0, "shell": 1, "core": 2}, cases=7)
    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    arguments = [str(dataset.number), "3d_fullres", "0", "-num_gpus", "2", "-device", "cpu", "--npz"]
    folder = dataset.results / dataset.name / f"{launcher.DEFAULT_TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"
    summary, found = folder / "validation" / "summary.json", []
    for flags in ([], ["--val"], ["--val", "--val_best"], ["--c"]):
        launcher.train([*arguments, *flags])
        found.append(json.loads(summary.read_text())["foreground_mean"])
        cases = len(list(summary.parent.glob("*.nii.gz")))
        assert cases == len(list(summary.parent.glob("*.npz"))) >= 2
        summary.unlink()
    assert found[1] == found[3] == found[0]
    lines = [json.loads(line)["epoch"] for line in (folder / "autoaug.jsonl").read_text().splitlines()]
    assert lines == [0]
