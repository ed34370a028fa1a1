# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A prediction that was stopped says with which command it goes on, and that command makes what is missing."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import pytest
from cli_helpers import call
from click.testing import Result


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_the_command_that_is_told_makes_the_rest(
    stop: BaseException, run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", run[0], data / "imagesTr"]
    assert call(*words, tmp_path / "whole", "--device", "cpu", "--overlap", "0.25").exit_code == 0
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    original, calls, output = os.fsync, [], tmp_path / "out of the way"

    def failing(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise stop
        original(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        result = call(*words, output, "--device", "cpu", "--overlap", "0.25")
    assert result.exit_code == (2 if isinstance(stop, OSError) else 130)
    assert len(list(output.iterdir())) == 2
    told = " ".join(result.output.split())
    assert "Traceback" not in told
    command = shlex.split(told.partition("go on with: ")[2])
    assert command[:2] == ["monai-autoaug", "predict"]
    assert command[-5:] == ["--device", "cpu", "--overlap", "0.25", "--resume"]
    result = call(*command[1:])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "2 of 5 predictions are there already and stay" in told
    assert "5 predictions in" in told
    assert {file.name: file.read_bytes() for file in output.iterdir()} == wanted


def test_what_was_being_replaced_can_not_be_gone_on_with(
    run: tuple[Path, Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", run[0], data / "imagesTr", tmp_path / "out", "--device", "cpu"]
    assert call(*words).exit_code == 0
    assert call(*words, "--overwrite", "--resume").exit_code == 2
    result = call(*words)
    assert result.exit_code == 2
    assert "make only those that are missing (--resume)" in " ".join(result.output.split())

    def stop(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    result = call(*words, "--overwrite")
    assert result.exit_code == 130
    assert "go on with" not in result.output
