# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run that was stopped anywhere is finished as if it had never stopped."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import augmenters
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.precision import Precision


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=5, size=20)


@pytest.mark.parametrize("method", ["none", "random", "adversarial", "general_adversarial"])
@pytest.mark.parametrize("step", [1, 5])  # within the first epoch, where there is no checkpoint yet, and the second
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(data: Path, tmp_path: Path, method: str, step: int) -> None:
    whole = train(options(data, tmp_path / "whole", method=method))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", method=method), listener=stop_at(step))
    stopped = Run(tmp_path / "stopped")
    assert not stopped.summary.exists()
    assert stopped.checkpoint.exists() == (step > 3)
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


@pytest.mark.parametrize("step", [2, 5, 7])  # in the first epoch, in the second one, and in the other phase
def test_separate_training_goes_on_in_either_phase(data: Path, tmp_path: Path, step: int) -> None:
    own = {"separate": 0.6, "weight_adversarial": 0.0, "width": 2, "noise_size": 4, "width_discriminator": 2}
    given: dict[str, Any] = {"method": "general_adversarial", "method_options": own}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step")
        whole = train(options(data, tmp_path / "whole", **given))
    assert [row["phase"] for row in rows(whole)] == ["generator", "generator", "network"]
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(step))
    stopped = Run(tmp_path / "stopped")
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))
    learned = [augmenters.load(r.augmenters)["general"].state_dict() for r in (stopped, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*(x.values() for x in learned), strict=True))


def test_resuming_is_refused_where_it_would_be_another_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a training run"):
        resume(tmp_path / "nothing")
    run = train(options(data, tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds a run already"):
        train(options(data, tmp_path / "run"))
    with pytest.raises(ConfigError, match="this run has ended"):
        resume(run.folder)
    run.summary.unlink()
    config = json.loads(run.config.read_text())
    config["split"]["train"] = config["split"]["train"][1:]
    run.config.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no longer splits"):
        resume(run.folder)


@pytest.mark.parametrize(("done", "stage"), [(2, "preparing"), (1, "predicting")])
def test_a_run_that_was_stopped_outside_training_is_finished(data: Path, tmp_path: Path, done: int, stage: str) -> None:
    """Before the first epoch there is no checkpoint, after the last nothing is left to train."""
    whole = train(options(data, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped"), listener=stop_at(done, stage))
    stopped = Run(tmp_path / "stopped")
    left = {"audit.json", "config.json", "fingerprints.json", "preprocessing.json"}
    if stage == "preparing":
        assert {p.name for p in stopped.folder.iterdir()} == left
    assert not stopped.summary.exists()
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))
    learned = [augmenters.load(r.augmenters)["affine"].state_dict() for r in (stopped, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*(x.values() for x in learned), strict=True))
    assert {p.name for p in stopped.validation.iterdir()} == {p.name for p in whole.validation.iterdir()}


def spoil(monkeypatch: pytest.MonkeyPatch, *, update: int) -> None:
    """One update of the segmentation network, counted from 1, gets a gradient that is not finite."""
    original, calls = Precision.step, []

    def step(self: Precision, name: str, optimizer: torch.optim.Optimizer, **options: Any) -> bool:
        if name == "network":
            calls.append(name)
            if len(calls) == update:
                optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
        return original(self, name, optimizer, **options)

    monkeypatch.setattr(Precision, "step", step)


def test_warnings_and_skipped_updates_are_not_forgotten(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped in the first epoch, warned of after the last; stopped in the second and again before the summary."""
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoil(patch, update=2 + 1)  # the first is the rehearsal's
        with pytest.raises(KeyboardInterrupt):
            train(options(data, run.folder, method_options={"warm_up": 0}), listener=stop_at(5))
    with monkeypatch.context() as patch:
        patch.setattr("monai_autoaug.methods.adversarial.collapse_warnings", lambda *_: ["it has collapsed"])
        with pytest.raises(KeyboardInterrupt):
            resume(run.folder, listener=stop_at(1, "predicting"))
    resume(run.folder)
    summary = json.loads(run.summary.read_text())
    assert summary["skipped_updates"] == {"network": 1}
    assert summary["warnings"] == [
        "it has collapsed", "1 of 9 updates of network were skipped, because its loss or gradient was not finite"
    ]  # fmt: skip
