# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Any MONAI or batchgenerators transform as an operation, so that it can join a policy.

An adapted transform runs on one sample after the other, on the CPU, without gradient, and draws its magnitude itself;
set its own probability to 1, since whether it is applied is what a policy learns. Its random numbers come from the
policy's generator, and the state of NumPy's and torch's global ones is left as it was.

A policy over one's own transforms takes three lines::

    blur = from_monai(RandGaussianSmooth(prob=1.0), "monai_blur", kind="resolution")
    affine = from_monai(RandAffined(["image", "label"], prob=1.0, mode="bilinear"), "monai_affine", kind="spatial")
    cascades = [Cascade("mine", (Operation("identity"), blur, affine))]
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform, Randomizable
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms.registry import Context, Kind, Operation

__all__ = ["from_batchgenerators", "from_monai"]

One = Callable[[Tensor, "Tensor | None", int], "tuple[Tensor, Tensor | None]"]


def from_monai(
    transform: Callable[..., Any],
    name: str,
    *,
    kind: Kind = "intensity",
    order: int | None = None,
    mirrors: tuple[int, ...] | None = None,
) -> Operation:
    """A MONAI transform, of arrays or of dictionaries, as an operation.

    A transform of arrays sees the image; one of dictionaries (or a ``Compose`` that holds one) sees "image" and, if the
    kind is "spatial", "label" as one-hot channels, of which the first is filled up where the transform padded.

    Args:
        transform: takes (C, D, H, W) or a dictionary of them, and keeps the size.
        name: as policies store it.
        kind: "spatial" if the label has to move with the image, otherwise "intensity", "noise" or "resolution".
        order: when it is executed among the others; None: with the quarter turns if spatial, with noise otherwise.
        mirrors: axes, counted from 0, that a spatial transform mirrors whenever it is applied, ``()`` if it never does;
            None: not told. Only a policy that knows left from right asks.

    Raises:
        ConfigError: a spatial transform of arrays, which can't move the label.

    >>> from monai.transforms import ScaleIntensity
    >>> from_monai(ScaleIntensity(), "unit_range").kind
    'intensity'
    """
    parts = transform.flatten().transforms if isinstance(transform, Compose) else (transform,)
    of_dictionaries = any(isinstance(part, MapTransform) for part in parts)
    if kind == "spatial" and not of_dictionaries:
        raise ConfigError(
            f"operation {name}: a spatial transform has to move image and label alike; give MONAI's transform of "
            f"dictionaries with the keys image and label, got {type(transform).__name__}"
        )

    return _operation(_Monai(transform, of_dictionaries, kind == "spatial"), name, kind, order, mirrors)


@dataclass(frozen=True)
class _Monai:
    """One sample through a transform of MONAI."""

    transform: Callable[..., Any]
    of_dictionaries: bool
    spatial: bool

    def __call__(self, image: Tensor, label: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=seed)
        if not self.of_dictionaries:
            return torch.as_tensor(self.transform(image)), label
        done = self.transform(
            {"image": image} if label is None or not self.spatial else {"image": image, "label": label}
        )
        moved = torch.as_tensor(done["image"])
        if "label" not in done:
            return moved, label
        soft = torch.as_tensor(done["label"]).as_subclass(Tensor).to(image)
        soft[0] += 1 - soft.sum(0)
        return moved, soft


