# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Values from command lines and files are of the kind that an option asks for."""

from __future__ import annotations

from typing import Literal

import pytest

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.values import check_values


def example(
    *, count: int = 1, rate: float = 0.1, flag: bool = True, word: str = "", depth: int | None = None,
    kind: Literal["a", "b"] = "a", table: dict[str, dict[str, float]] | None = None, several: tuple[int, ...] = (),
    anything: object = None,
) -> None:  # fmt: skip
    """Options of every kind."""


def test_values_are_of_the_annotated_kind() -> None:
    good = {"count": 3, "rate": 2, "flag": False, "word": "x", "depth": None, "kind": "b", "several": [1, 2],
            "table": {"a": {"b": 1}}, "anything": object()}  # fmt: skip
    check_values("it", example, good)
    for name, value, words in [
        ("count", 1.0, "a whole number"),
        ("count", True, "a whole number"),
        ("rate", "1", "a number"),
        ("rate", float("nan"), "a number"),
        ("flag", "maybe", "true or false"),
        ("word", 1, "a word"),
        ("depth", "3", "a whole number or None"),
        ("kind", "c", "one of a, b"),
        ("several", 3, "a list, each a whole number"),
        ("several", [1, "2"], "a list, each a whole number"),
        ("table", {"a": 3}, "a table of names and values or None"),
    ]:
        with pytest.raises(ConfigError, match=f"it: {name} must be {words}, got "):
            check_values("it", example, {name: value})
