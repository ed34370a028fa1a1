# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Calls of the command line within this process, and options of a training that takes a second."""

from __future__ import annotations

from click.testing import CliRunner, Result

from monai_autoaug.cli import main

SMALL = ["--epochs", "2", "--iterations", "2", "--validation-cases", "2", "--device", "cpu",
         "--network-option", "channels=[4, 8, 8]"]  # fmt: skip


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], env={"COLUMNS": "200"})
