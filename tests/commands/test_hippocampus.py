# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The main job on real MRI: from the Decathlon's folder to NIfTI predictions that are right."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from monai_autoaug.cli import main
from monai_autoaug.evaluation import Evaluation


def train(hippocampus: Path, folder: Path, *words: object) -> tuple[Evaluation, dict[str, object]]:
    command = ["train", hippocampus, "--output", folder, "--device", "cpu", *words]
    result = CliRunner().invoke(main, [str(w) for w in command])
    assert result.exit_code == 0, result.output
    return Evaluation.load(folder / "validation.json"), json.loads((folder / "summary.json").read_text())


def test_a_short_training_on_real_images(hippocampus: Path, tmp_path: Path) -> None:
    """120 iterations on 40 cases: far from trained, far from chance."""
    short = ["--train-cases", 40, "--validation-cases", 8, "--epochs", 3, "--iterations", 40]
    evaluation, _ = train(hippocampus, tmp_path / "run", *short)
    assert evaluation.classes == ("Anterior", "Posterior")
    assert len(evaluation.cases) == 8
    assert evaluation.mean() > 0.7
    for file in (tmp_path / "run" / "validation").iterdir():
        image = nib.load(hippocampus / "imagesTr" / file.name)
        prediction = nib.load(file)
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)


@pytest.mark.long
def test_the_default_training_on_real_images(hippocampus: Path, tmp_path: Path) -> None:
    """100 training and 30 validation cases, a network of about 1 M parameters, less than 30 minutes of CPU."""
    evaluation, summary = train(hippocampus, tmp_path / "run", "--train-cases", 100, "--validation-cases", 30)
    assert len(evaluation.cases) == 30
    assert evaluation.mean() >= 0.84
    assert float(str(summary["cpu_seconds"])) < 30 * 60
    assert 0.8e6 < float(str(summary["parameters"])) < 1.5e6
