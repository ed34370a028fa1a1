# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What all commands do alike: examples, options from a file, exit codes, no traceback but with --debug, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from cli_helpers import SMALL, call
from click.testing import Result

from monai_autoaug.cli import COMMANDS, EXIT_CODES, main
from monai_autoaug.commands import habits
from monai_autoaug.commands.habits import Command
from monai_autoaug.engines.options import TrainOptions, find_precision
from monai_autoaug.engines.segmentation import NETWORKS
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods import METHODS
from monai_autoaug.precision import DTYPES

OWN = [name for name in COMMANDS if name != "nnunet"]  # whose options are its own


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]  # a group
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("name", OWN)
def test_the_help_has_examples_that_can_be_given(name: str) -> None:
    shown = call(name, "--help").output
    lines = shown.split("Examples:\n")[1].strip("\n").splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert len(line) <= 80, "a terminal would break it"
        first, own, *words = shlex.split(line)
        assert (first, own) == ("monai-autoaug", name)
        command(name).make_context(name, words, parent=click.Context(main), resilient_parsing=True)


@pytest.mark.parametrize("name", OWN)
def test_what_every_command_takes(name: str) -> None:
    found = command(name)
    assert isinstance(found, Command)
    flags = {flag for option in found.params for flag in option.opts}
    assert {"--config", "--debug"} <= flags
    if name in ("train", "predict", "compare", "demo"):  # what takes long, and runs on a GPU
        assert {"--dry-run", "--resume", "--device", "--amp"} <= flags
    if name in ("train", "demo"):
        assert "--seed" in flags


def example(parameter: click.Parameter) -> Any:
    """A value that a parameter takes, other than its default."""
    kind: Any = parameter.type
    if getattr(parameter, "is_flag", False):
        return True
    if parameter.name == "fill":
        return "0.75"  # a number or a word, which no type says
    if isinstance(kind, click.Choice):
        return kind.choices[-1]
    value = {"integer range": 99, "integer": 99, "float": 0.75, "path": "some/path"}.get(kind.name, "a=1")
    if getattr(parameter, "multiple", False):
        return [value, value]
    return [value] * parameter.nargs if parameter.nargs > 1 else value


@pytest.mark.parametrize("name", [name for name in OWN if name != "train"])  # train reads a file by itself
def test_every_option_may_come_from_a_file_and_the_command_line_wins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = command(name), list[dict[str, Any]]()
    monkeypatch.setattr(found, "callback", lambda **given: seen.append(given))
    taken = [p for p in found.params if p.expose_value and p.name not in ("dry_run", "resume", "list_arms")]
    told: dict[str, Any] = {str(p.name): example(p) for p in taken}
    arguments = [str(told[str(p.name)]) for p in taken if isinstance(p, click.Argument)]
    typed = list(arguments)
    for option in taken:
        value = told[str(option.name)]
        if getattr(option, "is_flag", False):
            typed.append(option.opts[-1])
        elif not isinstance(option, click.Argument):
            words = value if isinstance(value, list) else [value]
            for place in range(0, len(words), option.nargs):
                typed += [option.opts[0], *map(str, words[place : place + option.nargs])]
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps(told))  # JSON is YAML
    for words in (typed, ["--config", file], [*arguments, "--config", file]):
        result = call(name, *words)
        assert result.exit_code == 0, result.output
    assert seen[0] == seen[1] == seen[2]
    assert all(seen[0][key] not in (None, (), False) for key in told)
    wins = next(p for p in taken if p.opts[0].startswith("--") and not isinstance(p.type, click.Choice))
    call(name, "--config", file, *([wins.opts[0]] if getattr(wins, "is_flag", False) else [wins.opts[0], "98"]))
    assert (seen[3] == seen[1]) == getattr(wins, "is_flag", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("overlapp: 0.5", "there is no option 'overlapp'; there are run, images, output, "),
        ("overlapp: 0.5", "did you mean 'overlap'?"),
        ("overlap: [0.5, 0.25]", "overlap takes one value, got [0.5, 0.25]"),
        ("overwrite: 1", "overwrite must be true or false, got 1"),
        ("z: many", "Invalid value for '--z'"),
        ("resume: true", "there is no option 'resume'"),
        ("config: other.yaml", "there is no option 'config'"),
        ("[1]", "must hold options by name, got list"),
        ("a: [", "can't be read as YAML"),
    ],
)
def test_a_file_of_options_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "predict.yaml"
    file.write_text(content)
    result = call("predict", "run", "images", "out", "--config", file)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    gone = call("predict", "run", "images", "out", "--config", tmp_path / "gone.yaml")
    assert gone.exit_code == 2
    assert "gone.yaml" in gone.output


