# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A learned test-time policy around any MONAI inferer: predictions of several views of a volume, averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_autoaug.engines.metadata import plain
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.policies import TestTimePolicy, load
from monai_autoaug.transforms.registry import Operation
from monai_autoaug.transforms.views import ViewGrids, canvas

__all__ = ["TestTimePolicyInferer"]

_LEAST = 1e-7  # of a probability whose logarithm is taken; the next float32 to 1 is as far from it
_UNSEEN = 1e-3  # of the weights: a voxel that no view has seen


class TestTimePolicyInferer(Inferer):
    """Wraps an inferer: it predicts the most probable views of the whole volume, and their weighted average is given.

    In a bundle's ``inference.json``::

        "inferer": {"_target_": "monai_autoaug.engines.TestTimePolicyInferer",
                    "policy": "$@bundle_root + '/models/policy.json'",
                    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]}}

    Views are of the whole volume, as in the paper, whatever the level at which the policy was learned: rotated and
    scaled ones get a canvas that holds all of it. Their values are those of the volume, to which it has been normalised
    before. One view is made, predicted and brought back after the other, so that however many there are, memory holds
    one of them beside the image and the sum.

    Args:
        inferer: predicts a view, for example a ``SlidingWindowInferer``.
        policy: file written by a training, or a policy, of which a copy is taken.
        z: number of views; None: the policy's own (usually 8); 0: none, the wrapped inferer alone.
        views_at_once: views of equal size that the inferer gets as one batch, which takes as many times the memory;
            patches in windows are batched by the inferer itself (``sw_batch_size``).
        average: "logits" or "probabilities"; None: as the policy says. Either way the result is logits, so that what
            follows (softmax, argmax) stays as it is.
        grid_memory: MiB, on the device, of what is kept of turned and scaled views for the next volume of the same
            size; 0: nothing is.

    Raises:
        PolicyError: the file can't be used, or holds no test-time policy.
        ConfigError: a number is out of range.

    >>> from monai.inferers import SlidingWindowInferer
    >>> inferer = TestTimePolicyInferer(SlidingWindowInferer((8, 8, 8)), TestTimePolicy.preset("nnunet"), z=4)
    >>> inferer(torch.rand(1, 1, 10, 12, 9), torch.nn.Conv3d(1, 2, 1)).shape
    torch.Size([1, 2, 10, 12, 9])
    """

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(
        self,
        inferer: Inferer,
        policy: TestTimePolicy | str | os.PathLike[str],
        z: int | None = None,
        views_at_once: int = 1,
        *,
        average: Literal["logits", "probabilities"] | None = None,
        grid_memory: int = 256,
    ) -> None:
        super().__init__()
        for name, number, least in (("views_at_once", views_at_once, 1), ("grid_memory", grid_memory, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} must be a whole number, at least {least}, got {number!r}")
        given = policy if isinstance(policy, TestTimePolicy) else load(policy).test_time
        if given is None:
            raise PolicyError(f"{policy}: holds no test-time policy; expected one that a training has written")
        self.inferer, self.views_at_once = inferer, views_at_once
        self.z = given.z if z is None else z
        self.policy = TestTimePolicy(
            given.operations, given.logits.detach().cpu(), spatial_dims=given.spatial_dims, level="volume",
            average=given.average if average is None else average, regions=given.regions, laterality=given.laterality,
            z=None if z in (None, 0) else z,
        ).requires_grad_(False)  # fmt: skip
        self.policy.grids = ViewGrids(grid_memory * 2**20) if grid_memory else None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict a batch of volumes.

        Args:
            inputs: (B, C, D, H, W), normalised; a MetaTensor's metadata is kept.
            network: gives logits (B, K, ...) of its input's size, or several outputs, of which the first counts.
            args: further arguments of the wrapped inferer.
            kwargs: likewise.

        Returns:
            (B, K, D, H, W) logits in at least float32, where the wrapped inferer puts them.

        Raises:
            ConfigError: the input has other spatial dimensions than the policy, or the prediction another size.
        """
        if self.z == 0:
            return self.inferer(inputs, network, *args, **kwargs)
        if inputs.ndim != self.policy.spatial_dims + 2:
            raise ConfigError(
                f"the policy is of {self.policy.spatial_dims}D views, expected (B, C, ...) with as many spatial axes,"
                f" came {tuple(inputs.shape)}"
            )

        def predict(view: Tensor) -> Tensor:
            return self._values(self.inferer(view, network, *args, **kwargs), view)

        result = self._logits(self._average(plain(inputs), predict))
        if isinstance(inputs, MetaTensor):
            result = MetaTensor(result)
            result.copy_meta_from(inputs, copy_attr=False)
        return result

    def _average(self, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean of the views' predictions over those that have seen a voxel."""
        operations, weights = self.policy.top(self.z)
        weight = dict(zip(operations, weights.tolist(), strict=True))
        shape = tuple(image.shape[2:])
        total: Tensor | None = None
        seen: Tensor | None = None
        for group in self._groups(operations, shape):
            output = predict(_together([self.policy.view(o, image) for o in group]))
            for operation, part in zip(group, output.split(len(image)), strict=True):
                back, covered = self.policy.revert(operation, part, shape)
                share = weight[operation]
                total = share * back if total is None else total.add_(back, alpha=share)
                seen = share * covered if seen is None else seen + share * covered
            del output, part, back, covered  # before the next view is made
        assert total is not None  # noqa: S101  # for the type checker: there is at least one view
        assert seen is not None  # noqa: S101
        if bool((seen < _UNSEEN).any()):
            # enlarging views, and others of next to no weight: what lies outside of all of them is predicted as it is
            blind = (seen < _UNSEEN).to(seen)
            total, seen = total + blind * predict(image), seen + blind
        return total.div_(seen)

    def _groups(self, operations: Sequence[Operation], shape: tuple[int, ...]) -> Iterator[list[Operation]]:
        """Views of equal size together, as many as may be predicted at once."""
        by_size: dict[tuple[int, ...], list[Operation]] = {}
        for operation in operations:
            by_size.setdefault(canvas(operation, shape), []).append(operation)
        for group in by_size.values():
            for start in range(0, len(group), self.views_at_once):
                yield group[start : start + self.views_at_once]

    def _values(self, output: Any, view: Tensor) -> Tensor:
        """What is averaged, of what the wrapped inferer gave: logits or probabilities."""
        first = plain(output[0] if isinstance(output, list | tuple) else output)
        if not isinstance(first, Tensor) or first.shape[2:] != view.shape[2:]:
            came = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ConfigError(
                f"the predictions of views are averaged voxel by voxel: expected (B, K, {tuple(view.shape[2:])}) from"
                f" {type(self.inferer).__name__}, came {came}"
            )
        logits = first if first.dtype == torch.float64 else first.float()
        if self.policy.average == "logits":
            return logits
        return logits.sigmoid() if self.policy.regions else logits.softmax(1)

    def _logits(self, average: Tensor) -> Tensor:
        """Logits again, of averaged probabilities."""
        if self.policy.average == "logits":
            return average
        return average.logit(eps=_LEAST) if self.policy.regions else average.clamp(min=_LEAST).log()


def _together(views: Sequence[Tensor]) -> Tensor:
    """One batch; a single view is not copied."""
    return views[0] if len(views) == 1 else torch.cat(list(views))
