# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Augmenters by their kind: those of this package, and those that other distributions add by entry points."""

from __future__ import annotations

from monai_autoaug import plugins
from monai_autoaug.augmenters.affine import AffineAugmenter
from monai_autoaug.augmenters.appearance import AppearanceAugmenter
from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.conditional import ConditionalAppearance, ConditionalDeformation
from monai_autoaug.augmenters.deformation import DeformationAugmenter
from monai_autoaug.augmenters.general import GeneralAugmenter
from monai_autoaug.augmenters.parametric import ParametricAugmenter
from monai_autoaug.errors import ConfigError

__all__ = ["find", "kinds"]

_CLASSES: tuple[type[Augmenter], ...] = (
    AffineAugmenter, DeformationAugmenter, AppearanceAugmenter, GeneralAugmenter, ParametricAugmenter,
    ConditionalDeformation, ConditionalAppearance,
)  # fmt: skip
_OWN = {a.kind: a for a in _CLASSES}


def kinds() -> tuple[str, ...]:
    """All kinds there are.

    >>> "affine" in kinds()
    True
    """
    return (*_OWN, *sorted(plugins.added(plugins.AUGMENTERS, _OWN)))


def find(kind: str) -> type[Augmenter]:
    """The class of a kind of augmenter; another distribution adds one by an entry point of its name.

    Raises:
        ConfigError: there is none; or an entry point can't be used.

    >>> find("affine").__name__
    'AffineAugmenter'
    """
    more = plugins.added(plugins.AUGMENTERS, _OWN)
    if kind in _OWN:
        return _OWN[kind]
    if kind not in more:
        raise ConfigError(
            f"there is no kind of augmenter {kind!r}; there are {', '.join((*_OWN, *sorted(more)))}; others are found"
            f" by entry points of the group {plugins.AUGMENTERS}"
        )
    found: type[Augmenter] = plugins.load(more[kind], Augmenter)
    if found.kind != kind:
        raise ConfigError(
            f"the entry point {kind!r} names {found.__name__}, whose kind is {found.kind!r}: give both one name"
        )
    return found
