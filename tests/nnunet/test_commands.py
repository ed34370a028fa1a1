# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The commands: plain nnU-Net's through the one-file folder, the launcher's, doctor, and the plain export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nnunetv2.inference import predict_from_raw_data as predicting
from nnunetv2.run import run_training as training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.cli import nnunet_commands
from monai_autoaug.nnunet.diagnosis import doctor
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


@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_a_plain_trainer_resumes_from_the_export(tiny: Any, tmp_path: Path, optimizer: str | None) -> None:
    trainer = tiny.trainer(Adversarial, optimizer=optimizer)
    trainer.run_training()
    exported = export_plain(trainer.output_folder_base, tmp_path)
    plans = deepcopy(tiny.plans) | {"continue_training": True}
    plain = nnUNetTrainer(plans, "3d_fullres", 0, deepcopy(tiny.json), torch.device("cpu"))
    plain.load_checkpoint(str(exported / "fold_0" / "checkpoint_final.pth"))
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, trainer.network.state_dict()[name])
    momentum = {
        name: trainer.optimizer.state[p].get("momentum_buffer") for name, p in trainer.network.named_parameters()
    }
    for name, p in plain.network.named_parameters():
        state = plain.optimizer.state[p]
        if optimizer is None and momentum[name] is not None:
            assert torch.equal(state["momentum_buffer"], momentum[name]), name
        else:
            assert not state
    plain.num_epochs, plain.num_iterations_per_epoch, plain.num_val_iterations_per_epoch = 2, 1, 1
    plain.run_training()
    assert plain.current_epoch == 2


