# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Random states as tensors and numbers, for checkpoints that load without pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from monai_autoaug.data.randomness import random_transforms

__all__ = ["pack", "random_numbers", "random_states", "restore_random_states", "transform_states", "unpack"]


def pack(state: Any) -> dict[str, Any]:
    """A numpy ``RandomState``'s state as a tensor and numbers."""
    name, keys, position, has_gauss, gauss = state
    return {"name": str(name), "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)), "position": int(position),
            "has_gauss": int(has_gauss), "gauss": float(gauss)}  # fmt: skip


def unpack(state: Mapping[str, Any]) -> tuple[Any, ...]:
    """What ``set_state`` of a numpy ``RandomState`` takes, of what `pack` gave."""
    keys = state["keys"].cpu().numpy().astype(np.uint32)
    return state["name"], keys, state["position"], state["has_gauss"], state["gauss"]


def random_states() -> dict[str, Any]:
    """The global random states of Python, numpy, torch and every GPU, as tensors and numbers.

    >>> sorted(random_states())
    ['cuda', 'numpy', 'python', 'torch']
    """
    version, numbers, gauss = random.getstate()
    return {
        "python": {"version": version, "numbers": torch.tensor(numbers), "gauss": gauss},
        "numpy": pack(np.random.get_state()),  # noqa: NPY002  # the global generator that MONAI's users know
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` gave; GPUs that are not here are left out.

    >>> states = random_states()
    >>> x = torch.rand(1)
    >>> restore_random_states(states)
    >>> bool(torch.rand(1) == x)
    True
    """
    python = states["python"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    np.random.set_state(unpack(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
            torch.cuda.set_rng_state(state.cpu(), device)


def transform_states(*loaders: Any) -> list[dict[str, Any]]:
    """The random states of the loaders' transforms, which live on in the main process when they have no workers.

    >>> transform_states([])
    []
    """
    return [pack(r.get_state()) for r in random_numbers(*loaders)]


def random_numbers(*loaders: Any) -> list[np.random.RandomState]:
    """The random numbers of the loaders' transforms, each once."""
    datasets = (loader.dataset if isinstance(loader, DataLoader) else loader for loader in loaders)
    unique = {id(t.R): t.R for dataset in datasets for t in random_transforms(dataset)}
    return list(unique.values())
