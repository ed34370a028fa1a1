# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The training policy in the workers: the same patches as on the device, the same for any number of workers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_configurations import LABELS, steps
from test_joint_trainer import joint, started
from test_loading import equal as same_raw
from test_ranks import PACKAGE, free_port
from test_resume import final, same, stop_after

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet import worker_policy
from monai_autoaug.nnunet.layers import read_options
from monai_autoaug.nnunet.options import Options
from monai_autoaug.policies import drawing
from monai_autoaug.tensors import one_thread

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
CPU = torch.device("cpu")


@pytest.fixture
def lag(monkeypatch: pytest.MonkeyPatch) -> int:
    """A lag that shows within a few batches."""
    monkeypatch.setattr(worker_policy, "LAG", 2)
    return 2


def in_workers(dataset: Any, *arguments: Any, **options: Any) -> Any:
    return joint(dataset, *arguments, policy_place="workers", **options)


def equal(a: Batch, b: Batch) -> None:
    for name in ("image", "label", "valid", "extra", "classes", "operations", "spacing"):
        same(getattr(a, name), getattr(b, name), name)
    assert (a.case, a.margin) == (b.case, b.margin)
    assert (a.plain is None) == (b.plain is None)
    if a.plain is not None and b.plain is not None:
        equal(a.plain, b.plain)


def by_hand(trainer: Any, number: int) -> Batch:
    """Batch ``number`` of a trainer whose policy is on the device, drawn with a worker's random numbers."""
    source = trainer._streams["train"].source
    batch = trainer.layout.batch(source.batch(number), CPU, values=True)
    with one_thread():
        drawn: Batch = trainer.method.drawing()(batch, source.generator(number), number)
    return drawn


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy_place": "gpu"}, "policy_place must be one of device, workers; got 'gpu'"),
        ({"policy_place": "workers", "loader": "stock"}, "needs loader: seeded"),
        ({"policy_place": "workers", "method": "adversarial"}, "has no training policy; leave policy_place out"),
        ({"policy_place": "device", "method": "none"}, "has no training policy; leave policy_place out"),
    ],
)
def test_places_that_can_not_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.from_mapping({"method": "joint_policy"} | given)


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options(method="joint_policy").policy_place == "device"
    assert Options(method="adversarial").policy_place is None
    (tmp_path / "options.yaml").write_text("method: none")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    plans = {"configurations": {"3d_fullres": {"autoaug": {"policy_place": "workers"}}}}
    assert read_options({"method": "joint_policy"}, plans, "3d_fullres").policy_place is None


@pytest.fixture(scope="module")
def difficult(make_dataset: Callable[..., Any]) -> Any:
    """Regions, an ignore label, a mask."""

    def edit(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]

    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    return make_dataset(labels=labels, ignore=3, regions_class_order=[1, 2], edit=edit, zeros=True)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("tiny", {"classes": "labels", "extra": ["elastic"]}),
        ("tiny", {"class_of": "sampled"}),
        ("difficult", {"classes": "labels"}),
        ("difficult", {"loss_region": 0.5}),
    ],
)
def test_patches_are_those_of_the_device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, closing: list[Any], kind: str, method: Any
) -> None:
    """Operations, voxels, soft labels and all that moves with them, bit for bit, by the same random numbers."""
    dataset = request.getfixturevalue(kind)
    more = {"preset": "uniform", "update_every": 2, "pool": 4}  # of two patches, each is compared with itself
    options = {"margin": [2, 0, 3], "iterations_per_epoch": 3, "method_options": method | more}
    here = started(joint(dataset, **options))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    there = started(in_workers(dataset, **options))
    closing.append(there)
    for number in range(3):
        batch = there.layout.batch(next(there._streams["train"]), CPU)
        equal(batch, by_hand(here, number))
        assert batch.image.shape[2:] == tuple(dataset.plans["configurations"]["3d_fullres"]["patch_size"])
        assert batch.operations is not None
        assert bool(batch.operations.any())
        assert (batch.valid is None) == (kind == "tiny")
        assert (batch.plain is None) == (number == 1)


def test_a_training_is_that_of_the_device_while_nothing_is_learned(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]
) -> None:
    """To the last bit of the network's weights, through losses of all resolutions."""
    options = {"method_options": {"learn_training": False, "test_time": False}, "margin": 2}
    here = joint(tiny, **options)
    here.on_train_start()
    source, step = here._streams["train"].source, here.method.step

    def by_the_workers_numbers(batches: Any) -> Any:
        here.method.generator = source.generator(here.method.steps)
        return step(batches)

    here.method.step = by_the_workers_numbers
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    there = in_workers(tiny, **options)
    there.on_train_start()
    closing += [here, there]
    faster, seen = drawing.apply_to_values, []
    monkeypatch.setattr(drawing, "apply_to_values", lambda *given, **more: seen.append(1) or faster(*given, **more))
    for trainer in (here, there):
        trainer.network.train()
    for _ in range(3):
        figures = [trainer.train_step(next(trainer.dataloader_train)) for trainer in (here, there)]
        assert figures[0] == figures[1]
    same(dict(here.network.state_dict()), dict(there.network.state_dict()))
    assert len(seen) == 3  # this process's; labels came as values


