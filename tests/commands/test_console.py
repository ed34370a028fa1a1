# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the progress bars show beside themselves."""

from __future__ import annotations

import pytest

from monai_autoaug.commands.console import bars
from monai_autoaug.engines.progress import Progress


def test_sentences_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as hear:
        hear(Progress("training", 0, 2, note="U = 3 [bold] updates"))
        hear(Progress("training", 1, 2))
    assert capsys.readouterr().out.count("U = 3 [bold] updates") == 1
