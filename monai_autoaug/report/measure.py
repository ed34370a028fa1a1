# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How strong learned augmenters are, measured on the training patch that a run has kept: in mm, in folding voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.augmenters import Augmenter
from monai_autoaug.methods.collapse import WARN_ABOVE, WARN_BELOW
from monai_autoaug.methods.sample_file import Patch
from monai_autoaug.report.source import finite
from monai_autoaug.transforms.geometry import identity_grid, jacobian_determinant

__all__ = ["DRAWS", "displacement_mm", "logged_figures", "measured_figures"]

DRAWS = 16
_SEED = 7
# what a log tells of an augmenter at the end: name -> words, unit, and how it is read
_LOGGED = {
    "rotation": ("rotation", "°", ""),
    "noise_share": ("variation due to noise", "", "near 0: one transformation for all"),
    "learned_share": ("variation that is learned", "", "of all variation, what is not the random policy's"),
    "saturation": ("parameters at their bounds", "", "0.05 for uniform draws"),
    "loss_ratio": ("loss, transformed over untransformed", "", "above 1: the task is harder"),
    "penalty": ("magnitude penalty", "", ""),
}


def displacement_mm(grid: Tensor, spacing: Sequence[float]) -> Tensor:
    """How far each voxel is moved.

    Args:
        grid: (B, D, H, W, 3) where each voxel is read from, in centred voxels.
        spacing: voxel size in mm.

    Returns:
        (B, D, H, W) in mm.

    >>> grid = identity_grid((3, 3, 3)) + torch.tensor([2.0, 0.0, 0.0])
    >>> displacement_mm(grid, (1.5, 1.0, 1.0)).unique()
    tensor([3.])
    """
    still = identity_grid(tuple(grid.shape[1:-1]), dtype=grid.dtype, device=grid.device)
    return ((grid - still) * torch.tensor(tuple(spacing), dtype=grid.dtype)).square().sum(-1).sqrt()


@torch.no_grad()
def measured_figures(augmenter: Augmenter, patch: Patch, *, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Figures of one augmenter over some draws of its noise, on one patch.

    Args:
        augmenter: in evaluation mode, on the CPU.
        patch: that a run has kept.
        draws: how many.

    Returns:
        For each: ``name``, ``value``, ``unit``, ``hint``, ``measured`` (not read from a log) and ``bad``: whether it is
        beyond what a run warns of.
    """
    noise = augmenter.sample_noise(draws, torch.Generator().manual_seed(_SEED))
    lengths, folded, voxels, added = [], 0, 0, []
    rest: dict[str, list[float]] = {}
    for row in noise.split(1):
        t = augmenter(patch.image[None], row, spacing=torch.tensor([patch.spacing]))
        if t.moves_geometry:
            grid = t.grid(patch.margin)
            lengths.append(displacement_mm(grid, patch.spacing).flatten())
            determinant = jacobian_determinant(grid)
            folded, voxels = folded + int((determinant <= 0).sum()), voxels + determinant.numel()
        if t.additive is not None:
            added.append(t.additive.float().abs().flatten())
        for name, value in t.magnitude().items():
            rest.setdefault(name, []).append(float(value[0]))
    figures: list[dict[str, Any]] = []
    if lengths:
        length = torch.cat(lengths)
        mean = float(length.mean())
        least = WARN_BELOW["displacement_mean"] * min(patch.spacing)
        figures.append(_figure("mean displacement", mean, "mm", "", bad=mean < least))
        figures.append(_figure("95th percentile of displacement", _percentile(length, 0.95), "mm"))
        figures.append(_figure("largest displacement", float(length.max()), "mm"))
        figures.append(
            _figure("folding voxels", folded, "", f"of {voxels} in {draws} draws: Jacobian determinant at most 0",
                    bad=folded > 0)
        )  # fmt: skip
        if "log_volume" in rest:
            volumes = torch.tensor(rest["log_volume"]).exp()
            figures.append(_figure("smallest volume", float(volumes.min()), "×", "after over before"))
            figures.append(_figure("largest volume", float(volumes.max()), "×"))
        least_volume = min(rest["jacobian_minimum"])
        figures.append(_figure("smallest Jacobian determinant", least_volume, "", "1: volumes are kept"))
    if added:
        change = torch.cat(added)
        figures.append(
            _figure("mean change of intensity", float(change.mean()), "SD", "standard deviations of the image",
                    bad=float(change.mean()) < WARN_BELOW["additive_mean"])
        )  # fmt: skip
        figures.append(_figure("largest change of intensity", float(change.max()), "SD"))
    for name in ("brightness", "contrast", "gamma", "noise"):
        if name in rest:
            figures.append(_figure(name, sum(rest[name]) / len(rest[name]), "", "mean size"))
    return figures


def logged_figures(row: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """What a line of a log says of one augmenter beyond what can be measured on a patch.

    Args:
        row: of the last epoch.
        kind: name of the augmenter.
    """
    figures = []
    for key, (words, unit, hint) in _LOGGED.items():
        value = finite(row.get(f"{kind}_{key}"))
        if value is not None:
            bad = value < WARN_BELOW.get(key, -float("inf")) or value > WARN_ABOVE.get(key, float("inf"))
            figures.append(_figure(words, value, unit, hint, bad=bad, measured=False))
    return figures


def _figure(
    name: str, value: float, unit: str = "", hint: str = "", *, bad: bool = False, measured: bool = True
) -> dict[str, Any]:
    return {"name": name, "value": finite(value), "unit": unit, "hint": hint, "bad": bad, "measured": measured}


def _percentile(values: Tensor, share: float) -> float:
    """Of many values those in equal steps, because torch takes some millions at most."""
    return float(values[:: max(1, len(values) // 1_000_000)].quantile(share))