def test_the_lag_is_what_it_is_said_to_be(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any], lag: int
) -> None:
    """A policy that is certain of another operation at every step leaves it in the batch two steps later."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = started(in_workers(tiny))
    closing.append(trainer)
    policy, seen = trainer.method.training, []
    column = [c.name for c in policy.cascades].index("gamma")
    first, count = sum(len(c) for c in policy.cascades[:column]), len(policy.cascades[column])
    for number in range(8):
        with torch.no_grad():
            policy.logits[:, first : first + count] = -1000.0
            policy.logits[:, first + number % count] = 0.0
        seen.append(next(trainer._streams["train"])["operations"][:, column].tolist())
    assert seen == [[max(0, number - lag) % count] * 2 for number in range(8)]


def finished(dataset: Any, fold: int = 0, **options: Any) -> Any:
    trainer = in_workers(dataset, fold=fold, **options)
    trainer.fold = 0  # the same cases, another folder
    trainer.run_training()
    return final(dataset, trainer)


# so fast that it matters which version a batch is augmented with
LEARNING: dict[str, Any] = {
    "epochs": 2, "save_every": 1, "iterations_per_epoch": 3,
    "method_options": {"learning_rate": 3.0, "test_time": False},
}  # fmt: skip


def test_a_learning_policy_gives_the_same_from_any_number_of_workers(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, lag: int
) -> None:
    wanted = None
    for fold, workers in enumerate((0, 1, 3)):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        content = finished(tiny, fold, **LEARNING)
        versions = content["autoaug"]["policy_versions"]
        assert versions["lag"] == lag
        assert not torch.equal(versions["logits"][0], versions["logits"][1])  # it does learn
        wanted = content if wanted is None else wanted
        for key in ("network_weights", "optimizer_state"):
            same(content[key], wanted[key], f"{key} from {workers} workers")
        for key in ("method", "streams", "policy_versions"):
            same(content["autoaug"][key], wanted["autoaug"][key], f"{key} from {workers} workers")


def test_a_resumed_run_is_the_uninterrupted_one(tiny: Any, monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """The first batches after it are augmented by versions of before it."""
    wanted = finished(tiny, 0, **LEARNING)
    first = in_workers(tiny, fold=1, **LEARNING)
    first.fold = 0
    stop_after(first, 1)
    path = str(Path(first.output_folder) / "checkpoint_latest.pth")
    with pytest.raises(CheckpointError, match="policy_place: 'workers' in the checkpoint, 'device' in this run"):
        joint(tiny, resume=True, **LEARNING).load_checkpoint(path)
    with monkeypatch.context() as patch:
        patch.setattr(worker_policy, "LAG", 3)
        other = in_workers(tiny, resume=True, **LEARNING)
        other.load_checkpoint(path)
        with pytest.raises(CheckpointError, match="2 batches late; expected .* 3 batches late"):
            other.get_dataloaders()
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    second = in_workers(tiny, fold=1, resume=True, **LEARNING)
    second.fold = 0
    second.load_checkpoint(path)
    second.run_training()
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state"):
        same(got[key], wanted[key], key)
    for key in ("method", "streams", "policy_versions"):
        same(got["autoaug"][key], wanted["autoaug"][key], key)


RANKS = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from monai_autoaug.nnunet import worker_policy
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug
worker_policy.LAG = 1
dist.init_process_group("gloo")
plans, dataset_json, output = json.loads(Path(sys.argv[1]).read_text())
trainer = nnUNetTrainerAutoAug(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
drawn, step, start = [], trainer.train_step, trainer.method.training.logits.detach().clone()
trainer.train_step = lambda raw: drawn.append(raw["operations"]) or step(raw)
trainer.run_training()
both = [None, None]
versions = trainer._shared_policy.state_dict()["logits"]
dist.all_gather_object(both, [torch.cat(drawn), versions, trainer.method.training.logits.detach()])
(a, *learned), (b, *also_learned) = both
assert a.shape == b.shape == (6, 15) and not torch.equal(a, b)
assert all(map(torch.equal, learned, also_learned))
assert not torch.equal(versions[-1], start)
dist.barrier()
Path(output, f"rank_{dist.get_rank()}").write_text("passed")
dist.destroy_process_group()
"""


def test_two_ranks_draw_for_themselves_from_one_policy(tiny: Any, tmp_path: Path) -> None:
    script, given = tmp_path / "ranks.py", tmp_path / "given.json"
    script.write_text(RANKS)
    plans = json.loads(json.dumps(tiny.plans)) | {"continue_training": False}
    plans["configurations"]["3d_fullres"]["autoaug"] |= LEARNING | {
        "policy_place": "workers", "batch_size": 4, "epochs": 1,
    }  # fmt: skip
    given.write_text(json.dumps([plans, tiny.json, str(tmp_path)]))
    environment = os.environ | {
        "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "nnUNet_n_proc_DA": "1",
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


def test_what_workers_get_can_be_sent_to_spawned_ones(tiny: Any) -> None:
    trainer = started(in_workers(tiny))
    stream = trainer._streams["train"]
    stream.policy.publish(0)
    copied = pickle.loads(pickle.dumps(stream.source))  # noqa: S301  # made here
    assert same_raw(next(copied), next(stream))


def test_2d_without_deep_supervision_and_under_nnunets_augmentation(make_dataset: Callable[..., Any]) -> None:
    dataset = make_dataset("2d", labels=LABELS, channels=2, spacing=(3.0, 1.0, 1.5))
    trainer = in_workers(dataset, "2d", margin=2, base_augmentation="stock")
    for batch, output in steps(trainer, 2):
        assert batch.image.shape[2:] == batch.label.shape[2:] == output[0].shape[2:]
        assert batch.target is None
    assert trainer.method.updates == 2