def test_what_can_not_be_exported_is_named_and_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(folder: Path, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            export_plain(folder, out)
        assert not out.exists()

    refused(tmp_path, ConfigError, "is no model folder")
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    refused(folder, ConfigError, "expected a file plans.json")
    (folder / "plans.json").write_text('{"configurations": ')
    refused(folder, ConfigError, "plans.json: can't be read")
    (folder / "plans.json").write_text('{"configurations": {}}')
    refused(folder, ConfigError, "expected a file dataset.json")
    (folder / "dataset.json").write_text("{}")
    refused(folder, CheckpointError, "train first")
    good = {"network_weights": {}, "autoaug": {"plain_trainer": "nnUNetTrainer"}}
    torch.save(good, fold / "checkpoint_best.pth")
    torch.save({"network_weights": {}}, fold / "checkpoint_final.pth")
    refused(folder, CheckpointError, "checkpoint_final.pth: was not written by a trainer of monai_autoaug")
    torch.save(good | {"autoaug": {"plain_trainer": "nnUNetTrainerBN"}}, fold / "checkpoint_final.pth")
    refused(folder, CheckpointError, "several trainers: nnUNetTrainer .*nnUNetTrainerBN")
    (fold / "checkpoint_final.pth").write_bytes((fold / "checkpoint_best.pth").read_bytes()[:300])
    refused(folder, CheckpointError, "checkpoint_final.pth: can't be read")


def test_an_export_is_whole_or_not_there(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(Adversarial, fold=3)
    trainer.fold = 0
    trainer.run_training()
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    killed = tmp_path / f".{name}.part"  # what an export that was killed has left
    (killed / "fold_9").mkdir(parents=True)
    seen = []

    def full(content: Any, file: str, **options: Any) -> None:
        seen.append({p.name for p in tmp_path.iterdir()})
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("monai_autoaug.nnunet.export.save_json", full)
        with pytest.raises(OSError, match="no space left"):
            export_plain(trainer.output_folder_base, tmp_path)
    assert seen == [{killed.name}]  # beside its place until it is whole
    assert list(tmp_path.iterdir()) == []
    exported = export_plain(trainer.output_folder_base, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    found = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json", "fold_3/checkpoint_final.pth"} <= found


def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in [n for n in sys.modules if "primus" in n or n.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_launcher_needs_no_torchvision(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torchvision(monkeypatch)
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    with pytest.raises(ImportError, match="torchvision"):
        recursive_find_trainer_class_by_name("nnUNetTrainerAutoAugAdversarial")
    assert launcher.find_trainer("nnUNetTrainerAutoAugAdversarial") is Adversarial
    without_torchvision(monkeypatch)
    found = {d.check: d for d in doctor()}
    assert found["torchvision"].severity == "warning"
    assert "pip install torchvision" in found["torchvision"].remedy
    search = found["plain nnU-Net finds nnUNetTrainerAutoAugAdversarial"]
    assert search.severity == "error"
    assert "torchvision" in search.found


def test_the_doctor_is_content_when_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    assert {d.check: d.found for d in doctor() if d.severity != "ok"} == {}
    result = CliRunner().invoke(nnunet_commands, ["doctor"])
    assert result.exit_code == 0
    assert "error" not in result.output


def test_the_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(check: str) -> Any:
        return {d.check: d for d in doctor()}[check]

    package = launcher.ext_path().parents[1]
    own = tmp_path / "monai_autoaug" / "nnunet"  # a user's folder may be called so
    (own / "ext").mkdir(parents=True)
    variable = "nnUNet_extTrainer"
    for value, severity, word in (
        (None, "warning", "not set"),
        (str(tmp_path / "nowhere"), "error", "no folder"),
        (str(package.parent), "error", "whole packages"),
        (str(package), "error", "the package itself"),
        (str(package / "nnunet"), "error", "the package itself"),
        (str(tmp_path), "warning", "doesn't name"),
        (str(package / "data"), "error", "the package itself"),
        (os.pathsep.join([str(tmp_path), str(launcher.ext_path())]), "ok", str(tmp_path)),
        (os.pathsep.join([str(own), str(launcher.ext_path())]), "ok", str(own)),
    ):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        diagnosis = found(variable)
        assert (diagnosis.severity, word in diagnosis.found) == (severity, True), diagnosis
        assert ("monai-autoaug nnunet path" in diagnosis.remedy) == (severity != "ok")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nowhere"))
    assert found("nnUNet_results").severity == "error"
    monkeypatch.delenv("nnUNet_raw")
    assert found("nnUNet_raw").found == "not set"
    (tmp_path / "options.yaml").write_text("epoch: 3")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    assert "no option 'epoch'" in found("MONAI_AUTOAUG_CONFIG").found
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.7.0")
    assert "came with 2.8" in found("nnunetv2").remedy
    assert CliRunner().invoke(nnunet_commands, ["doctor"]).exit_code == 1


def test_the_doctor_fails_where_plain_nnunet_finds_no_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing else wrong: no variable, or one that names another folder."""
    for value in (None, str(tmp_path)):
        if value is None:
            monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        else:
            monkeypatch.setenv("nnUNet_extTrainer", value)
        errors = [d for d in doctor() if d.severity == "error"]
        assert [d.check for d in errors] == ["plain nnU-Net finds nnUNetTrainerAutoAugAdversarial"]
        assert "Could not find requested nnunet trainer" in errors[0].found
        assert "monai-autoaug nnunet train" in errors[0].remedy
        assert CliRunner().invoke(nnunet_commands, ["doctor"]).exit_code == 1


WRONG = [
    ("method: magic", "method must be one of"),
    ("method_options: {mode: afine}", "mode must be 'combined' or one of affine"),
    ("method: random\nmethod_options: {mode: afine}", "mode must be 'combined' or one of affine"),
    ("method_options: {fidelity: papr}", "fidelity must be"),
    ("method_options: {discriminator: 'no'}", "an option discriminator (bool), which can't be 'no'"),
    ("method_options: {warm_up: 2.5}", "an option warm_up (int | None), which can't be 2.5"),
    ("method_options: {learning_rate_generator: 1e-4}", "as in 1.0e-4"),
    ("method_options: {learning_rate_generator: -0.1}", "Invalid learning rate"),
    ("method_options: {bounds: {affine: {rotation: wide}}}", "rotation"),
    ("lr: 1e-2", "lr must be a number of at least 0; got '1e-2' (YAML takes that for text"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_values_are_reported_before_anything_is_prepared(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """By the doctor, and by the trainer before it makes its folder."""
    (tmp_path / "options.yaml").write_text(text)
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    found = {d.check: d for d in doctor()}["MONAI_AUTOAUG_CONFIG"]
    assert (found.severity, message in found.found) == ("error", True), found
    monkeypatch.setattr(nnUNetTrainer, "__init__", lambda *given: pytest.fail("nnU-Net was started"))
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError) as error:
        tiny.trainer(Adversarial)
    assert message in str(error.value)
    assert torch.equal(state, torch.random.get_rng_state())


def test_right_values_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(file))
    for text in ("method: none", "method: random", "method_options: {fidelity: paper, weight_prior: 1, balance: null}"):
        file.write_text(text)
        assert {d.check: d for d in doctor()}["MONAI_AUTOAUG_CONFIG"].severity == "ok"


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
