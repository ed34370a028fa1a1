# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The policies of a file that a run is given, by the method option ``policy``: fixed, or as their start.

What they are goes into the run's checkpoint, so that it can be continued when the file has been moved or written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.policies import Policies, load
from monai_autoaug.policies.description import (
    build_test_time,
    build_training,
    describe_test_time,
    describe_training,
)

__all__ = ["KEY", "find_given", "with_given"]

KEY = "given_policy"  # of the run's checkpoint


def find_given(options: TrainOptions, checkpoint: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What ``method_options`` names: as it is in the checkpoint that a run goes on from, or else in its file.

    Args:
        options: of the run.
        checkpoint: None: the run begins. Older ones know nothing of given policies; then the file is read.

    Returns:
        For the checkpoint: "training" and "test_time" in words and numbers; None if no file is named.

    Raises:
        PolicyError: the file can't be read.

    >>> find_given(TrainOptions("data", "run", method="joint_policy"), None)
    """
    path = options.method_options.get("policy")
    if not isinstance(path, str | Path):
        return None
    if checkpoint is not None and checkpoint.get(KEY) is not None:
        return dict(checkpoint[KEY])
    found = load(path)
    return {
        "training": None if found.training is None else describe_training(found.training),
        "test_time": None if found.test_time is None else describe_test_time(found.test_time),
    }


def with_given(options: TrainOptions, described: Mapping[str, Any]) -> TrainOptions:
    """The options with policies of their own in place of their file.

    Args:
        options: of the run.
        described: see `find_given`.
    """
    training, views = described["training"], described["test_time"]
    given = Policies(
        None if training is None else build_training(training), None if views is None else build_test_time(views)
    )
    return replace(options, method_options={**options.method_options, "policy": given})
