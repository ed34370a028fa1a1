# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Content that is almost right: a valid table with some of it replaced, removed or added."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

__all__ = ["ANYTHING", "EXAMPLES", "fuzz", "mutated", "spoilt_bytes"]

# a test takes the number of examples: few, or with --long many
EXAMPLES = pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.long)])
_PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 9), st.floats(), st.text(max_size=12),
    st.sampled_from(["", "..", "/", "0", "-1", "1e999", "a\x1b[2J", "\u202e", "nan", "é" * 300, 10**400, 1e308]),
)  # fmt: skip
ANYTHING = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


def fuzz(examples: int, test: Callable[..., None], *given_by: st.SearchStrategy[Any]) -> None:
    """Run a test on that many examples, the same in every run."""
    limits = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    limits(given(*given_by)(test))()


def _places(content: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values."""
    found = [where] if where else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in items:
        found += _places(inner, (*where, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> Any:
    """A table with up to three of its values replaced, removed, or doubled."""
    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(changed)
        if not places:
            return draw(ANYTHING)
        *way, last = draw(st.sampled_from(places))
        holder = changed
        for key in way:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            holder[last] = draw(ANYTHING)
        elif action == "remove":
            del holder[last]
        elif isinstance(holder, list):
            holder.insert(0, copy.deepcopy(holder[last]))
        else:
            holder[draw(st.text(max_size=8))] = draw(ANYTHING)
    return changed


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes replaced, and perhaps the end cut off or something added."""
    data = bytearray(content)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)):
        data[place] = value
    kept = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:kept]) + draw(st.one_of(st.just(b""), st.binary(max_size=9)))
