# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A log of one JSON object an epoch, which a killed and resumed training continues without gaps or repetitions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_autoaug.memory import peak_memory
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.reading import MALFORMED
from monai_autoaug.writing import write_text

__all__ = ["append", "cut", "in_short", "memory"]


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line and see it onto the disk.

    >>> import tempfile
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> append(log, {"epoch": 0, "loss": 1.5}); log.read_text().splitlines()
    ['{"epoch": 0, "loss": 1.5}']
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({name: _plain(value) for name, value in line.items()}, allow_nan=False) + "\n")
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


def in_short(figures: Mapping[str, float], policy: object = None) -> str:
    """Figures of an epoch for nnU-Net's log, one line that can be read; the file of `append` has all of them.

    Args:
        figures: by name.
        policy: a training policy, of which only each class's own entropy is told, not those of all of its cascades.

    >>> from monai_autoaug.policies import TrainingPolicy
    >>> one = TrainingPolicy.preset("nnunet", ["all"])
    >>> in_short({"entropy_all": 0.5, "entropy_all_gamma": 0.25, "share_all": 1.0}, one)
    'entropy_all 0.5 (and 2 more in autoaug.jsonl)'
    """
    kept = dict(figures)
    if isinstance(policy, TrainingPolicy):
        entropies = {f"entropy_{name}" for name in policy.classes}
        for name in figures:
            if name.startswith(("entropy_", "share_")) and name not in entropies | {"entropy_views"}:
                del kept[name]
    text = ", ".join(f"{name} {value:.4g}" for name, value in kept.items())
    left = len(figures) - len(kept)
    return f"{text} (and {left} more in autoaug.jsonl)" if left else text


def memory(device: torch.device) -> str:
    """The most memory so far, for nnU-Net's log.

    Args:
        device: that the trainer computes on.

    >>> memory(torch.device("cpu"))
    '(memory at most ... MiB)'
    """
    peaks = peak_memory(device)
    told = [f"{peaks['host_mib']:.0f} MiB"] if peaks["host_mib"] is not None else []
    told += [f"{peaks['device_mib']:.0f} MiB on the GPU"] if peaks["device_mib"] is not None else []
    return f"(memory at most {', '.join(told) or 'unknown'})"


def _plain(value: Any) -> Any:
    """None, as JSON has it, for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _epoch(line: str, otherwise: int) -> int:
    """The epoch of a line, or ``otherwise`` where it is no whole line."""
    try:
        return int(json.loads(line)["epoch"])
    except MALFORMED:
        return otherwise
