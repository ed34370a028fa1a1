# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle of the bilevel method: trained, resumed, evaluated and applied by its own commands."""

from __future__ import annotations

import csv
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

from monai_autoaug import augmenters
from monai_autoaug.data import EpochCases

BUNDLE = ROOT / "bundles" / "hippocampus_bilevel"
# of 12 cases 2 validate and 2 are set apart in each epoch: two steps an epoch
FAST: dict[str, Any] = {"method_options": "{'update_every': 1}", "val_interval": 1}


def test_inference_needs_monai_alone() -> None:
    assert "autoaug" not in (BUNDLE / "configs" / "inference.json").read_text()


@pytest.mark.parametrize("resampled", [True, False])
def test_cases_are_parted_anew_each_epoch(resampled: bool) -> None:
    """Whatever their number, validation cases take no part, and of the others each is of one part in an epoch."""
    for count in (4, 12, 260):
        parser = ConfigParser(
            read(BUNDLE, "train") | {"images": list(range(count)), "labels": list(range(count)), "bundle_root": "x"}
        )
        parser["split"]["resampled"] = resampled
        train, meta = (parser.get_parsed_content(f"{part}::dataset::cases") for part in ("train", "meta"))
        assert isinstance(train, EpochCases)
        length, epochs = parser.get_parsed_content("iterations"), []
        free = [row["image"] for row in parser.get_parsed_content("train::volumes::data")]
        held = [row["image"] for row in parser.get_parsed_content("validate::dataset::data")]
        assert sorted(free + held) == list(range(count))
        for epoch in range(8):
            parts = [set(part(epoch * length)) for part in (train, meta)]
            assert not parts[0] & parts[1]
            assert parts[0] | parts[1] == set(range(len(free)))
            assert len(parts[1]) == max(1, round(0.2 * len(free)))
            epochs.append(parts[1])
        assert any(e != epochs[0] for e in epochs) == resampled


def train_and_apply(bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, **FAST)
    assert "val_mean_dice" in log
    assert "meta_loss" in log
    first = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain_unet().load_state_dict(first)
    learned = augmenters.load(bundle / "models" / "augmenters.pt")
    assert list(learned) == ["parametric"]
    resumed = run(bundle, data, "train", epochs=2, resume="true", **FAST)
    assert "Epoch: 2/2" in resumed
    assert "Epoch: 1/2" not in resumed
    again = augmenters.load(bundle / "models" / "augmenters.pt")["parametric"].state_dict()
    assert any(not torch.equal(t, again[n]) for n, t in learned["parametric"].state_dict().items())
    evaluated = run(bundle, data, "train", "evaluate")
    with (bundle / "eval" / "metrics.csv").open() as table:
        rows = dict(csv.reader(table))
    assert 0 <= float(rows["val_mean_dice"]) <= 1
    assert "val_mean_dice" in evaluated
    infer_without_this_package(bundle, data)
    predictions(bundle, data)


def test_train_resume_evaluate_and_segment(bundle: Path, synthetic: Path) -> None:
    train_and_apply(bundle, synthetic)


@pytest.mark.long
def test_train_resume_evaluate_and_segment_real_images(bundle: Path, hippocampus: Path, tmp_path: Path) -> None:
    train_and_apply(bundle, some_cases(hippocampus, tmp_path / hippocampus.name))


def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, synthetic: Path) -> None:
    log = run_in_two_processes(bundle, synthetic, epochs=1, **FAST)
    assert log.count("Epoch: 1/1, Iter: 1/2") == 1  # rank 0 alone talks
    plain_unet().load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2


@pytest.mark.parametrize("method", ["none", pytest.param("random", marks=pytest.mark.long)])
def test_other_methods_by_one_option(method: str, bundle: Path, synthetic: Path) -> None:
    log = run(bundle, synthetic, "train", epochs=1, val_interval=1, method=method)
    assert "val_mean_dice" in log
    assert "meta_loss" not in log
