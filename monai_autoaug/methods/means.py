# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Means over an epoch of figures that not every step has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Means"]


class Means:
    """Adds up scalars by name.

    >>> means = Means()
    >>> _ = means.add({"loss": torch.tensor(1.0)}), means.add({"loss": torch.tensor(3.0), "penalty": torch.tensor(5.0)})
    >>> means.take(), means.take()
    ({'loss': 2.0, 'penalty': 5.0}, {})
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Add scalars, fetched from their device at once; returns them as floats."""
        fetched = torch.stack([v.detach().float() for v in values.values()]).tolist()
        result = dict(zip(values, fetched, strict=True))
        for name, value in result.items():
            self._sums[name] += value
            self._counts[name] += 1
        return result

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last call of `take`."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what ``state_dict`` gave."""
        self._sums, self._counts = defaultdict(float, state["sums"]), defaultdict(int, state["counts"])

    def take(self) -> dict[str, float]:
        """Mean of each figure since the last call."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        return means
