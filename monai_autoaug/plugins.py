# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What other installed distributions add to this package, found by name through their entry points."""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from monai_autoaug.errors import ConfigError

__all__ = ["AUGMENTERS", "METHODS", "added", "load"]

METHODS = "monai_autoaug.methods"
AUGMENTERS = "monai_autoaug.augmenters"
_WHAT = {METHODS: "method", AUGMENTERS: "kind of augmenter"}


@lru_cache(maxsize=8)
def _found(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of a group, of the distributions on ``path``."""
    return tuple(entry_points(group=group))


def added(group: str, own: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of a group by name, which none of this package's own have.

    Args:
        group: `METHODS` or `AUGMENTERS`.
        own: names that this package gives itself.

    Raises:
        ConfigError: a name is given twice, by two distributions or by one and this package.

    >>> "adversarial" in added(METHODS, ())
    False
    """
    found: dict[str, EntryPoint] = {}
    for entry in _found(group, tuple(sys.path)):
        other = found.get(entry.name)
        if entry.name in own or (other is not None and other.value != entry.value):
            giver = "monai_autoaug" if other is None else _distribution(other)
            raise ConfigError(
                f"the {_WHAT[group]} {entry.name!r} is given by {_distribution(entry)} and by {giver}: rename the entry"
                " point, or uninstall one of them"
            )
        found[entry.name] = entry
    return found


def load(entry: EntryPoint, base: type[Any]) -> Any:
    """The class that an entry point names.

    Args:
        entry: of `added`.
        base: what it has to be a subclass of.

    Raises:
        ConfigError: it can't be imported, or is something else.
    """
    where = f"the entry point {entry.name} = {entry.value} of {_distribution(entry)}"
    try:
        found = entry.load()
    except Exception as error:  # a module of the user's, which can fail in any way
        raise ConfigError(f"{where} can't be imported ({type(error).__name__}: {error}); correct it") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{where} must be a subclass of {base.__module__}.{base.__qualname__}, got {found!r}")
    return found


def _distribution(entry: EntryPoint) -> str:
    return "an unnamed distribution" if entry.dist is None else str(entry.dist.name)
