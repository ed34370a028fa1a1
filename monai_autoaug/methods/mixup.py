# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mixup of patches with their soft labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError

__all__ = ["draw_shares", "mixup"]


def draw_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """``count`` numbers from Beta(alpha, alpha), in [0, 1], exact for small ``alpha`` too.

    Args:
        count: how many.
        alpha: above 0; below 1 most of them are close to 0 or 1.
        generator: of the random numbers.

    >>> bool(((x := draw_shares(100, 0.1, torch.Generator().manual_seed(0))) >= 0).all() & (x <= 1).all())
    True
    """
    # the logarithm of a gamma variate: G(alpha) is G(alpha + 1) times U ** (1 / alpha), which would underflow to 0
    shape = torch.full((2, count), alpha + 1.0, dtype=torch.float64, device=generator.device)
    uniform = torch.rand(2, count, dtype=torch.float64, generator=generator, device=generator.device)
    logs = torch._standard_gamma(shape, generator=generator).log() + (1 - uniform).log() / alpha
    return torch.sigmoid(logs[0] - logs[1]).float()


def mixup(batch: Batch, rows: Tensor, alpha: float, generator: torch.Generator) -> Batch:
    """Replace some samples by linear combinations of two that are drawn from the whole batch.

    ``x = s * x_i + (1 - s) * x_j`` and the same for the label, with another j for each i. Where the label of one of the
    two is unknown, the other one's counts, with its share as the weight.

    Args:
        batch: patches without margin, of one size.
        rows: (n,) indices of the samples to replace.
        alpha: of the Beta distribution of s.
        generator: of the random numbers.

    Returns:
        The batch; a batch of one stays as it is.

    Raises:
        ConfigError: ``alpha`` is not above 0.

    Source: Chaitanya et al. 2019, Eq. 7; Zhang et al. 2018.

    >>> b = Batch(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.eye(2).view(2, 2, 1, 1))
    >>> mixed = mixup(b, torch.tensor([1]), 0.5, torch.Generator().manual_seed(0))
    >>> float(mixed.image[0]), bool(torch.isclose(mixed.image[1], mixed.label[1, 1]).all())
    (0.0, True)
    """
    if not alpha > 0:
        raise ConfigError(f"mixup_alpha must be above 0, got {alpha}")
    size, count, device = len(batch.image), len(rows), batch.image.device
    if size < 2 or not count:
        return batch
    rows = rows.to(device)
    first = torch.randint(size, (count,), generator=generator, device=generator.device)
    other = torch.randint(1, size, (count,), generator=generator, device=generator.device)
    pair = first.to(device), ((first + other) % size).to(device)
    share = draw_shares(count, alpha, generator).to(device)

    def mixed(x: Tensor) -> Tensor:
        s = share.to(x).view(-1, *[1] * (x.ndim - 1))
        return x.index_copy(0, rows, s * x[pair[0]] + (1 - s) * x[pair[1]])

    known = batch.label if batch.valid is None else batch.label * batch.valid
    valid = None if batch.valid is None else mixed(batch.valid)
    label = mixed(known)
    if valid is not None:
        label = torch.where(valid > 0, label / valid.clamp(min=1e-6), mixed(batch.label))
    extra = None if batch.extra is None else mixed(batch.extra)
    case = list(batch.case)
    for row, i, j in zip(rows.tolist(), pair[0].tolist(), pair[1].tolist(), strict=True) if case else ():
        case[row] = f"{batch.case[i]}+{batch.case[j]}"
    return replace(batch, image=mixed(batch.image), label=label, valid=valid, extra=extra, case=tuple(case),
                   mask=None, classes=None, target=None, operations=None, plain=None)  # fmt: skip