def test_a_file_says_what_report_compares_with(
    run: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list for an option that is repeated, and paths for arguments: all of a command in its file."""
    heard: list[Any] = []
    monkeypatch.setattr("monai_autoaug.report.html.write_report", lambda *given, **named: heard.append((given, named)))
    monkeypatch.setattr("monai_autoaug.engines.folder.read_json", lambda file: {
        "verdict": {"headline": "", "sentences": []}, "cautions": []})  # fmt: skip
    file = tmp_path / "report.yaml"
    file.write_text(f"run: {run[0]}\noutput: {tmp_path / 'page.html'}\nagainst: [runs/a, runs/b]\nnames: true\n")
    result = call("report", "--config", file)
    assert result.exit_code == 0, result.output
    assert heard[0][0] == (run[0], tmp_path / "page.html")
    assert heard[0][1] == {"data": None, "against": (Path("runs/a"), Path("runs/b")), "names": True}


def failing(error: BaseException) -> Any:
    def callback(**given: object) -> None:
        raise error

    return callback


def test_an_unforeseen_error_ends_with_a_message_and_a_file_that_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command("check"), "callback", failing(ZeroDivisionError("division by zero\nand more")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = call("check", "DATA")
    assert result.exit_code == 3
    (file,) = tmp_path.iterdir()
    assert f"error: ZeroDivisionError: division by zero. This was not foreseen: {file} says" in result.output
    assert "Traceback" not in result.output
    assert "and more" not in result.output
    text = file.read_text()
    assert "Traceback (most recent call last)" in text
    assert "in callback" in text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_says_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command("check"), "callback", failing(error))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = call("check", "DATA")
    assert result.exit_code == 2
    for word in ("there is too little memory", str(error), "--amp", "--patch-size", "--dry-run"):
        assert word in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--debug", "check", "nowhere"], ["check", "nowhere", "--debug"]])
def test_debug_shows_where_an_error_comes_from(words: list[str]) -> None:
    assert call("check", "nowhere").exit_code == 2
    result = call(*words)
    assert type(result.exception).__name__ == "DataError"


def test_debug_shows_a_traceback_on_the_terminal(tmp_path: Path) -> None:
    code = "from monai_autoaug.cli import main; main()"
    wrong = ["check", "DATA", "--config", "gone.yaml"]
    for words, shown in ((wrong, False), ([*wrong, "--debug"], True)):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert ("Traceback (most recent call last)" in done.stderr) == shown
        assert done.returncode == (1 if shown else 2)


def test_exit_codes_are_told_and_are_those_of_the_documentation() -> None:
    told = call("--help").output.split("Exit codes:")[1]
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("Exit codes:"))
    for code in EXIT_CODES:
        assert re.search(rf"^ +{code} ", told, re.MULTILINE)
        assert f"{code} " in line
    assert re.findall(r"\b\d+\b", line) == [str(code) for code in EXIT_CODES]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"amp": True}, "mixed"), ({"amp": False}, "float32"), ({}, "auto"), ({"precision": "bfloat16"}, "bfloat16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["train", "predict", "compare", "demo"])
def test_amp_chooses_the_precision(
    name: str, words: dict[str, Any], expected: str, run: tuple[Path, Result], data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Typed, and in a file."""
    seen: list[str] = []
    monkeypatch.chdir(tmp_path)

    def look(*given: Any, **named: Any) -> None:
        found = given[0] if given else None
        if isinstance(found, TrainOptions):
            seen.append(found.precision)
        elif name == "compare":
            seen.append(found.setting.options.get("precision", "auto"))  # type: ignore[union-attr]  # a Plan
        else:
            seen.append(named["precision"])
        raise KeyboardInterrupt

    for place in ("engines.run.train", "engines.prediction.predict", "evaluation.comparison.compare"):
        monkeypatch.setattr(f"monai_autoaug.{place}", look)
    arguments = {
        "train": [data], "predict": [run[0], data / "imagesTr", "out"], "demo": ["--cases", "8", "--size", "16"],
        "compare": ["--data", data, "--methods", "none,random", "--test-cases", "1", "--validation-cases", "1"],
    }[name]  # fmt: skip
    if "precision" in words and name in ("compare", "demo"):
        return  # which have no such option
    typed = {"amp": {True: ["--amp"], False: ["--no-amp"]}}.get(next(iter(words), ""), {})
    flags = typed.get(words.get("amp"), []) if "amp" in words else [w for k, v in words.items() for w in (f"--{k}", v)]
    assert call(name, *arguments, *flags).exit_code == 130
    (tmp_path / "options.yaml").write_text(json.dumps(words))
    assert call(name, *arguments, "--config", tmp_path / "options.yaml").exit_code == 130
    assert seen == [expected, expected]


def test_amp_and_precision_are_not_given_both(data: Path, tmp_path: Path) -> None:
    message = "--precision and --amp both choose the precision; give one of them"
    result = call("train", data, "--amp", "--precision", "float32")
    assert result.exit_code == 2
    assert message in result.output
    file = tmp_path / "options.yaml"
    file.write_text("amp: yes please\n")
    assert "amp must be true or false" in call("train", data, "--config", file).output
    nnunet = call("compare", "--data", data, "--methods", "none,nnunet", "--host", "nnunet", "--amp")
    assert nnunet.exit_code == 2
    assert "--amp is of host monai" in nnunet.output


def test_what_is_typed_wins_over_a_files_precision(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def look(options: TrainOptions, **given: object) -> None:
        seen.append(options.precision)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_autoaug.engines.run.train", look)
    file = tmp_path / "options.yaml"
    for content, words in (("amp: true", ["--precision", "float32"]), ("precision: float32", ["--amp"])):
        file.write_text(content)
        call("train", data, "--config", file, *words)
    assert seen == ["float32", "mixed"]


def test_mixed_precision_is_the_half_precision_that_suits_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (find_precision("mixed", cpu), find_precision("auto", cpu)) == ("bfloat16", "float32")
    for supported, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert find_precision("mixed", cuda) == find_precision("auto", cuda) == expected


def test_a_training_in_mixed_precision_is_one(data: Path, tmp_path: Path) -> None:
    result = call("train", data, "--output", tmp_path / "run", *SMALL, "--method", "none", "--amp")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == "bfloat16"
    images = data / "imagesTr"
    done = call("predict", tmp_path / "run", images, tmp_path / "out", "--device", "cpu", "--amp")
    assert done.exit_code == 0, done.output
    plain = call("predict", tmp_path / "run", images, tmp_path / "plain", "--device", "cpu", "--no-amp")
    assert plain.exit_code == 0, plain.output
    scores = tmp_path / "scores.json"
    assert call("evaluate", tmp_path / "out", tmp_path / "plain", "--json", scores).exit_code == 0
    assert Evaluation.load(scores).mean() > 0.5  # about the same, but computed otherwise


COMPLETE = "_MONAI_AUTOAUG_COMPLETE"


def completed(typed: str, tmp_path: Path) -> list[str]:
    """What click's own completion of bash offers behind what was typed."""
    words = typed.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from monai_autoaug.cli import main; main(prog_name='monai-autoaug')"], check=True,
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {COMPLETE: "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_completion_of_commands_options_and_values(tmp_path: Path) -> None:
    assert completed("monai-autoaug e", tmp_path) == ["evaluate", "export"]
    assert set(completed("monai-autoaug train --res", tmp_path)) == {"--resume"}
    assert completed("monai-autoaug export policy.json --to m", tmp_path) == ["monai", "markdown"]
    assert completed("monai-autoaug train --method ad", tmp_path) == ["adversarial"]
    assert completed("monai-autoaug demo --method j", tmp_path) == ["joint_policy"]
    assert completed("monai-autoaug train --network s", tmp_path) == ["segresnet"]
    assert completed("monai-autoaug train --precision b", tmp_path) == ["bfloat16"]
    assert completed("monai-autoaug compare --host n", tmp_path) == ["nnunet"]
    assert completed("monai-autoaug nnunet d", tmp_path) == ["doctor"]
    assert completed("monai-autoaug export --config gone.yaml --to t", tmp_path) == ["torchio"]
    assert set(habits.METHODS) == set(METHODS)
    assert set(habits.NETWORKS) == set(NETWORKS)
    assert set(habits.PRECISIONS) == {"auto", "mixed", *DTYPES}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_had_as_documented(shell: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    assert 'eval "$(_MONAI_AUTOAUG_COMPLETE=bash_source monai-autoaug)"' in page
    done = subprocess.run(
        [sys.executable, "-c", "from monai_autoaug.cli import main; main(prog_name='monai-autoaug')"], check=True,
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {COMPLETE: f"{shell}_source"},
    )  # fmt: skip
    assert f"{shell}_complete" in done.stdout
    assert "monai-autoaug" in done.stdout


def test_commands_import_nothing_heavy_before_they_run() -> None:
    """Help and completion come at once."""
    modules = [COMMANDS[name][0].partition(":")[0] for name in COMMANDS]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert all(import_module(module) for module in modules)
