# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The doctor, and options that are found wrong before anything is prepared."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.cli import nnunet_commands
from monai_autoaug.nnunet.diagnosis import _check_options, doctor
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial


def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in [n for n in sys.modules if "primus" in n or n.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_launcher_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert result.output.splitlines()[-1] == "all is well"
    lines = [line.split() for line in result.output.splitlines()]
    assert ["ok", "nnUNet_extTrainer:", str(launcher.ext_path())] in lines  # whole, however long


def test_the_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(check: str) -> Any:
        return {d.check: d for d in doctor()}[check]

    package = launcher.ext_path().parents[1]
    own = tmp_path / "monai_autoaug" / "nnunet"  # a user's folder may be called so
    (own / "ext").mkdir(parents=True)
    variable = "nnUNet_extTrainer"
    for value, severity, word in (
        (None, "warning", "not set"),
        (str(tmp_path / "nowhere"), "error", "there is no such folder"),
        (str(package.parent), "error", "whole packages"),
        (str(package), "error", "lies in the package itself"),
        (str(package / "nnunet"), "error", "lies in the package itself"),
        (str(tmp_path), "warning", "does not list"),
        (str(package / "data"), "error", "lies in the package itself"),
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


def test_the_doctor_tells_once_of_a_variable_that_the_launcher_does_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With nothing else wrong: no variable, or one that names another folder."""
    for value in (None, str(tmp_path)):
        if value is None:
            monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        else:
            monkeypatch.setenv("nnUNet_extTrainer", value)
        (found,) = [d for d in doctor() if d.severity != "ok"]
        assert (found.check, found.severity) == ("nnUNet_extTrainer", "warning")
        assert "with monai-autoaug nnunet" in found.remedy
        result = CliRunner().invoke(nnunet_commands, ["doctor"])
        assert result.exit_code == 0
        last = result.output.splitlines()[-1]
        assert last.startswith("1 of ")
        assert last.endswith("which monai-autoaug nnunet train and predict can do without")


def test_the_doctor_fails_where_plain_nnunet_should_find_a_trainer_and_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def search(name: str) -> None:
        raise RuntimeError("Could not find requested nnunet trainer")

    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    monkeypatch.setattr("nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name", search)
    errors = [d for d in doctor() if d.severity == "error"]
    assert [d.check for d in errors] == ["plain nnU-Net finds nnUNetTrainerAutoAugAdversarial"]
    assert "with monai-autoaug nnunet" in errors[0].remedy
    assert CliRunner().invoke(nnunet_commands, ["doctor"]).exit_code == 1


@pytest.mark.parametrize(("name", "ours"), [("nnUNetTrainerAutoAug", True), ("nnUNetTrainerAutoAugmented", False)])
def test_the_doctor_finds_copies_of_our_trainers(
    name: str, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net would take them instead of ours; others of a similar name are none of our business."""
    (tmp_path / "copied.py").write_text(f"class {name}(nnUNetTrainer):\n    pass\n")
    monkeypatch.setattr(importlib.import_module("nnunetv2.training.nnUNetTrainer"), "__path__", [str(tmp_path)])
    found = {d.check: d for d in doctor()}["copies of our trainers in nnunetv2"]
    assert (found.severity == "error") == ours


WRONG = [
    ("method: magic", "method must be one of"),
    ("method_options: {mode: afine}", "mode must be 'combined' or one of affine"),
    ("method: random\nmethod_options: {mode: afine}", "mode must be 'combined' or one of affine"),
    ("method_options: {fidelity: papr}", "fidelity must be"),
    ("method_options: {discriminator: 'no'}", "discriminator must be true or false, got 'no'"),
    ("method_options: {warm_up: 2.5}", "warm_up must be a whole number or None, got 2.5"),
    ("method_options: {learning_rate_generator: -0.1}", "Invalid learning rate"),
    ("method_options: {bounds: {affine: {rotation: wide}}}", "rotation"),
    ("lr: fast", "lr must be a number of at least 0; got 'fast'"),
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
    options = "method_options: {fidelity: paper, weight_prior: 1, balance: null}"
    for text in ("method: none", "method: random", options, "lr: 1e-2"):
        file.write_text(text)
        assert {d.check: d for d in doctor()}["MONAI_AUTOAUG_CONFIG"].severity == "ok"


OWN = [
    ("method_options: {update_every: 5}", "ok", "for methods joint_policy, bilevel"),
    ("method_options: {unlabelled: false}", "ok", "method task_driven"),
    ("method: task_driven\nmethod_options: {unlabelled: false}", "ok", "method task_driven"),
    ("epochs: 2000", "ok", "for methods none, random, adversarial, task_driven"),
    ("method: bilevel\nmethod_options: {unlabelled: false}", "error", "method 'bilevel' has no option 'unlabelled'"),
    ("method_options: {updat_every: 5}", "error", "has no option 'updat_every'"),
    ("epochs: 2\nmethod: task_driven", "error", "3 phases"),
]


@pytest.mark.parametrize(("text", "severity", "told"), OWN)
def test_a_file_may_leave_the_method_to_the_trainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, severity: str, told: str
) -> None:
    (tmp_path / "options.yaml").write_text(text)
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    found = _check_options()
    assert (found.severity, told in found.found) == (severity, True), found
