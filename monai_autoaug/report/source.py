# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the folder of a training says of it, whichever host has written it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_autoaug.evaluation import Evaluation
from monai_autoaug.methods.sample_file import Kept
from monai_autoaug.policies import Policies

__all__ = ["Source", "file_hash", "finite"]


@dataclass(frozen=True)
class Source:
    """One training.

    Args:
        host: "MONAI" or "nnU-Net".
        folder: of the run, or of nnU-Net's fold.
        method: its name.
        structures: names of the labels, without the background.
        log: a line an epoch, counted from 1.
        evaluation: of the validation cases; None: there is none.
        without_views: the same without the learned views.
        facts: what it took: ``epochs``, ``iterations``, ``parameters``, ``device``, ``precision``, ``seconds``,
            ``cpu_seconds``, ``gpu_memory_bytes``, ``cases`` (by part), ``patch_size``, ``spacing``; as far as known.
        options: how it was asked for, without paths and names.
        versions: of packages.
        prediction: ``views``, ``seconds`` and ``seconds_without_views`` of the validation cases, as far as known.
        audit: what ``audit.json`` holds, or None.
        policies: that it has learned, or None.
        policy_hash: of its file.
        no_ops: operations that the network can't see.
        course: lines of ``policy.jsonl``.
        augmenters: file of the learned augmenters, or None.
        kept: samples, or None.
        warnings: of the end of the training.
        names: of cases and paths, which a report doesn't tell unless asked to.
        data: the data set's folder, if the run says so.
        fingerprint: of the data.
        ended: whether the training has ended.
    """

    host: str
    folder: Path
    method: str
    structures: tuple[str, ...]
    log: Sequence[Mapping[str, Any]]
    evaluation: Evaluation | None = None
    without_views: Evaluation | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    prediction: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    policies: Policies | None = None
    policy_hash: str = ""
    no_ops: tuple[str, ...] = ()
    course: Sequence[Mapping[str, Any]] = ()
    augmenters: Path | None = None
    kept: Kept | None = None
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    data: Path | None = None
    fingerprint: str = ""
    ended: bool = True

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm of the patches, or 1 where it isn't known."""
        given = self.facts.get("spacing")
        return tuple(given) if given else (1.0, 1.0, 1.0)


def file_hash(path: Path) -> str:
    """The first sixteen digits of a file's SHA-256; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def finite(value: Any) -> float | None:
    """A number, or None for JSON, which has no NaN.

    >>> finite(0.5), finite(float("nan")), finite("x")
    (0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
