# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The part of an exported file that averages a network's predictions of the learned views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from monai_autoaug.policies.export.parts.operations import VALUES, Step, noise, turning

__all__ = ["Views"]


@dataclass(frozen=True)
class Views:
    """The learned views at test time.

    Args:
        views: what each does, along which axes, how much of it, the seed of its noise, and its weight.
        whole: views of a whole volume, with room for all of it; otherwise of patches, whose size they keep.
        logits: average logits, otherwise probabilities.
        regions: the network's channels are regions (sigmoid), not classes (softmax).
        pairs: labels that are each other's mirror image.
        side: the axis from left to right.
    """

    views: Sequence[tuple[str, tuple[int, ...], float, int, float]]
    whole: bool = True
    logits: bool = True
    regions: bool = False
    pairs: Sequence[tuple[int, int]] = ()
    side: int = 0

    @torch.no_grad()
    def predict(self, network: Callable[[torch.Tensor], Any], image: torch.Tensor) -> torch.Tensor:
        """The weighted average.

        Args:
            network: from (B, C, ...) to logits (B, K, ...) of the same size; for example a sliding window.
            image: (B, C, D, H, W), or (B, C, H, W).

        Returns:
            (B, K, ...) logits or probabilities.
        """
        shape = tuple(image.shape[2:])
        total, seen = image.new_zeros(()), image.new_zeros(())
        for what, axes, amount, seed, weight in self.views:
            step = Step(what, axes, amount)
            back = self._back(step, self._output(network(self._view(step, image, seed))), shape)
            total, seen = total + weight * back[0], seen + weight * back[1]
        if bool((seen < 1e-3).any()):  # what no view has seen is predicted as it is
            blind = (seen < 1e-3).to(seen)
            total, seen = total + blind * self._output(network(image)), seen + blind
        return total / seen

    def _output(self, output: Any) -> torch.Tensor:
        """What is averaged; of several outputs the first counts."""
        first = (output[0] if isinstance(output, list | tuple) else output).float()
        if self.logits:
            return first
        return first.sigmoid() if self.regions else first.softmax(1)

    def _view(self, step: Step, image: torch.Tensor, seed: int) -> torch.Tensor:
        """An image as the network is to see it."""
        if step.what == "identity":
            return image
        if step.what == "flip":
            return image.flip([a + 2 for a in step.axes])
        if step.what == "turn":
            return torch.rot90(image, _quarters(step), [a + 2 for a in step.axes])
        if step.what in ("scale", "rotate"):
            shape = tuple(image.shape[2:])
            return _resampled(image, turning([step], len(shape)), _canvas(step, shape) if self.whole else shape, True)
        if step.what == "noise":
            return noise(image, step.amount, torch.Generator().manual_seed(seed))
        return VALUES[step.what](image, step.amount)

    def _back(self, step: Step, output: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction where it belongs, and how much of each voxel the view has seen."""
        seen = output.new_ones((1,) * output.ndim)
        if step.what == "flip" and self.side in step.axes and self.pairs:
            places = list(range(output.shape[1]))
            for a, b in self.pairs:
                places[a], places[b] = b, a
            output = output[:, places]
        if step.what == "flip":
            return output.flip([a + 2 for a in step.axes]), seen
        if step.what == "turn":
            return torch.rot90(output, -_quarters(step), [a + 2 for a in step.axes]), seen
        if step.what in ("scale", "rotate"):
            inverse = np.linalg.inv(turning([step], len(shape)))
            ones = output.new_ones((1, 1, *output.shape[2:]))
            return _resampled(output, inverse, shape, False), _resampled(ones, inverse, shape, False)
        return output, seen


def _quarters(step: Step) -> int:
    """Quarter turns as torch counts them."""
    return round(step.amount / 90) * (-1 if step.axes == (0, 2) else 1)


def _canvas(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Size that holds all of a view."""
    matrix = turning([step], len(shape))
    reach = np.maximum(np.abs(matrix), np.abs(np.linalg.inv(matrix))) @ np.array(shape, dtype=float)
    return tuple(int(np.floor(n + 1e-6)) for n in reach)


def _resampled(x: torch.Tensor, matrix: np.ndarray, size: tuple[int, ...], darkest: bool) -> torch.Tensor:
    """Read linearly; outside it is as dark as the darkest voxel, or 0."""
    centred = [torch.arange(n, device=x.device, dtype=torch.float32) - (n - 1) / 2 for n in size]
    grid = torch.stack(torch.meshgrid(*centred, indexing="ij"), -1) @ torch.from_numpy(matrix.T).to(centred[0])
    half = torch.tensor([max(n - 1, 1) / 2 for n in x.shape[2:]], device=x.device)
    low = x.amin(tuple(range(2, x.ndim)), keepdim=True) if darkest else x.new_zeros(())
    where = (grid / half).flip(-1)[None].expand(len(x), *[-1] * (x.ndim - 1))
    moved: torch.Tensor = F.grid_sample((x - low).float(), where, mode="bilinear", align_corners=True)
    return moved.to(x) + low
