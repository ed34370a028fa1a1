# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Sensitivity, precision and surface Dice, and what a missing structure counts when methods are compared."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix
from scipy import ndimage

from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import METRICS, evaluate
from monai_autoaug.evaluation.metrics import decided, precision, sensitivity, surface_dice

SPACING = (1.0, 1.5, 0.5)
EMPTY = np.zeros((6, 7, 8), bool)
BLOB = EMPTY.copy()
BLOB[2:4, 2:5, 1:6] = True


@pytest.mark.parametrize("seed", range(3))
def test_they_are_monais(seed: int) -> None:
    p, r = np.random.default_rng(seed).random((2, 6, 7, 8)) < 0.4
    counts = get_confusion_matrix(torch.from_numpy(p[None, None]).float(), torch.from_numpy(r[None, None]).float())
    for name, function in (("sensitivity", sensitivity), ("precision", precision)):
        assert function(p, r) == pytest.approx(compute_confusion_matrix_metric(name, counts).item(), abs=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 0.6, 1.5])
def test_surface_dice_by_distance_maps(tolerance: float) -> None:
    """A second implementation: edges by erosion, distances by Euclidean distance transforms in mm."""
    rng = np.random.default_rng(1)
    p, r = ndimage.gaussian_filter(rng.random((2, 14, 15, 16)), (0, 2, 2, 2)) > 0.5
    edges = [m & ~ndimage.binary_erosion(m) for m in (p, r)]
    distances = [ndimage.distance_transform_edt(~e, sampling=SPACING) for e in edges]
    within = (distances[1][edges[0]] <= tolerance).sum() + (distances[0][edges[1]] <= tolerance).sum()
    expected = within / (edges[0].sum() + edges[1].sum())
    assert surface_dice(p, r, SPACING, tolerance) == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


def test_what_is_missing_counts_in_a_comparison() -> None:
    metrics = decided()
    worst = float(np.sqrt(6**2 + (7 * 1.5) ** 2 + (8 * 0.5) ** 2))
    missed = {name: m.function(EMPTY, BLOB, SPACING) for name, m in metrics.items()}
    assert missed == {"dice": 0, "sensitivity": 0, "precision": 0, "hd95": pytest.approx(worst), "surface_dice": 0}
    invented = {name: m.function(BLOB, EMPTY, SPACING) for name, m in metrics.items()}
    assert np.isnan(invented.pop("sensitivity"))
    assert invented == {"dice": 0, "precision": 0, "hd95": pytest.approx(worst), "surface_dice": 0}
    neither = {name: m.function(EMPTY, EMPTY, SPACING) for name, m in metrics.items()}
    assert np.isnan(neither.pop("sensitivity"))
    assert neither == {"dice": 1, "precision": 1, "hd95": 0, "surface_dice": 1}
    blob, empty = (torch.from_numpy(m[None, None]).float() for m in (BLOB, EMPTY))
    for p, r, expected in ((empty, empty, 1.0), (blob, empty, 0.0), (empty, blob, 0.0)):
        assert compute_dice(p, r, ignore_empty=False).item() == expected  # MONAI's rule


def test_what_is_there_is_as_always() -> None:
    other = np.roll(BLOB, 1, axis=1)
    for name, metric in decided(0.2).items():
        if name != "surface_dice":
            assert metric.function(other, BLOB, SPACING) == METRICS[name].function(other, BLOB, SPACING)
        assert (metric.unit, metric.higher_is_better) == (METRICS[name].unit, METRICS[name].higher_is_better)
    assert decided(0.2)["surface_dice"].function(other, BLOB, SPACING) < decided(2.0)["surface_dice"].function(
        other, BLOB, SPACING
    )


@pytest.mark.parametrize("tolerance", [-0.1, float("inf"), float("nan")])
def test_a_tolerance_that_cannot_be(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="tolerance of the surface Dice must be 0 mm or more"):
        decided(tolerance)


def test_evaluate_takes_metrics_of_ones_own(tmp_path: Path) -> None:
    for folder, volume in (("labels", BLOB), ("predictions", EMPTY)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(volume.astype(np.uint8), np.eye(4)), tmp_path / folder / "a.nii.gz")
    plain = evaluate(tmp_path / "predictions", tmp_path / "labels", metrics=("hd95",))
    assert np.isnan(plain.values["hd95"]).all()
    found = evaluate(tmp_path / "predictions", tmp_path / "labels", metrics=decided())
    assert found.values["hd95"].item() == pytest.approx(np.sqrt(6**2 + 7**2 + 8**2))
    assert set(found.values) == set(METRICS)
