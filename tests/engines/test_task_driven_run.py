# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug train --method task_driven --unlabelled DIR`` with one labelled volume; resume in each phase."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import augmenters
from monai_autoaug.cli import main
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines import TrainOptions, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import ConfigError

OWN: dict[str, Any] = {
    "method": "task_driven", "method_options": {"width": 2, "noise_size": 4, "warm_up": 1}, "epochs": 6,
    "iterations": 2, "train_cases": 1, "validation_cases": 1, "validation_interval": 1, "patch_size": (8, 8, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled cases, and three further images in a folder elsewhere."""
    root = tmp_path_factory.mktemp("data")
    labelled = write_phantom(root / "labelled", cases=2, size=16)
    (root / "images").mkdir()
    for number, case in enumerate(read_datalist(write_phantom(root / "other", cases=3, size=16, seed=9)).training):
        shutil.copy(case.images[0], root / "images" / f"scan_{number}.nii.gz")
    return labelled


def test_one_labelled_volume_is_enough_and_a_run_goes_on_exactly_in_each_phase(data: Path, tmp_path: Path) -> None:
    given = OWN | {"unlabelled": data.parent / "images"}
    whole = train(options(data, tmp_path / "whole", **given))
    log, summary = rows(whole), json.loads(whole.summary.read_text())
    assert summary["cases"] == {"train": 1, "validation": 1, "unlabelled": 3}
    assert list(augmenters.load(whole.augmenters)) == ["deformation", "appearance"]
    assert ["discriminator_accuracy" in row for row in log] == [True] * 4 + [False] * 2
    assert all("loss_clean" in row for row in log)
    assert summary["best_epoch"] in (5, 6)  # of the last phase
    best = max(log[4:], key=lambda row: row["dice"])
    assert summary["best_epoch"] == best["epoch"] or log[4]["dice"] == log[5]["dice"]
    for done in (3, 7, 11):  # within each phase
        with pytest.raises(KeyboardInterrupt):
            train(options(data, tmp_path / str(done), **given), listener=stop_at(done))
        stopped = Run(tmp_path / str(done))
        resume(stopped.folder)
        assert rows(stopped) == log
        assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


def test_the_command_line_takes_it_and_names_what_is_missing(data: Path, tmp_path: Path) -> None:
    small = ["--method", "task_driven", "--method-option", "width=2", "--method-option", "noise_size=4",
             "--epochs", "3", "--iterations", "1", "--train-cases", "1", "--validation-cases", "1", "--patch-size", "8",
             "8", "8", "--network-option", "channels=[4,8]", "--device", "cpu"]  # fmt: skip
    without = CliRunner().invoke(main, ["train", str(data), "-o", str(tmp_path / "a"), *small])
    assert without.exit_code != 0
    assert isinstance(without.exception, ConfigError | SystemExit)
    assert "--unlabelled" in without.output + str(without.exception)
    more = ["--unlabelled", str(data.parent / "images"), "--normalisation", "percentile", "--bias-correction"]
    done = CliRunner().invoke(main, ["train", str(data), "-o", str(tmp_path / "b"), *small, *more])
    assert done.exit_code == 0, done.output
    run = Run(tmp_path / "b")
    preprocessing = json.loads(run.preprocessing.read_text())
    assert preprocessing["normalisation"] == ["percentile"]
    assert preprocessing["bias_correction"] is True
    assert "Training has 3 phases" in done.output


def test_options_without_use_are_refused(data: Path, tmp_path: Path) -> None:
    for own in ({"unlabelled": False}, {"augmentation": "none"}, {"weight_adversarial": 0.0}):
        with pytest.raises(ConfigError, match="learns nothing from unlabelled images with these options"):
            TrainOptions(data, tmp_path / "run", method="task_driven", method_options=own,
                         unlabelled=data.parent / "images")  # fmt: skip
    with pytest.raises(ConfigError, match=r"takes an epoch each at least|3 phases .*got 2 epochs"):
        train(options(data, tmp_path / "run", **OWN | {"epochs": 2, "unlabelled": data.parent / "images"}))
    with pytest.raises(ConfigError, match="bias_correction is for MR images"):
        train(options(data, tmp_path / "run", method="none", normalisation="ct", bias_correction=True))
    assert not (tmp_path / "run").exists()