def from_batchgenerators(
    transform: Any,
    name: str,
    *,
    kind: Kind = "intensity",
    order: int | None = None,
    mirrors: tuple[int, ...] | None = None,
) -> Operation:
    """A transform of batchgenerators (version 1 or 2) as an operation; it sees the label as one map of class numbers.

    Args:
        transform: keeps the size.
        name: as policies store it.
        kind: "spatial" if the label has to move with the image, otherwise "intensity", "noise" or "resolution".
        order: when it is executed among the others; None: with the quarter turns if spatial, with noise otherwise.
        mirrors: axes, counted from 0, that a spatial transform mirrors whenever it is applied, ``()`` if it never does;
            None: not told. Only a policy that knows left from right asks.

    Raises:
        ConfigError: ``transform`` belongs to neither version.

    >>> from batchgenerators.transforms.color_transforms import GammaTransform
    >>> from_batchgenerators(GammaTransform(), "bg_gamma").name
    'bg_gamma'
    """
    from batchgenerators.transforms.abstract_transforms import AbstractTransform
    from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

    if not isinstance(transform, AbstractTransform | BasicTransform):
        raise ConfigError(
            f"operation {name}: expected a transform of batchgenerators or batchgeneratorsv2, "
            f"got {type(transform).__name__}"
        )
    adapted = _Batchgenerators(transform, isinstance(transform, AbstractTransform), kind == "spatial")
    return _operation(adapted, name, kind, order, mirrors)


@dataclass(frozen=True)
class _Batchgenerators:
    """One sample through a transform of batchgenerators."""

    transform: Callable[..., Any]
    first: bool  # version 1: batches of arrays
    spatial: bool

    def __call__(self, image: Tensor, label: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        moves = label is not None and self.spatial
        numbers = label.argmax(0, keepdim=True) if label is not None and moves else None
        if self.first:
            batch = {"data": image[None].numpy(), "seg": None if numbers is None else numbers[None].float().numpy()}
            done = self.transform(**batch)
            moved, seg = torch.from_numpy(np.ascontiguousarray(done["data"]))[0], done.get("seg")
            seg = None if seg is None else torch.from_numpy(np.ascontiguousarray(seg))[0]
        else:
            done = self.transform(
                **{"image": image} if numbers is None else {"image": image, "segmentation": numbers.short()}
            )
            moved, seg = done["image"], done.get("segmentation")
        if label is None or not moves or seg is None:
            return moved, label
        # what lies outside is -1 by these libraries' custom
        hot = F.one_hot(seg[0].round().long().clamp(min=0), len(label))
        return moved, hot.movedim(-1, 0).to(label)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's and torch's global random numbers start at ``seed`` and go on afterwards as if nothing had been drawn."""
    before = np.random.get_state()  # noqa: NPY002  # what these libraries draw from
    with torch.random.fork_rng(devices=[]):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def _operation(one: One, name: str, kind: Kind, order: int | None, mirrors: tuple[int, ...] | None) -> Operation:
    """A row around a function of one sample on the CPU."""
    spatial = kind == "spatial"
    return Operation(
        name, kind, "pair", partial(_every, one, name), unit="of the transform", neutral=None, moves_label=spatial,
        order=order if order is not None else (20 if spatial else 40), mirrors=mirrors if spatial else (),
    )  # fmt: skip


def _every(
    one: One, name: str, image: Tensor, label: Tensor | None, magnitude: Tensor, context: Context
) -> tuple[Tensor, Tensor | None]:
    """One sample after the other, each with a seed of its own."""
    source = "cpu" if context.generator is None else context.generator.device
    seeds = torch.randint(2**31 - 1, (len(image),), generator=context.generator, device=source).tolist()
    images, labels = [], []
    for i, seed in enumerate(seeds):
        # copies, since these libraries may write into what they are given
        x = image[i].detach().cpu().clone()
        y = None if label is None else label[i].detach().cpu().clone()
        with _seeded(seed):
            moved, soft = one(x, y, seed)
        if moved.shape != x.shape:
            raise ConfigError(
                f"operation {name} changes the size of a patch: expected {tuple(x.shape)}, "
                f"got {tuple(moved.shape)}; use a transform that keeps it"
            )
        images.append(moved.as_subclass(Tensor).to(image))
        if soft is not None and label is not None:
            labels.append(soft.as_subclass(Tensor).to(label))
    return torch.stack(images), torch.stack(labels) if labels else None
