# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The commands: plain nnU-Net's through the one-file folder, and the launcher's; prediction without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nnunetv2.inference import predict_from_raw_data as predicting
from nnunetv2.run import run_training as training

from monai_autoaug.cli import main
from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.cli import nnunet_commands
from monai_autoaug.nnunet.export import export_plain
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

Pools = Callable[[], AbstractContextManager[None]]


def run(entry: Callable[[], None], *arguments: str) -> None:
    """One of nnU-Net's entry points, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nnUNetv2", *arguments])
        entry()


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[..., Any]) -> Any:
    return make_dataset(labels={"background": 0, "shell": 1, "core": 2}, cases=5)


@pytest.fixture(scope="module")
def trained(dataset: Any, forked_pools: Pools) -> Path:
    """Trained and validated by the launcher; the model folder."""
    with pytest.MonkeyPatch.context() as patch, forked_pools():
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.delenv("nnUNet_extTrainer", raising=False)
        runner = CliRunner()
        result = runner.invoke(nnunet_commands, ["train", str(dataset.number), "3d_fullres", "0", "-device", "cpu"])
        assert result.exit_code == 0, result.output
    return dataset.results / dataset.name / "nnUNetTrainerAutoAugAdversarial__nnUNetPlans__3d_fullres"


def test_the_launcher_trains_and_validates(trained: Path) -> None:
    fold = trained / "fold_0"
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert np.isfinite(summary["foreground_mean"]["Dice"])
    assert {p.name for p in fold.iterdir()} >= {
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "augmenters.pt",
        "autoaug.jsonl",
    }


@pytest.mark.parametrize("flag", ["--val", "--val_best", "--c"])
def test_plain_nnunet_validates_and_continues(
    dataset: Any, trained: Path, forked_pools: Pools, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """The entry point of nnUNetv2_train itself, with nothing but the variable set."""
    path = CliRunner().invoke(nnunet_commands, ["path"]).output.strip()
    monkeypatch.setenv("nnUNet_extTrainer", path)
    summary = trained / "fold_0" / "validation" / "summary.json"
    before = summary.read_text()
    summary.unlink()
    arguments = [str(dataset.number), "3d_fullres", "0", "-tr", "nnUNetTrainerAutoAugAdversarial", "-device", "cpu"]
    flags = ["--val", flag] if flag == "--val_best" else [flag]
    with forked_pools():
        run(training.run_training_entry, *arguments, *flags)
    assert summary.is_file()
    if flag != "--val_best":  # the final checkpoint was validated again, with the same result
        assert json.loads(summary.read_text())["foreground_mean"] == json.loads(before)["foreground_mean"]
    assert type(training.recursive_find_trainer_class_by_name(arguments[4])) is type


def test_pretrained_weights(dataset: Any, trained: Path, forked_pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(trained / "fold_0" / "checkpoint_final.pth")
    stopped = []

    def on_train_start(self: Any) -> None:
        stopped.append(self.network.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(Adversarial, "on_train_start", on_train_start)
    with pytest.raises(KeyboardInterrupt):
        launcher.train([str(dataset.number), "3d_fullres", "1", "-device", "cpu", "-pretrained_weights", weights])
    given = torch.load(weights, weights_only=False)["network_weights"]
    differing = {name for name, tensor in stopped[0].items() if not torch.equal(tensor, given[name])}
    assert differing
    assert all(".seg_layers." in name for name in differing)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_the_help_names_our_default_trainer(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(nnunet_commands, [command, "--help"])
    assert result.exit_code == 0
    assert "Default: nnUNetTrainerAutoAugAdversarial\n" in result.output
    assert "Default: nnUNetTrainer\n" not in result.output
    assert f"usage: monai-autoaug nnunet {command}" in result.output


def test_a_stopped_training_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_training_entry", stop)
    words = ["nnunet", "train", "4", "3d_fullres", "0", "-device", "cpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert f"stopped; go on with: monai-autoaug {' '.join(words)} --c" in result.output


def test_a_stopped_prediction_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predicting, "predict_entry_point", stop)
    words = ["nnunet", "predict", "-i", "in", "-o", "out", "-d", "4", "-c", "3d_fullres"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert f"stopped; go on with: monai-autoaug {' '.join(words)} --continue_prediction" in result.output


def predictions(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(folder.glob("*.nii.gz"))}


def test_prediction_by_both_commands(
    dataset: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataset.raw / dataset.name / "imagesTr"
    arguments = ["-i", str(source), "-d", str(dataset.number), "-c", "3d_fullres", "-f", "0", "-device", "cpu"]
    arguments += ["-npp", "0", "-nps", "0", "--disable_progress_bar"]
    launcher.predict([*arguments, "-o", str(tmp_path / "launcher")])
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    plain = [*arguments, "-o", str(tmp_path / "plain"), "-tr", "nnUNetTrainerAutoAugAdversarial"]
    run(predicting.predict_entry_point, *plain)
    a, b = predictions(tmp_path / "launcher"), predictions(tmp_path / "plain")
    assert len(a) == 5
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name])
        image = nib.load(source / name.replace(".nii.gz", "_0000.nii.gz"))
        predicted = nib.load(tmp_path / "plain" / name)
        assert predicted.shape == image.shape
        np.testing.assert_allclose(predicted.affine, image.affine, atol=1e-5)


PREDICT = """
import sys
sys.modules["monai_autoaug"] = None  # as on a machine that doesn't have it
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
predictor.predict_from_files_sequential(sys.argv[2], sys.argv[3], save_probabilities=True, overwrite=True)
"""


def test_the_plain_export_predicts_the_same_without_this_package(dataset: Any, trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(nnunet_commands, ["export-plain", str(trained), str(tmp_path)])
    assert result.exit_code == 0, result.output
    exported = Path(result.output.strip().splitlines()[-1])
    assert exported == tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert "autoaug" not in (exported / "plans.json").read_text()
    source = str(dataset.raw / dataset.name / "imagesTr")
    (tmp_path / "plain").mkdir()
    subprocess.run(
        [sys.executable, "-c", PREDICT, str(exported), source, str(tmp_path / "plain")], check=True, cwd=tmp_path
    )
    arguments = ["-i", source, "-o", str(tmp_path / "ours"), "-d", str(dataset.number), "-c", "3d_fullres", "-f", "0"]
    arguments += ["-device", "cpu", "-npp", "0", "-nps", "0", "--save_probabilities", "--disable_progress_bar"]
    launcher.predict(arguments)
    for file in sorted((tmp_path / "ours").glob("*.npz")):
        ours, plain = (np.load(tmp_path / name / file.name)["probabilities"] for name in ("ours", "plain"))
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    with pytest.raises(ConfigError, match="exists already"):
        export_plain(trained, tmp_path)


def test_the_folder_for_nnunet_holds_one_file() -> None:
    files = [p.name for p in launcher.ext_path().iterdir() if p.name != "__pycache__"]
    assert files == ["monai_autoaug_trainers.py"]


@pytest.mark.long
def test_the_plain_commands_in_processes_of_their_own(dataset: Any, trained: Path, tmp_path: Path) -> None:
    """nnUNetv2_train, --c and nnUNetv2_predict, with workers and nnU-Net's own spawned pools."""
    package = str(Path(launcher.__file__).parents[2])
    environment = os.environ | {
        "nnUNet_extTrainer": str(launcher.ext_path()), "nnUNet_n_proc_DA": "2", "PYTHONPATH": package,
    }  # fmt: skip
    train = [sys.executable, "-c", "from nnunetv2.run.run_training import run_training_entry as e; e()"]
    train += [
        str(dataset.number),
        "3d_fullres",
        "2",
        "-tr",
        "nnUNetTrainerAutoAugAdversarial",
        "-device",
        "cpu",
        "--npz",
    ]
    subprocess.run(train, check=True, env=environment)
    subprocess.run([*train, "--c"], check=True, env=environment)
    predict = [
        sys.executable,
        "-c",
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as e; e()",
    ]
    predict += ["-i", str(dataset.raw / dataset.name / "imagesTr"), "-o", str(tmp_path), "-d", str(dataset.number)]
    predict += ["-c", "3d_fullres", "-f", "2", "-tr", "nnUNetTrainerAutoAugAdversarial", "-device", "cpu"]
    subprocess.run([*predict, "-npp", "1", "-nps", "1"], check=True, env=environment)
    assert len(predictions(tmp_path)) == 5
