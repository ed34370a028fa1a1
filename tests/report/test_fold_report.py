# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The report of a fold of nnU-Net: read from its files alone, old and new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.report import read_source, write_report
from monai_autoaug.report.reading import read_evaluation

LABELS = {"background": 0, "shell": 1, "core": 2}
FACTS = {
    "version": 1, "method": "joint_policy", "trainer": "nnUNetTrainerAutoAug", "plain_trainer": "nnUNetTrainer",
    "plans": "nnUNetPlans", "configuration": "3d_fullres", "fold": "0", "seed": 0, "epochs": 2, "iterations": 6,
    "batch_size": 2, "patch_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0], "structures": ["shell", "core"],
    "cases": {"train": 6, "validation": 6, "meta": 2}, "parameters": 1000, "device": "cuda", "precision": "float16",
    "data_fingerprint": "0123456789abcdef", "versions": {"nnunetv2": "2.8.1"}, "seconds": 90.0, "warnings": [],
    "gpu_memory_bytes": 2**31, "options": {"method": "joint_policy", "epochs": 2, "seed": 0},
}  # fmt: skip


def summary(shift: float = 0.0) -> dict[str, Any]:
    """nnU-Net's summary.json of six cases."""
    values = np.random.default_rng(0).normal(0.8, 0.02, (6, 2)) + shift
    values[0, 1] = np.nan
    rows = [
        {"metrics": {str(k + 1): {"Dice": float(v), "TP": 1} for k, v in enumerate(row)},
         "prediction_file": f"/secret/results/fold_0/validation/patient_{n}.nii.gz",
         "reference_file": f"/secret/raw/patient_{n}.nii.gz"}
        for n, row in enumerate(values)
    ]  # fmt: skip
    return {"metric_per_case": rows, "mean": {}, "foreground_mean": {}}


def fold(folder: Path, run: Path | None = None, *, trainer: str = "nnUNetTrainerAutoAug", **facts: Any) -> Path:
    """A fold's folder as a training leaves it; with policies and samples of a run of the other host."""
    made = folder / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_0"
    (made / "validation").mkdir(parents=True)
    (made.parent / "dataset.json").write_text(json.dumps({"labels": LABELS | {"ignore": 3}}))
    (made / "validation" / "summary.json").write_text(json.dumps(summary()))
    if trainer.startswith("nnUNetTrainerAutoAug"):
        line = {"train_loss": -0.5, "loss": -0.5, "entropy_background": 0.9, "entropy_foreground": 0.8, "dice": 0.7}
        lines = [json.dumps({"epoch": e, **line}) for e in (0, 1)]
        (made / "autoaug.jsonl").write_text("\n".join(lines) + "\n")
        (made / "autoaug.json").write_text(json.dumps(FACTS | facts))
    if run is not None:
        for name in ("policy.json", "policy.jsonl", "samples.pt", "augmenters.pt"):
            if (run / name).exists():
                shutil.copy(run / name, made / name)
    return made


def told(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return found


def test_a_fold_is_told_as_a_run_is(runs: dict[str, Path], tmp_path: Path) -> None:
    made = fold(tmp_path, runs["joint_policy"])
    page = write_report(made)
    content, text = told(page), page.read_text(encoding="utf-8")
    assert (content["host"], content["method"]) == ("nnU-Net", "joint_policy")
    assert [row["name"] for row in content["dice"]["rows"]] == ["shell", "core", "mean"]
    assert content["dice"]["lacking"] == 1
    assert content["policy"]["course"]["foreground"]
    assert content["views"]["forwards"] == 8
    assert content["facts"]["gpu_memory_bytes"] == 2**31
    assert [s["epochs"] for c in content["curves"] for s in c["series"]][0] == [1, 2]  # counted from 1
    for words in ("Training report · nnU-Net", "Before and after", "Samples across epochs", "2.0 GiB", "nnunetv2",
                  "None was made by this host", "instead of 1; nnU-Net", "by <code>--data</code>"):  # fmt: skip
        assert words in text, words
    for secret in ("patient_", "secret", str(tmp_path)):
        assert secret not in text
        assert secret not in page.with_suffix(".json").read_text()


def test_a_fold_is_compared_with_plain_nnunets(runs: dict[str, Path], tmp_path: Path) -> None:
    mine, stock = fold(tmp_path, runs["joint_policy"]), fold(tmp_path, trainer="nnUNetTrainer")
    (stock / "validation" / "summary.json").write_text(json.dumps(summary(-0.05)))
    content = told(write_report(mine, against=[stock]))
    assert content["verdict"]["outcome"] == "gain"
    (row,) = content["against"]
    assert row["name"] == "nnUNetTrainer"
    assert row["mean"] == pytest.approx(0.05)
    assert "not known" in row["unsure"][0]
    with pytest.raises(ConfigError, match="is no training run"):  # a plain trainer's has nothing to report
        read_source(stock)


def test_generators_of_a_fold(runs: dict[str, Path], tmp_path: Path) -> None:
    name = "nnUNetTrainerAutoAugAdversarial"
    made = fold(tmp_path, runs["adversarial"], trainer=name, method="adversarial")
    content = told(write_report(made))
    assert [g["kind"] for g in content["generators"]] == ["affine", "deformation", "appearance"]
    assert content["policy"] is None


def test_folds_of_older_trainings_are_read_too(runs: dict[str, Path], tmp_path: Path) -> None:
    made = fold(tmp_path, runs["joint_policy"])
    for name in ("autoaug.json", "samples.pt", "policy.jsonl"):
        (made / name).unlink()
    (made / "checkpoint_final.pth").touch()
    content = told(write_report(made))
    assert content["method"] == "joint_policy"
    assert content["structures"] == ["shell", "core"]
    assert content["provenance"]["versions"]["torch"]
    assert "Probabilities were not kept by epoch (policy.jsonl)" in content["missing"]
    (made / "policy.json").unlink()
    for trainer, method in (("AutoAugAdversarial", "adversarial"), ("AutoAugTaskDriven", "task_driven"),
                            ("AutoAugGeneral", "general_adversarial"), ("AutoAug", "joint_policy")):  # fmt: skip
        other = made.parents[1] / f"nnUNetTrainer{trainer}__p__c"
        shutil.copytree(made.parent, other, dirs_exist_ok=True)
        assert read_source(other / "fold_0").method == method


def test_a_fold_that_is_not_validated_has_no_result(tmp_path: Path) -> None:
    made = fold(tmp_path)
    shutil.rmtree(made / "validation")
    content = told(write_report(made))
    assert content["dice"] is None
    assert "have not been evaluated" in content["verdict"]["sentences"][0]
    assert read_evaluation(made) is None


def test_regions_and_damaged_summaries(tmp_path: Path) -> None:
    made = fold(tmp_path)
    (made.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": [2]}}))
    content = summary()
    for row in content["metric_per_case"]:
        row["metrics"] = {"(1, 2)": row["metrics"]["1"], "(2,)": row["metrics"]["2"]}
    (made / "validation" / "summary.json").write_text(json.dumps(content))
    found = read_evaluation(made)
    assert found is not None
    assert found.classes == ("whole", "core")
    assert found.cases[0] == "patient_0"
    for damaged in ('{"metric_per_case": [{}]}', "[]", "{"):
        (made / "validation" / "summary.json").write_text(damaged)
        with pytest.raises(DataError, match=r"summary\.json"):
            read_evaluation(made)
