# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Configuration in YAML and on the command line: options, or a message; and never a Python object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from fuzz_helpers import ANYTHING, EXAMPLES, fuzz, mutated, spoilt_bytes
from hypothesis import strategies as st

from monai_autoaug.cli import main
from monai_autoaug.commands.train import _options, key_values
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import AutoAugError
from monai_autoaug.yaml_values import parse

SIGNS = ["a", ":", " ", "\n", "- ", "[", "{", "!!python/object:os.system", "&a", "*a", "|", "2020-13-45", "1e999", "0x",
         "<<", "?", "'", "12:99", ".nan", "\t", "%", "=" * 9]  # fmt: skip
WORDS = ["check", "train", "predict", "evaluate", "--json", "--workers", "--spacing", "--repair-to", "--fill", "min",
         "--resample", "--config", "--method", "-o", "1", "-1", "nan", ".", "none"]  # fmt: skip
OPTIONS = TrainOptions("data", "run", method="joint_policy", method_options={"floor": 0.01}).to_dict()


@EXAMPLES
def test_options_of_any_kind(examples: int) -> None:
    def one(values: Any) -> None:
        if not isinstance(values, dict):
            return
        try:
            made = TrainOptions.from_mapping(values)
        except AutoAugError:
            return
        assert TrainOptions.from_mapping(made.to_dict()) == made

    fuzz(examples, one, st.one_of(mutated(OPTIONS), st.dictionaries(st.text(max_size=9), ANYTHING, max_size=4)))


@EXAMPLES
def test_yaml_files(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "config.yaml"
    content = {"data": "d", "lr": 1e-3, "method_options": ["mode=affine"], "patch_size": [8, 8, 8]}
    whole = yaml.safe_dump(content).encode()

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            TrainOptions.from_mapping(_options({}, path))
        except AutoAugError:
            return

    words = st.lists(st.sampled_from(SIGNS))
    fuzz(examples, one, st.one_of(spoilt_bytes(whole), words.map("".join).map(str.encode), st.binary(max_size=50)))


@EXAMPLES
def test_values_on_the_command_line(examples: int) -> None:
    def one(text: str) -> None:
        try:
            key_values([text])
        except ValueError:
            return

    fuzz(examples, one, st.one_of(st.text(max_size=30), st.text(max_size=30).map("a={}".format)))


@EXAMPLES
def test_the_command_line_never_shows_a_traceback(tmp_path: Path, examples: int) -> None:
    """Whatever words it is given: a message and an exit code."""
    runner, before = CliRunner(), Path.cwd()
    words = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=9)), max_size=6)

    def one(given: list[str]) -> None:
        with runner.isolated_filesystem(temp_dir=tmp_path):
            result = runner.invoke(main, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), (given, result.exception)

    fuzz(examples, one, words)
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x", "aliases are not read"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 2020-13-45", "value that can't be"),
        ("[" * 5000, "very many levels"),
        ("a: " + "9" * 5000, "value that can't be"),
    ],
)
def test_yaml_that_is_refused(text: str, says: str) -> None:
    with pytest.raises(yaml.YAMLError, match=says):
        parse(text)
