# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The command line: its options, what it says, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cli_helpers import SMALL, call
from click.testing import Result

from monai_autoaug import __version__
from monai_autoaug.cli import COMMANDS
from monai_autoaug.commands.train import _spellings
from monai_autoaug.commands.train import train as train_command
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.parts import split_cases
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods import METHODS


def test_help_and_version() -> None:
    shown = call("--help").output
    listed = shown.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert "Not a medical device" in shown
    assert call("--version").output.strip() == f"monai-autoaug, version {__version__}"
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0
    assert call("fly").exit_code == 2


def told_default(option: Any, method: str) -> str | None:
    """What the help says of a method: "A with METHOD, else B", or one value for all."""
    told = re.search(r"\[default: (.+)\]", getattr(option, "help", "") or "")
    if told is None:
        return None
    special = dict(reversed(part.split(" with ")) for part in told[1].split(", ") if " with " in part)
    return special.get(method, told[1].split(", ")[-1].removeprefix("else "))


@pytest.mark.parametrize("method", METHODS)
def test_the_help_tells_the_true_defaults_of_all_options(method: str) -> None:
    options: dict[str | None, Any] = {p.name: p for p in train_command.params}
    defaults = TrainOptions("data", "run", method=method)
    for field in fields(TrainOptions):
        assert field.name in options
        value = getattr(defaults, field.name)
        if isinstance(value, bool):  # a switch says by itself that it is off
            assert options[field.name].is_flag
            assert value is False
        elif isinstance(value, int | float | str) and field.name != "method":
            assert told_default(options[field.name], method) == str(value), field.name
    assert told_default(options["meta_cases"], method) == str(defaults.meta_share)
    assert told_default(options["method"], method) == TrainOptions("data", "run").method


