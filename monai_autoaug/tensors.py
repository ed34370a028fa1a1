# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What every part needs of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["one_hot", "one_thread"]


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Label values (B, 1, D, H, W) as channels (B, classes, D, H, W) of 0 and 1, float32.

    >>> one_hot(torch.tensor([[[1, 0]]]), 2)
    tensor([[[0., 1.],
             [1., 0.]]])
    """
    made = torch.empty((len(label), classes, *label.shape[2:]), device=label.device)
    for value in range(classes):
        torch.eq(label[:, 0], value, out=made[:, value])
    return made


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within the block, as in a loader's worker: sums over several threads would round differently.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
