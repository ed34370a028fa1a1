# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What makes a patch a function of its numbers alone: seeds of all global generators, and one thread."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block numpy, torch (CPU) and Python's random are seeded by ``key``; afterwards they are as before.

    >>> def draw():
    ...     with seeded(1, 2):
    ...         return np.random.rand(), float(torch.rand(()))
    >>> draw() == draw()
    True
    """
    before = np.random.get_state(), torch.random.get_rng_state(), random.getstate()  # noqa: NPY002  # nnU-Net draws from it
    words = np.random.SeedSequence(key).generate_state(4)
    np.random.seed(words[:2])  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]))  # not torch.manual_seed, which would seed the GPU too
    random.seed(int(words[3]))
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        torch.random.set_rng_state(before[1])
        random.setstate(before[2])