def test_predict_and_evaluate(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    folder, _ = run
    result = call("predict", folder, data / "imagesTr", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "wrote 5 predictions" in result.output
    for file in (data / "imagesTr").iterdir():
        image, prediction = nib.load(file), nib.load(tmp_path / "out" / file.name)
        np.testing.assert_array_equal(prediction.affine, image.affine)
        assert prediction.shape == image.shape
    result = call("evaluate", tmp_path / "out", data, "--cases", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert "5 cases" in result.output
    assert len(Evaluation.load(tmp_path / "out.json").cases) == 5
    subset = call("evaluate", folder / "validation", data)
    assert "3 labelled cases have no prediction" in subset.output


def test_check_finds_what_is_wrong(data: Path, tmp_path: Path) -> None:
    good = call("check", data)
    assert good.exit_code == 0, good.output
    assert "5 labelled and 1 other cases (decathlon)" in good.output
    regions = call("check", write_phantom(tmp_path / "r", cases=2, size=20, layout="nnunet", regions=True, ignore=True))
    assert "hook (1, 2), head (1), round (3), unknown (4)" in " ".join(regions.output.split())
    broken = write_phantom(tmp_path / "broken", cases=3, size=20)
    file = broken / "labelsTr" / "phantom_001.nii.gz"
    label = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj) + 7, label.affine), file)
    found = call("check", broken, "--json", tmp_path / "findings.json")
    assert found.exit_code == 1
    assert "phantom_001" in found.output
    assert json.loads((tmp_path / "findings.json").read_text())["counts"]["refuse"] > 0
    refused = call("train", broken, "--output", tmp_path / "run", *SMALL)
    assert refused.exit_code == 2
    assert "phantom_001" in refused.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "Give the folder: monai-autoaug train DATA"),
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "DATA", "--epoch", "3"], "--epochs"),
        (["train", "DATA", "--method", "adversarail"], "; did you mean 'adversarial'?"),
        (["train", "DATA", "--method-option", "fidelty=paper"], "; did you mean 'fidelity'?"),
        (["train", "DATA", "--network", "segresnt"], "; did you mean 'segresnet'?"),
        (["train", "DATA", "--network-option", "chanels=[4,8]"], "; did you mean 'channels'?"),
        (["train", "DATA", "--output", "RUN"], "--resume --output"),
        (["train", "DATA", "--method", "magic"], "there is no method 'magic'; choose one of adversarial, "),
        (["train", "DATA", "--method-option", "gamma"], "is no key=value"),
        (["train", "DATA", "--method-option", "gamma=1"], "method 'adversarial' has no option 'gamma'"),
        (["train", "DATA", "--method-option", "mode=afine"], "mode must be 'combined' or one of affine,"),
        (["train", "DATA", "--method-option", "width=0"], "width"),
        (["train", "DATA", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "DATA", "--validation-cases", "many"], "is no number"),
        (["train", "nowhere"], "nowhere: is not a folder"),
        (["train", "DATA", "--output", "FILE/run"], "FILE/run can't be written (Not a directory); choose a folder"),
        (["train", "DATA", "--cache", "FILE/cache"], "cache: FILE/cache can't be written (Not a directory)"),
        (["predict", "RUN", "DATA/imagesTr", "FILE/out"], "output: FILE/out can't be written (Not a directory)"),
        (["predict", "RUN", "DATA/imagesTr", "out/x.png"], "x.png is neither a folder nor a name that ends in .nii"),
        (["predict", "RUN", "DATA/imagesTr", "FILE"], "FILE is neither a folder nor a name that ends in .nii"),
        (["predict", "RUN", "DATA/imagesTr", "RUN/validation"], "a prediction is there already; give another output"),
        (["predict", "RUN", "DATA", "out"], "the folders ['imagesTr', 'imagesTs', 'labelsTr']. To do: give the one"),
        (["predict", "DATA", "DATA/imagesTr", "out"], "is no training run (it holds no config.json); give the folder"),
        (["train", "--resume"], "which run? Give its folder"),
        (["train", "--resume", "--output", "RUN", "--epochs", "9"], "leave out epochs"),
        (["train", "--resume", "--output", "RUN"], "this run has ended"),
        (["predict", "nowhere", "DATA", "out"], "nowhere: is no training run (there is no such folder)"),
        (["predict", "RUN", "nowhere", "out"], "came nothing (it does not exist). To do: check the path"),
        (["evaluate", "nowhere", "DATA"], "holds no prediction"),
        (["check", "nowhere"], "is not a folder"),
        (["check", "DATA/imagesTr"], "a folder of images or of labels, not a data set. To do: give the folder above"),
        (["check", "DATA", "--json", "FILE/x.json"], "--json: FILE can't be written (Not a directory)"),
        (["check", "DATA", "--json", "DATA"], "is a folder; give the name of a file"),
        (["evaluate", "RUN/validation", "DATA", "--json", "FILE/x.json"], "--json: FILE can't be written"),
        (["train", "DATA", "--validation-cases", "5"], "no training case is left: 5 cases, 5 of them for validation"),
        (["demo", "--method", "magic"], "there is no method 'magic'"),
    ],
)
def test_faults_are_one_message_and_exit_code_2(
    words: list[str], message: str, run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    for module, work in (("data.audit", "_audit_case"), ("evaluation.evaluator", "_pair")):
        whole = import_module(f"monai_autoaug.{module}")
        monkeypatch.setattr(whole, work, lambda *given: pytest.fail("the work was begun"))
    names = {"DATA": data, "DATA/imagesTr": data / "imagesTr", "RUN": run[0], "RUN/validation": run[0] / "validation"}
    result = call(*(names.get(w, w) for w in words))
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_numbers_in_scientific_notation_are_numbers(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("learning_rate: 2e-3\nmethod_options: {learning_rate_generator: 1E-4}\n")
    words = ["train", data, "--config", file, "--output", tmp_path / "run", *SMALL, "--epochs", 1]
    words += ["--normalisation", "ct"]
    result = call(*words, "--method-option", "learning_rate_discriminator=3e-4", "--method-option", "noise_size=8")
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["learning_rate"] == 0.002
    assert options["normalisation"] == ["ct"]
    # options on the command line win over the file's, as a whole
    assert options["method_options"] == {"learning_rate_discriminator": 0.0003, "noise_size": 8}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("--debug", "check", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "DataError"


def test_options_from_a_file_and_the_command_line(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        f"data: {data}\noutput: {tmp_path / 'a'}\nmethod: none\nepochs: 5\niterations: 2\nvalidation_cases: 2\n"
        "device: cpu\npatch_size: [16, 16, 16]\nnetwork_options: {channels: [4, 8]}\n"
    )
    result = call("train", "--config", file, "--epochs", 1)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["options"]["epochs"] == 1
    assert config["options"]["method"] == "none"
    assert config["patch_size"] == [16, 16, 16]
    file.write_text("epoch: 5\ndata: x\noutput: y\n")
    told = call("train", "--config", file).output
    assert "unknown training options: epoch" in told
    assert "did you mean 'epochs'?" in told
    file.write_text("- 1\n")
    assert "must hold options by name" in call("train", "--config", file).output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-3", {"learning_rate": 1e-3}),
        ("learning_rate: 1e-3", {"learning_rate": 1e-3}),
        ("batch-size: 2\npatch-size: [8, 8, 8]", {"batch_size": 2, "patch_size": [8, 8, 8]}),
        ("method-option: width=8", {"method_options": {"width": 8}}),
        ("method_option: [width=8, mode=affine]", {"method_options": {"width": 8, "mode": "affine"}}),
        ("network-option: {channels: [4, 8]}", {"network_options": {"channels": [4, 8]}}),
        ("lr: 1e-3\nlearning_rate: 1e-3", "lr and learning_rate are one option; give one of them"),
        ("method-option: width", "method-option: 'width' is no key=value"),
        ("config: x", "unknown training options: config"),
    ],
)
def test_a_file_may_spell_options_as_the_command_line_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: object
) -> None:
    seen: list[TrainOptions] = []

    def look(options: TrainOptions, **given: object) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_autoaug.engines.run.train", look)
    file = tmp_path / "options.yaml"
    file.write_text(text + "\n")
    result = call("train", tmp_path, "--config", file, "--output", tmp_path / "run")
    if isinstance(expected, str):
        assert result.exit_code == 2
        assert expected in result.output
    else:
        assert isinstance(expected, dict)
        assert result.exit_code == 130, result.output
        assert {name: seen[0].to_dict()[name] for name in expected} == expected


