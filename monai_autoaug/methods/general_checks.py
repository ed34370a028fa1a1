# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What options of the method "general_adversarial" can't be, or have no use together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai_autoaug.augmenters import GeneralAugmenter
from monai_autoaug.errors import ConfigError

__all__ = ["check_general"]


def check_general(
    weights: Mapping[str, float],
    *,
    augmentation: str,
    separate: float,
    spatial_dims: int,
    parts: tuple[bool, bool],
    bounds: Mapping[str, float],
    mirror_axes: Sequence[int],
    sizes: Mapping[str, int],
    prepared: bool,
) -> None:
    """Refuse what can't be and what would do nothing.

    Args:
        weights: of the generator's terms by name.
        augmentation: see `GeneralAdversarial`, as the others are.
        separate: likewise.
        spatial_dims: of the task.
        parts: whether spatial transformer and U-Net are wanted.
        bounds: likewise.
        mirror_axes: likewise.
        sizes: numbers that must be at least 1, by name.
        prepared: whether the network has a spatial transformer.

    Raises:
        ConfigError: something can't be; the message says what to do.
    """
    for name, weight in weights.items():
        if weight < 0:
            raise ConfigError(f"weight_{name} must be at least 0, got {weight}")
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, got {size}")
    if not 0 <= separate < 1:
        raise ConfigError(f"separate must be a share of the epochs in [0, 1), got {separate}")
    if mirror_axes and (augmentation != "strong" or not set(mirror_axes) <= set(range(spatial_dims))):
        raise ConfigError(f"mirror_axes are of augmentation 'strong', 0 to {spatial_dims - 1}; got {list(mirror_axes)}")
    if augmentation == "stn" and not prepared:
        raise ConfigError(
            "augmentation 'stn' puts a spatial transformer in front of the network, which has none: call"
            " methods.prepare('general_adversarial', network, augmentation='stn') before making the optimiser"
        )
    if augmentation in ("learned", "decoder"):
        _check_generator(weights, augmentation, separate, parts, bounds)
        return
    idle = [n for n, on in (("separate", separate), ("bounds", bounds), ("spatial=False", not parts[0]),
                            ("appearance=False", not parts[1])) if on]  # fmt: skip
    if idle:
        raise ConfigError(f"augmentation {augmentation!r} has no generator: leave {', '.join(idle)} out")


def _check_generator(
    weights: Mapping[str, float], augmentation: str, separate: float, parts: tuple[bool, bool],
    bounds: Mapping[str, float],
) -> None:  # fmt: skip
    if not any(weights.values()):
        raise ConfigError("a generator needs something to learn from: make one of its three weights larger than 0")
    if separate and weights["adversarial"]:
        raise ConfigError(
            "in separate training the generator knows no network: set weight_adversarial to 0, or separate to 0"
        )
    if augmentation == "decoder" and (not all(parts) or bounds):
        raise ConfigError("augmentation 'decoder' has no parts and no bounds: leave spatial, appearance, bounds out")
    unknown = set(bounds) - set(GeneralAugmenter.limits)
    if unknown:
        raise ConfigError(f"bounds are {', '.join(GeneralAugmenter.limits)}, got {', '.join(sorted(unknown))}")
