# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What every part needs of torch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_derived", "one_hot", "one_thread"]


def is_derived(x: Tensor) -> bool:
    """Whether somebody wants a derivative by a tensor, backwards or forwards.

    >>> is_derived(torch.ones(1)), is_derived(torch.ones(1, requires_grad=True))
    (False, True)
    """
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None


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


class _Threads:
    """How many threads torch has outside of all blocks of `one_thread`, which Python's threads may be in together."""

    def __init__(self) -> None:
        self.count, self.own = 1, threading.local()
        self.forked()

    def forked(self) -> None:
        """Nobody else is here: a fork takes along the one thread that forks, and a lock that another one held."""
        self.lock, self.inside = threading.Lock(), 0

    def enter(self) -> None:
        blocks = getattr(self.own, "blocks", 0)
        with self.lock:
            # asked in any case: torch gives a new thread the number that any thread has set last, at its first question
            mine = torch.get_num_threads()
            if not blocks:
                if self.inside == 0:
                    self.count = mine
                self.inside += 1
                self.own.count = self.count if mine == 1 else mine  # 1 may be the number of those inside
            torch.set_num_threads(1)
        self.own.blocks = blocks + 1

    def leave(self) -> None:
        self.own.blocks = max(0, getattr(self.own, "blocks", 1) - 1)  # a generator may end in another thread
        if self.own.blocks:
            return
        with self.lock:
            self.inside = max(0, self.inside - 1)
            torch.set_num_threads(getattr(self.own, "count", self.count))


_threads = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.forked)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within the block, as in a loader's worker: sums over several threads would round differently.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    _threads.enter()
    try:
        yield
    finally:
        _threads.leave()
