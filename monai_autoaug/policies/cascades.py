# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the cascades of a training policy must be, and what is done to the probabilities of their operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.registry import Cascade, Operation

__all__ = ["check_cascades", "raised", "without_operations"]


def check_cascades(cascades: Sequence[Cascade]) -> None:
    """Refuse cascades that no policy can be made of.

    Raises:
        ConfigError: there is none, one doesn't begin with the identity or has it twice, or a name is there twice.

    >>> check_cascades([Cascade("mine", (Operation("identity"),))])
    """
    if not cascades:
        raise ConfigError("a policy needs at least one cascade with an operation besides the identity")
    for cascade in cascades:
        if [o.acts == "nothing" for o in cascade.operations] != [True] + [False] * (len(cascade) - 1):
            came = ", ".join(o.name for o in cascade.operations)
            raise ConfigError(f"cascade {cascade.name} must begin with the identity and hold no other, got {came}")
    operations = [o.name for c in cascades for o in c.operations[1:]]
    for what, names in (("cascades", [c.name for c in cascades]), ("operations", operations)):
        twice = sorted(n for n, count in Counter(names).items() if count > 1)
        if twice:
            raise ConfigError(f"{what} of a policy must have names of their own, got twice: {', '.join(twice)}")


def without_operations(cascades: Sequence[Cascade], keeps: Callable[[Operation], bool]) -> tuple[Cascade, ...]:
    """Cascades with those operations that ``keeps`` allows, and without those that have the identity alone.

    >>> without_operations([Cascade("mine", (Operation("identity"),))], lambda operation: True)
    ()
    """
    kept = [replace(c, operations=tuple(o for o in c.operations if o.acts == "nothing" or keeps(o))) for c in cascades]
    return tuple(c for c in kept if len(c) > 1)


def raised(table: Tensor, floor: float) -> Tensor:
    """Logits of which no probability is below ``floor``, at the cost of the others.

    Args:
        table: (..., operations) logits, -inf where there is no operation.
        floor: between 0 and 1 over the number of operations.

    >>> raised(torch.tensor([0.0, 9.0, -torch.inf]), 0.25).softmax(0)
    tensor([0.2500, 0.7500, 0.0000])
    """
    p = table.softmax(-1)
    there = ~table.isinf()
    low = there & (p < floor)
    for _ in range(p.shape[-1]):  # scaling the others down may bring another one below
        count, rest = low.sum(-1, keepdim=True), p.masked_fill(low, 0).sum(-1, keepdim=True)
        new = torch.where(low, floor, p * (1 - count * floor) / rest)
        low = low | (there & (new < floor))
    touched = low.any(-1, keepdim=True) & there
    return torch.where(touched, new.log() + table.logsumexp(-1, keepdim=True), table)
