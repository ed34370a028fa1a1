# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What options of the method "task_driven" can't be, or have no use together."""

from __future__ import annotations

from collections.abc import Mapping

from monai_autoaug.errors import ConfigError

__all__ = ["check_task_driven"]


def check_task_driven(
    *,
    weights: Mapping[str, float],
    sizes: Mapping[str, int],
    positive: Mapping[str, float],
    labelled_share: float,
    fidelity: str,
    kinds: tuple[str, ...],
    bounds: Mapping[str, Mapping[str, float]],
    base: str | None,
    regions: bool,
    weighted_loss: bool,
) -> None:
    """Refuse what can't be and what would do nothing.

    Args:
        weights: numbers that must not be negative, by name.
        sizes: whole numbers that must be at least 1, by name.
        positive: numbers that must be above 0, by name.
        labelled_share: see `TaskDriven`, as the others are.
        fidelity: likewise.
        kinds: of generators.
        bounds: likewise.
        base: likewise.
        regions: whether the labels are regions.
        weighted_loss: likewise.

    Raises:
        ConfigError: something can't be; the message says what to do.
    """
    for names, least, words in ((weights, 0, "at least 0"), (sizes, 1, "at least 1")):
        for name, value in names.items():
            if value < least:
                raise ConfigError(f"{name} must be {words}, got {value}")
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}")
    if not 0 <= labelled_share <= 1:
        raise ConfigError(f"labelled_share must be between 0 and 1, got {labelled_share}")
    if fidelity not in ("default", "paper"):
        raise ConfigError(f"fidelity must be 'default' or 'paper', got {fidelity!r}")
    if base is not None and (fidelity == "paper" or not kinds):
        reason = "fidelity 'paper' has a form of its own" if kinds else "there is no generator"
        raise ConfigError(f"{reason}: leave base out")
    unknown = set(bounds) - set(kinds)
    if unknown:
        raise ConfigError(
            f"bounds are by generator, of which there {'are ' + ', '.join(kinds) if kinds else 'is none'}; got"
            f" {', '.join(sorted(unknown))}"
        )
    if weighted_loss and regions:
        raise ConfigError("weighted_loss is a cross-entropy of classes, but the labels are regions; leave it out")
