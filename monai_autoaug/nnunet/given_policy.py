# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A finished training policy that a new training is given, by the method option ``policy``: fixed, or as its start.

Its file is read before anything is made. What it says goes into the checkpoint, so that the training can be continued
and validated when the file has been moved or written anew since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_autoaug import policies
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.nnunet import checkpoint
from monai_autoaug.nnunet.options import Options
from monai_autoaug.policies import Laterality, Policies
from monai_autoaug.policies.description import (
    build_test_time,
    build_training,
    describe_test_time,
    describe_training,
)

__all__ = ["KEPT", "KEPT_VIEWS", "GivenPolicy", "find_policy"]

KEPT, KEPT_VIEWS = "given_policy", "given_views"  # the checkpoint's keys, beside the others of this package
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # nnU-Net's, in its order


@dataclass(frozen=True)
class GivenPolicy:
    """A training policy in words and numbers, of which every method gets one of its own; and the views beside it.

    Args:
        described: see `policies.description.describe_training`.
        views: see `policies.description.describe_test_time`; None: the file has none.
        missing: why a new training can't begin with it, though an old one can be validated: its file is gone.

    >>> given = GivenPolicy(describe_training(policies.TrainingPolicy.preset("nnunet")))
    >>> given.build().training.classes, len(given.digest)
    (('background', 'foreground'), 16)
    """

    described: Mapping[str, Any]
    views: Mapping[str, Any] | None = None
    missing: str | None = None

    def build(self) -> Policies:
        """Policies that may be changed."""
        return Policies(build_training(self.described), None if self.views is None else build_test_time(self.views))

    @property
    def digest(self) -> str:
        """By which the settings of a continued run are compared."""
        parts = [self.described, *([] if self.views is None else [self.views])]
        return hashlib.sha256("".join(json.dumps(p, sort_keys=True) for p in parts).encode()).hexdigest()[:16]

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {KEPT: dict(self.described), KEPT_VIEWS: None if self.views is None else dict(self.views)}

    @property
    def sides(self) -> Laterality | None:
        """What it takes for left and right."""
        sides = self.described["laterality"]
        return None if sides is None else Laterality.of(sides)

    def check(self, spatial_dims: int, label_names: tuple[str, ...]) -> None:
        """See that it is a policy of such patches.

        Args:
            spatial_dims: 2 or 3.
            label_names: of the label values from 0 on.

        Raises:
            ConfigError: it has other axes, or classes that this data set's labels don't tell.
        """
        dims, classes = self.described["spatial_dims"], tuple(self.described["classes"])
        if dims != spatial_dims:
            raise ConfigError(
                f"method option policy: it is of {dims}D patches, those of this configuration are {spatial_dims}D; give"
                " one that such a configuration has learned"
            )
        if len(classes) > 1 and classes not in (("background", "foreground"), label_names):
            raise ConfigError(
                f"method option policy: its classes are {', '.join(classes)}, the labels here are"
                f" {', '.join(label_names)}; give a policy of these, of background and foreground, or of one class"
            )

    def check_sides(self, here: Laterality | None) -> None:
        """See that what it takes for left and right is so in these arrays.

        Args:
            here: the labels' pairs in effect, and the axis between left and right of the patches.

        Raises:
            ConfigError: it has another axis, as one that was learned outside of nnU-Net may, or other pairs.
        """
        if self.sides != here:
            raise ConfigError(
                f"method option policy: its laterality is {self.sides}, here it is {here}; give one that was learned on"
                " arrays of this orientation with the same pairs, and the option laterality as it was then"
            )


def find_policy(options: Options, folder: Path | None, *, continues: bool) -> GivenPolicy | None:
    """The policy that ``method_options`` names, from its file or, where a training goes on, from its checkpoint.

    Args:
        options: of the run.
        folder: of the fold, if there is one, which need not be there yet.
        continues: whether training goes on (``--c``).

    Returns:
        None if no policy is given.

    Raises:
        ConfigError: the file can't be read or holds no training policy, and no checkpoint has it.
    """
    path = options.method_options.get("policy")
    if path is None:
        return None
    if not isinstance(path, str | Path):
        raise ConfigError(
            "method option policy must be the path of a policy.json, absolute or from the folder in which training is"
            f" started; got {path!r}"
        )
    kept = _of_checkpoint(folder) if continues else None
    if kept is not None:
        return kept
    try:
        found = policies.load(path)
    except PolicyError as error:
        missing = f"method option policy: {error}"
        if not Path(path).is_absolute():
            missing += f" (a relative path begins at the folder in which training is started, {Path.cwd()})"
        kept = None if Path(path).exists() else _of_checkpoint(folder)
        if kept is None:
            raise ConfigError(missing) from error
        return replace(kept, missing=missing)
    if found.training is None:
        raise ConfigError(f"method option policy: {path} holds no training policy; give another file")
    views = None if found.test_time is None else describe_test_time(found.test_time)
    return GivenPolicy(describe_training(found.training), views)


def _of_checkpoint(folder: Path | None) -> GivenPolicy | None:
    """What the training in a folder was given; the same in all of its checkpoints."""
    for name in _CHECKPOINTS:
        if folder is not None and (folder / name).is_file():
            content = checkpoint.read_checkpoint(folder / name).get(checkpoint.KEY, {})
            described = content.get(KEPT)
            return None if described is None else GivenPolicy(described, content.get(KEPT_VIEWS))
    return None
