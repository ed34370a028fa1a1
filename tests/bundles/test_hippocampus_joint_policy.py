# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle of joint policies: trained, resumed, evaluated and applied by its own commands, with and without views."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_helpers import (
    ROOT,
    infer_without_this_package,
    plain_unet,
    predictions,
    read,
    run,
    run_in_two_processes,
    some_cases,
)
from monai.bundle import ConfigParser

from monai_autoaug import policies
from monai_autoaug.engines import TestTimePolicyInferer
from monai_autoaug.policies import Laterality

BUNDLE = ROOT / "bundles" / "hippocampus_joint_policy"
# of 12 cases 2 validate, 2 are for meta-validation and 8 for training: two steps an epoch
FAST: dict[str, Any] = {
    "method_options": "{'warm_up': 0, 'update_every': 1, 'views': 2, 'pool': 2}", "val_interval": 1,
    "lr_scheduler::power": 0,  # or the first of two trainings ends with a learning rate of 0
}  # fmt: skip


def parsed(name: str, **changes: Any) -> ConfigParser:
    return ConfigParser(read(BUNDLE, name) | {"bundle_root": str(BUNDLE)} | changes)


def test_patches_are_smaller_than_images() -> None:
    """Else no patch has a class."""
    train = read(BUNDLE, "train")
    assert train["patch_size"] == [32, 32, 32]
    crop = train["train"]["random_transforms"][1]
    assert crop["_target_"] == "monai.transforms.RandCropByPosNegLabeld"
    assert crop["spatial_size"] == "$[n + 2 * @margin for n in @patch_size]"
    assert train["train"]["trainer"]["margin"] == "@margin"


def test_cases_are_parted() -> None:
    """Whatever their number, no case is of two parts, and none is left out."""
    for count in (4, 12, 100, 260):
        parser = parsed("train", images=list(range(count)), labels=list(range(count)))
        parts = [
            [row["image"] for row in parser.get_parsed_content(f"{part}::dataset::data")]
            for part in ("train", "meta", "validate")
        ]
        assert sorted(sum(parts, [])) == list(range(count))
        assert all(parts)
        assert parts[2] == list(range(count))[-max(1, count // 6) :]


@pytest.mark.parametrize("z", [None, 4, 0])
def test_one_key_chooses_the_views_or_none(z: int | None, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    policies.save(tmp_path / "models" / "policy.json", test_time=policies.TestTimePolicy.preset("nnunet"))
    inferer = parsed("inference", bundle_root=str(tmp_path), z=z).get_parsed_content("inferer")
    assert isinstance(inferer, TestTimePolicyInferer) == (z != 0)
    if z != 0:
        assert inferer.z == (8 if z is None else z)
    else:
        assert type(inferer).__name__ == "SlidingWindowInferer"


def test_labels_with_sides_are_declared_by_name(synthetic: Path, tmp_path: Path) -> None:
    """As the README says it; the axis is that of the orientation that images are brought to."""
    given: dict[str, Any] = {"laterality": [["anterior", "posterior"]]}
    more = {"device": "cpu", "dataset_dir": str(synthetic), "orientation": "ASL", "method_options": given}
    trainer = parsed("train", bundle_root=str(tmp_path), **more).get_parsed_content("train::trainer")
    assert {p.laterality for p in trainer.method.policies().values()} == {Laterality(((1, 2),), axis=2)}


def train_and_apply(bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, **FAST)
    assert "val_mean_dice" in log
    assert "view_loss" in log
    found = policies.load(bundle / "models" / "policy.json")
    assert found.training is not None
    assert found.test_time is not None
    assert found.seen is not None
    assert found.provenance["dataset"] == "Task04_Hippocampus"
    assert found.training.classes == ("background", "foreground")
    first = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain_unet().load_state_dict(first)
    resumed = run(bundle, data, "train", epochs=2, resume="true", **FAST)
    assert "Epoch: 2/2" in resumed
    assert "Epoch: 1/2" not in resumed
    second = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))  # the last epoch's
    lines = [json.loads(line) for line in (bundle / "eval" / "policy.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    again = policies.load(bundle / "models" / "policy.json")
    assert again.provenance["epoch"] == 2
    views = again.test_time
    assert views is not None
    assert lines[1]["test_time"]["top"] == [o.name for o in views.top(8)[0]]
    scores = []
    for more in ({}, {"z": 0}):
        evaluated = run(bundle, data, "train", "evaluate", **more)
        assert "val_mean_dice" in evaluated
        with (bundle / "eval" / "metrics.csv").open() as table:
            scores.append(float(dict(csv.reader(table))["val_mean_dice"]))
    assert all(0 <= score <= 1 for score in scores)
    assert scores[0] != scores[1]  # with views, and without
    run(bundle, data, "inference")
    with_views = predictions(bundle, data)
    (bundle / "models" / "policy.json").unlink()
    infer_without_this_package(bundle, data, "--z", 0)
    alone = predictions(bundle, data)
    assert any((with_views[name] != alone[name]).any() for name in alone)


def test_train_resume_evaluate_and_segment(bundle: Path, synthetic: Path) -> None:
    train_and_apply(bundle, synthetic)


@pytest.mark.long
def test_train_resume_evaluate_and_segment_real_images(bundle: Path, hippocampus: Path, tmp_path: Path) -> None:
    train_and_apply(bundle, some_cases(hippocampus, tmp_path / hippocampus.name))


def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, synthetic: Path) -> None:
    """Both learn the same policies, from meta-validation batches of their own."""
    log = run_in_two_processes(bundle, synthetic, epochs=1, **FAST)
    assert log.count("Epoch: 1/1, Iter: 1/1") == 1  # rank 0 alone talks
    plain_unet().load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2
    assert policies.load(bundle / "models" / "policy.json").training is not None
    assert len((bundle / "eval" / "policy.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("method", ["none", pytest.param("random", marks=pytest.mark.long)])
def test_other_methods_by_one_option(method: str, bundle: Path, synthetic: Path) -> None:
    log = run(bundle, synthetic, "train", epochs=1, val_interval=1, method=method)
    assert "val_mean_dice" in log
    assert not (bundle / "models" / "policy.json").exists()
