# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned policies for other libraries: as files that these run without this package."""

from __future__ import annotations

from collections.abc import Callable

from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.policies.export.markdown import to_markdown
from monai_autoaug.policies.export.monai_config import to_monai
from monai_autoaug.policies.export.plan import Exported, Plan, plan
from monai_autoaug.policies.export.python_file import to_batchgeneratorsv2, to_torchio
from monai_autoaug.policies.policy_file import Policies

__all__ = ["TARGETS", "Exported", "export"]

_MAKERS: dict[str, Callable[[Plan, Policies], Exported]] = {
    "monai": lambda found, _: to_monai(found),
    "batchgeneratorsv2": lambda found, _: to_batchgeneratorsv2(found),
    "torchio": lambda found, _: to_torchio(found),
    "markdown": to_markdown,
}
TARGETS = tuple(_MAKERS)


def export(policies: Policies, target: str) -> Exported:
    """Policies as a file of another library, without paths and without what identifies a patient.

    Args:
        policies: what `policies.load` gave.
        target: "monai" (YAML, which `monai.bundle.ConfigParser` instantiates), "batchgeneratorsv2" or "torchio" (a
            Python file), or "markdown" (tables).

    Returns:
        The file's text, and what it does otherwise than this package.

    Raises:
        ConfigError: there is no such target.
        PolicyError: an operation is not of this package's catalogue, or the target can't have slices.

    >>> from monai_autoaug.policies import TrainingPolicy
    >>> export(Policies(TrainingPolicy.preset("nnunet")), "torchio").text.splitlines()[0]
    '\"\"\"A learned augmentation policy for TorchIO, written by monai_autoaug, which it does not need.'
    """
    if target not in _MAKERS:
        raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {target!r}{did_you_mean(target, TARGETS)}")
    return _MAKERS[target](plan(policies), policies)
