# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Whether a value from a command line or a file is of the kind that an option's annotation asks for."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from monai_autoaug.errors import ConfigError

__all__ = ["check_values"]


def check_values(of: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse values whose kind is not what a function's annotations say; unusual annotations let anything pass.

    Args:
        of: whose options these are, for the message.
        function: takes them as keyword arguments.
        values: by name.

    Raises:
        ConfigError: a value is of another kind, or a number is not finite.

    >>> def method(*, rate: float = 0.1, depth: int | None = None) -> None: ...
    >>> check_values("method 'x'", method, {"rate": 1})
    >>> check_values("method 'x'", method, {"depth": 1.5})
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: method 'x': depth must be a whole number or None, got 1.5
    """
    hints = get_type_hints(function)
    for name, value in values.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise ConfigError(f"{of}: {name} must be {_words(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is Literal:
        return value in inner
    if hint is type(None):
        return value is None
    if hint in (int, float):
        number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint in (bool, str):
        return isinstance(value, hint)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, inner[-1]) for v in value.values())
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    return True


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(h) for h in inner)
    if origin is Literal:
        return f"one of {', '.join(str(v) for v in inner)}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a table of names and values"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list, each {_words(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "None"}
    return words.get(hint, str(hint))