def test_every_option_of_the_command_line_has_its_spelling_in_a_file() -> None:
    names = {field.name for field in fields(TrainOptions)}
    for option in train_command.params:
        for spelling in option.opts:
            if option.name in names:
                assert _spellings()[spelling.removeprefix("--").replace("-", "_")] == option.name


def test_one_bad_image_does_not_stop_the_others(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(data / "imagesTr", images)
    first, second, *good = sorted(images.iterdir())
    first.write_bytes(first.read_bytes()[:500])
    image = nib.load(second)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), second)
    result = call("predict", run[0], images, out, "--device", "cpu")
    assert result.exit_code == 1, result.output
    assert "wrote 3 of 5 predictions" in result.output
    assert "phantom_000" in result.output
    assert "truncated or damaged" in result.output
    assert "holds NaN" in result.output
    assert sorted(f.name for f in out.iterdir()) == [f.name for f in good]
    before = {f: f.stat().st_mtime_ns for f in out.iterdir()}
    refused = call("predict", run[0], data / "imagesTr", out, "--device", "cpu")
    assert refused.exit_code == 2
    assert "phantom_002.nii.gz and 2 more: a prediction is there already" in refused.output
    assert {f: f.stat().st_mtime_ns for f in out.iterdir()} == before
    replaced = call("predict", run[0], data / "imagesTr", out, "--device", "cpu", "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert len(list(out.iterdir())) == 5


def test_torch_says_nothing_of_its_jit_within_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI and nnU-Net bring it about; it is no matter of the library, whose import changes no filter."""
    command = import_module("monai_autoaug.commands.check").check

    def speak(*given: object, **named: object) -> None:
        warnings.warn("`torch.jit.interface` is deprecated. Please use `torch.compile`.", FutureWarning, stacklevel=1)
        warnings.warn("`torch.load` is deprecated.", FutureWarning, stacklevel=1)

    monkeypatch.setattr(command, "callback", speak)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        call("check", "DATA")
        assert warnings.filters == filters
    assert [str(w.message) for w in heard] == ["`torch.load` is deprecated."]


def test_the_demo_splits_few_cases_too_and_a_run_says_how(
    run: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "5 cases: 3 train the network, 2 validate it" in run[1].output
    seen: list[TrainOptions] = []

    def look(options: TrainOptions, **given: object) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_autoaug.engines.run.train", look)
    call("demo", "--cases", 8, "--size", 16, "--method", "joint_policy", "--output", tmp_path / "demo")
    parts = split_cases(seen[0], read_datalist(tmp_path / "demo" / "data"))
    assert [len(part) for part in (parts.train, parts.meta, parts.validation)] == [4, 2, 2]
    assert "A quarter of them validate" in " ".join(call("demo", "--help").output.split())
