# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessed cases, in memory or read at each use from a disk that may no longer be as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch.utils.data import Subset

from monai_autoaug.errors import AutoAugError, DataError

__all__ = ["Items", "read_item"]


class Items(Protocol):
    """Preprocessed cases: a list, or a MONAI ``Dataset``, ``CacheDataset`` or ``PersistentDataset``.

    Each item is a dictionary with ``image`` (C, D, H, W) float and ``label`` (1, D, H, W) integer, and optionally
    ``case`` (a name) and ``spacing`` (mm; read from a MetaTensor's affine otherwise).
    """

    def __len__(self) -> int:
        """The number of cases."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One case."""
        ...


def read_item(items: Items, index: int) -> Any:
    """One case.

    Args:
        items: all of them.
        index: of the case.

    Raises:
        DataError: it can't be read any more; the message names it.

    >>> read_item([{"case": "a"}], 0)
    {'case': 'a'}
    """
    try:
        return items[index]
    except AutoAugError:
        raise
    except Exception as error:  # readers and transforms raise all kinds; which case it was has to be known
        raise DataError(
            f"can't be read any more ({type(error).__name__}: {error})", file=_name(items, index),
            remedy="put its files back as they were",
        ) from error


def _name(items: Any, index: int) -> str:
    """What a case is called, as far as the data set tells without reading it."""
    while isinstance(items, Subset):
        items, index = items.dataset, items.indices[index]
    rows = getattr(items, "data", items if isinstance(items, Sequence) else ())  # a MONAI data set's, not yet read
    row = rows[index] if index < len(rows) else None
    return str(row["case"]) if isinstance(row, Mapping) and "case" in row else f"case number {index}"
