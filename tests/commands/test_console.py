# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the progress bars show beside themselves."""

from __future__ import annotations

import io
import sys
import time

import pytest

from monai_autoaug.commands import console as making
from monai_autoaug.commands.console import bars
from monai_autoaug.engines.progress import Ended, Progress


def test_sentences_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as hear:
        hear(Progress("training", 0, 2, note="U = 3 [bold] updates"))
        hear(Progress("training", 1, 2))
    assert capsys.readouterr().out.count("U = 3 [bold] updates") == 1


def test_a_validated_epoch_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    dice = {"head [of the hook]": 0.8123, "gone": float("nan")}
    entropy = {"background": 1.0, "foreground": 0.924}
    with bars() as hear:
        hear(Progress("training", 1, 4, 1, 2, ended=Ended(1.0, 500.0, loss=0.9)))  # which was not validated
        hear(Progress("training", 4, 4, 2, 2, dice=0.8123, ended=Ended(61.25, 812.0, 2355.2, 0.4567, dice, entropy)))
        hear(Progress("training", 4, 4, 2, 2, dice=0.8123))
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in told if line.startswith("epoch")] == [
        "epoch 2/2: Dice 0.812 (head [of the hook] 0.812, gone -), loss 0.457, policy entropy background 1.00,"
        " foreground 0.92, 61.2 s, 812 MiB, 2.3 GiB on the GPU"
    ]


class _Stream(io.StringIO):
    """What is printed to, which says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "variables", "watched"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),  # a cell of a notebook
        (True, {"FORCE_COLOR": "1", "JPY_PARENT_PID": "1"}, False),  # "!" in a notebook
    ],
)
def test_only_a_terminal_gets_every_frame_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], watched: bool
) -> None:
    for name in ("FORCE_COLOR", "JPY_PARENT_PID", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    stream = _Stream(terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    console = making.make_console()
    monkeypatch.setattr(making, "console", console)
    with bars() as hear:
        for done in range(4):
            hear(Progress("training", done, 3))
            time.sleep(0.15)
    told = stream.getvalue()
    assert (told.count("training") > 1) is watched
    assert ("\x1b" in told) is watched
    assert watched or console.width == 120
