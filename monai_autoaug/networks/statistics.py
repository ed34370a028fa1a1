# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Running statistics: a batch that gave no finite update must not stay in them either."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from monai_autoaug.precision import average_over_ranks, world_size

__all__ = ["KeptStatistics"]


class KeptStatistics:
    """The buffers of a network as they were before a step, for a step that turns out to have been a bad one.

    A forward changes the running statistics of batch norms at once, long before anyone knows that its gradient is not
    finite; skipping the update doesn't bring them back, and a network with such statistics predicts nothing any more.

    Args:
        network: any; most have no such buffers, and cost nothing.
        norms: keep those of norm layers alone, which are all that a forward changes in the networks of this package.

    >>> norm = nn.BatchNorm1d(1)
    >>> kept = KeptStatistics(norm)
    >>> kept.keep()
    >>> _ = norm(torch.full((2, 1), torch.nan))
    >>> kept.restore()
    >>> norm.running_mean, norm.running_var
    (tensor([0.]), tensor([1.]))
    """

    def __init__(self, network: nn.Module, *, norms: bool = False) -> None:
        self.network, self.norms = network, norms
        self._values: Tensor | None = None

    def _buffers(self) -> list[Tensor]:
        layers = [m for m in self.network.modules() if isinstance(m, _NormBase)] if self.norms else [self.network]
        return [b for layer in layers for b in layer.buffers() if b.is_floating_point() and b.numel()]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers, unless those of the beginning of this step are remembered already."""
        if self._values is None:
            buffers = self._buffers()
            self._values = torch.cat([b.reshape(-1) for b in buffers]) if buffers else torch.zeros(0)

    def forget(self) -> None:
        """The step was a good one: the next `keep` remembers anew."""
        self._values = None

    @torch.no_grad()
    def restore(self) -> None:
        """Give each buffer that is not finite any more its former values; all others stay as they are."""
        values, self._values = self._values, None
        if values is None:
            return
        buffers = self._buffers()
        if not buffers or bool(torch.isfinite(torch.cat([b.reshape(-1) for b in buffers])).all()):
            return
        for buffer, former in zip(buffers, values.split([b.numel() for b in buffers]), strict=True):
            if not bool(torch.isfinite(buffer).all()) and bool(torch.isfinite(former).all()):
                buffer.copy_(former.view_as(buffer))

    @torch.no_grad()
    def settle(self) -> None:
        """At the end of a step: `restore`, the mean over all ranks, and `keep` that.

        For networks that run before anyone can say that a step begins, and that every rank shows samples of its own.
        """
        self.restore()
        buffers = self._buffers()
        if buffers and world_size() > 1:
            mean = average_over_ranks(torch.cat([b.reshape(-1) for b in buffers]))
            for buffer, values in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))
        self.keep()
