# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Left and right: what mirroring does to labels that come in pairs.

A mirrored left kidney looks like a right one and lies where that would. So an operation that reverses the left-right
axis exchanges the two labels, or is left out. A quarter turn that moves this axis onto another one leaves no side to
go by, and is left out in either case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from monai_autoaug.data.sides import lateral_pairs
from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.registry import Operation

__all__ = ["Laterality", "lateral_pairs", "left_right_axis"]


@dataclass(frozen=True)
class Laterality:
    """Which labels are each other's mirror image, and along which axis.

    Args:
        pairs: two channels of the label each, where channel k is label value k (with regions: region k); none twice.
        axis: spatial axis that runs from left to right, counted from 0; 0 in RAS orientation (see `left_right_axis`).
        mirrors: operations that reverse the axis "swap" the labels of a pair, or are left out ("off").

    Raises:
        ConfigError: a label is in two pairs or with itself, or an argument is out of range.

    >>> label = torch.eye(3).view(1, 3, 3, 1, 1)
    >>> Laterality(((1, 2),)).swapped(label)[0, :, :, 0, 0]
    tensor([[1., 0., 0.],
            [0., 0., 1.],
            [0., 1., 0.]])
    """

    pairs: tuple[tuple[int, int], ...]
    axis: int = 0
    mirrors: Literal["swap", "off"] = "swap"

    def __post_init__(self) -> None:
        try:
            pairs = tuple((int(a), int(b)) for a, b in self.pairs)
        except (TypeError, ValueError):
            raise ConfigError(f"laterality: pairs must be such as [[1, 2]], got {self.pairs!r}") from None
        object.__setattr__(self, "pairs", pairs)  # frozen: no plain assignment
        flat = [v for pair in pairs for v in pair]
        if not flat or len(set(flat)) < len(flat) or min(flat) < 0:
            raise ConfigError(f"laterality: each label must be in one pair only, got {self.pairs!r}")
        if self.axis not in (0, 1, 2):
            raise ConfigError(f"laterality: axis must be 0, 1 or 2, got {self.axis!r}")
        if self.mirrors not in ("swap", "off"):
            raise ConfigError(f"laterality: mirrors must be 'swap' or 'off', got {self.mirrors!r}")

    @classmethod
    def of(
        cls, given: Laterality | Sequence[Sequence[int]] | Mapping[str, Any] | None, spatial_dims: int = 3
    ) -> Laterality | None:
        """What an option means: one of these, pairs alone, a table of arguments, or nothing where there are no sides.

        Raises:
            ConfigError: an image of ``spatial_dims`` has no such axis, or see the class.

        >>> Laterality.of([(1, 2)]), Laterality.of([])
        (Laterality(pairs=((1, 2),), axis=0, mirrors='swap'), None)
        >>> Laterality.of({"pairs": [[1, 2]], "mirrors": "off"}).mirrors
        'off'
        """
        if not given:
            return None
        if isinstance(given, Mapping):
            if not {"pairs"} <= set(given) <= {"pairs", "axis", "mirrors"}:
                raise ConfigError(f"laterality: expected pairs, and perhaps axis and mirrors, got {given}")
            off = given.get("mirrors") is False  # what YAML makes of the word
            given = cls(**{**given, **({"mirrors": "off"} if off else {})})
        # __post_init__ makes it tuples
        known = given if isinstance(given, Laterality) else cls(given)  # type: ignore[arg-type]
        if known.axis >= spatial_dims:
            raise ConfigError(f"laterality: axis must be below {spatial_dims}, the axes of an image, got {known.axis}")
        return known

    def allows(self, operation: Operation) -> bool:
        """Whether a policy may choose the operation.

        Raises:
            ConfigError: it is another library's, and nobody has said whether it mirrors.

        >>> from monai_autoaug.transforms import operations_at_test_time
        >>> [v.name for v in operations_at_test_time() if not Laterality(((1, 2),)).allows(v)]
        ['rotate_dw_+90', 'rotate_dw_-90', 'rotate_dh_+90', 'rotate_dh_-90']
        """
        if operation.mirrors is None:
            raise ConfigError(
                f"operation {operation.name}: laterality is declared, and a transform of another library may exchange"
                " left and right. To do: say which axes it mirrors whenever it is applied, mirrors=() for none"
            )
        turned = operation.turns is not None and self.axis in operation.turns
        return not turned and not (self.mirrors == "off" and self.axis in operation.mirrors)

    def reverses(self, operation: Operation) -> bool:
        """Whether the operation exchanges left and right.

        >>> from monai_autoaug.transforms import operations_at_test_time
        >>> [v.name for v in operations_at_test_time() if Laterality(((1, 2),)).reverses(v)]
        ['flip_d', 'rotate_dw_180', 'rotate_dh_180', 'flip_dhw']
        """
        return self.axis in (operation.mirrors or ())

    def swapped(self, x: Tensor, *, first: int = 0) -> Tensor:
        """Labels or logits (B, K, ...) with the channels of each pair exchanged.

        Args:
            x: (B, K, ...).
            first: label of the first channel; 1 where there is none for the background.

        Raises:
            ConfigError: a pair names a channel that isn't there.
        """
        order = list(range(x.shape[1]))
        for a, b in self.pairs:
            if not (first <= a < first + len(order) and first <= b < first + len(order)):
                raise ConfigError(
                    f"laterality: pair {(a, b)} does not fit labels of {len(order)} channels, the first being {first}"
                )
            order[a - first], order[b - first] = b - first, a - first
        return x[:, torch.tensor(order, device=x.device)]

    def swapped_values(self, values: Tensor) -> Tensor:
        """A map of label values with those of each pair exchanged.

        >>> Laterality(((1, 2),)).swapped_values(torch.tensor([0, 1, 2, 3]))
        tensor([0, 2, 1, 3])
        """
        result = values.clone()
        for a, b in self.pairs:
            result[values == a], result[values == b] = b, a
        return result


def left_right_axis(orientation: str | ArrayLike = "RAS") -> int:
    """The axis of an array that runs between left and right.

    Args:
        orientation: three letters as nibabel has them, such as "RAS", or an affine (4, 4) from voxels to mm.

    Raises:
        ConfigError: neither.

    >>> left_right_axis("SAR"), left_right_axis(np.diag([1, 2, 3, 1])[[1, 0, 2, 3]])
    (2, 1)
    """
    if isinstance(orientation, str):
        found = [axis for axis, letter in enumerate(orientation.upper()) if letter in "LR"]
        if len(found) == 1:
            return found[0]
    else:
        affine = np.asarray(orientation, dtype=float)
        if affine.shape == (4, 4) and np.isfinite(affine).all():
            size = np.linalg.norm(affine[:3, :3], axis=0)
            return int(np.argmax(np.abs(affine[0, :3]) / np.where(size > 0, size, 1)))
    raise ConfigError(f"orientation must be three letters such as RAS or an affine (4, 4), got {orientation!r}")
