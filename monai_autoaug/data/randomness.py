# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The random transforms of a data set, wherever they are: in compositions, other transforms, wrapped data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.transforms.transform import Randomizable, Transform
from torch.utils.data import Dataset

__all__ = ["random_transforms"]


def random_transforms(dataset: Any) -> list[Randomizable]:
    """All random transforms below a data set, each once, in an order that depends on the data set alone.

    Args:
        dataset: a list of cases, or a data set, which may be wrapped (``Subset``, ``ConcatDataset``).

    >>> from monai.data import Dataset
    >>> from monai.transforms import Compose, RandFlipd
    >>> from torch.utils.data import Subset
    >>> nested = Compose([Compose([RandFlipd("image")])])
    >>> [type(t).__name__ for t in random_transforms(Subset(Dataset([{}], nested), [0]))]
    ['Compose', 'Compose', 'RandFlipd']
    """
    return list(_below(dataset, set()))


def _below(thing: Any, seen: set[int]) -> Iterator[Randomizable]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Randomizable):
        yield thing
    if isinstance(thing, list | tuple):
        # lists of data hold no transforms: only those whose first element could be one are looked through
        children: Any = thing if thing and not isinstance(thing[0], dict | str) else ()
    elif isinstance(thing, dict):
        children = thing.values()
    else:
        children = vars(thing).values() if hasattr(thing, "__dict__") else ()
    for child in children:
        if isinstance(child, list | tuple | dict | Dataset | Transform | Randomizable):
            yield from _below(child, seen)
