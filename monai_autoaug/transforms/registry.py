# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an operation is: one function and one row, from which policies choose and which `execution` applies.

A row says everything about its operation that others need: its name in a policy's file, how large it may be, how it
acts, whether the label moves with it, whether it can be undone, and when it is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from monai_autoaug.transforms.intensity import Reference

__all__ = ["Cascade", "Context", "Operation"]

Kind = Literal["identity", "spatial", "intensity", "noise", "resolution"]
Acts = Literal["nothing", "matrix", "field", "permutation", "values", "pair"]
Opposite = Literal["none", "negative", "reciprocal"]


@dataclass
class Context:
    """What an operation on values may use besides the image and its magnitude.

    Args:
        generator: random numbers come from it; None: torch's global one.
        reference: intensities of the whole volume; None: the sample's own.
        compat: as the paper's code, faults included.
        noise: noise of unit deviation in the image's shape, in place of a draw.

    >>> Context().reference is None
    True
    """

    generator: torch.Generator | None = None
    reference: Reference | None = None
    compat: bool = False
    noise: Tensor | None = None


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        name: as policies store it; unique among the operations that one policy chooses from.
        kind: "spatial", "intensity", "noise", "resolution" or "identity".
        acts: what ``function`` is. "matrix": ``f(magnitude, spatial_dims) -> (B, d, d)``; "field":
            ``f(magnitude, shape, generator) -> (B, d, ...)`` displacement; both compose with others to one resampling.
            "permutation": ``f(x, magnitude)``, exact, for image and label. "values": ``f(image, magnitude, context)``.
            "pair": ``f(image, label or None, magnitude, context) -> (image, label or None)``, for transforms of other
            libraries, which resample on their own. "nothing".
        function: see ``acts``.
        low: smallest magnitude.
        high: largest magnitude.
        unit: of the magnitude, for people.
        opposite: with probability 1/2 the magnitude is replaced by its "negative" or its "reciprocal".
        neutral: the magnitude that changes nothing; None: there is none.
        order: operations are executed by growing order.
        moves_label: the label has to move with the image.
        inverse: undoes a "permutation" exactly, ``f(x, magnitude)``.
        matrix: what a "permutation" is as a matrix, for shapes on which it isn't exact.
        moves_reference: the reference changes as the image does.
        mirrors: axes, counted from 0, whose direction it reverses; None: nobody knows, as of a transform of another
            library. Flips, and half turns, which reverse two axes.
        turns: the two axes that change places; None: each stays where it is, up to less than 45 degrees.
        cascade: name of the cascade, None for an operation at test time.
        cascade_index: place of the cascade in the paper's catalogue; None: not in it.
        index: place in the cascade, or among the 84 at test time.

    >>> Operation("identity").magnitude(torch.zeros(2), torch.ones(2))
    tensor([0., 0.])
    """

    name: str
    kind: Kind = "identity"
    acts: Acts = "nothing"
    function: Callable[..., Any] | None = field(default=None, compare=False)
    low: float = 0.0
    high: float = 0.0
    unit: str = ""
    opposite: Opposite = "none"
    neutral: float | None = 0.0
    order: int = 0
    moves_label: bool = False
    inverse: Callable[..., Tensor] | None = field(default=None, compare=False)
    matrix: Callable[..., Tensor] | None = field(default=None, compare=False)
    moves_reference: bool = False
    mirrors: tuple[int, ...] | None = ()
    turns: tuple[int, int] | None = None
    cascade: str | None = None
    cascade_index: int | None = None
    index: int = 0

    @property
    def exactly_invertible(self) -> bool:
        """Whether undoing it gives back every bit."""
        return self.acts == "nothing" or self.inverse is not None

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest magnitude, before the opposite."""
        return self.low, self.high

    def magnitude(self, quantile: Tensor, sign: Tensor) -> Tensor:
        """The magnitude at a quantile of the range.

        Args:
            quantile: (B,) between 0 and 1.
            sign: (B,) +1, or -1 for the opposite.

        >>> Operation("x", low=1.0, high=3.0, opposite="reciprocal").magnitude(torch.tensor([0.5]), torch.tensor([-1]))
        tensor([0.5000])
        """
        value = self.low + quantile * (self.high - self.low)
        if self.opposite == "negative":
            return value * sign
        return torch.where(sign > 0, value, 1 / value) if self.opposite == "reciprocal" else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``function``."""
        if self.function is None:
            raise TypeError(f"operation {self.name} does nothing and can't be called")
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Cascade:
    """Operations of which a sample gets exactly one; the first is the identity.

    Args:
        name: as policies store it.
        operations: all of them.

    >>> len(Cascade("flip", (Operation("identity"),)))
    1
    """

    name: str
    operations: tuple[Operation, ...]

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, index: int) -> Operation:
        return self.operations[index]
