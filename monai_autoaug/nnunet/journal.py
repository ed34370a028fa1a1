# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A log of one JSON object an epoch, which a killed and resumed training continues without gaps or repetitions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.writing import write_text

__all__ = ["append", "cut"]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line and see it onto the disk.

    >>> import tempfile
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> append(log, {"epoch": 0, "loss": 1.5}); log.read_text().splitlines()
    ['{"epoch": 0, "loss": 1.5}']
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut(path: Path, epoch: int) -> None:
    """Keep the lines of the epochs before ``epoch``; what a killed process wrote in part goes too.

    >>> import tempfile
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> append(log, {"epoch": 0}); append(log, {"epoch": 1}); cut(log, 1); log.read_text().splitlines()
    ['{"epoch": 0}']
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    write_text(path, "".join(line + "\n" for line in lines if _epoch(line, epoch) < epoch))


def _epoch(line: str, otherwise: int) -> int:
    """The epoch of a line, or ``otherwise`` where it is no whole line."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return otherwise
