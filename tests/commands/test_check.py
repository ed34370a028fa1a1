# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug check``: what it says of bad data, and the repaired copy."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_helpers import call

from monai_autoaug.data import write_phantom


@pytest.fixture
def sheared(tmp_path: Path) -> Path:
    """One case of three with a slight shear, and a NaN in the image of another."""
    folder = write_phantom(tmp_path / "data", cases=3, size=16)
    for name in ("imagesTr", "labelsTr"):
        image = nib.load(folder / name / "phantom_001.nii.gz")
        affine = image.affine.copy()
        affine[:3, 1] += 0.008 * affine[:3, 0]
        made = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
        made.set_qform(None, code=0)
        nib.save(made, folder / name / "phantom_001.nii.gz")
    path = folder / "imagesTr" / "phantom_002.nii.gz"
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj).astype(np.float32)
    voxels[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    return folder


def test_findings_say_how_to_repair(sheared: Path) -> None:
    result = call("check", sheared)
    assert result.exit_code == 1
    for words in ("--repair-to", "--fill", "1 refused, 0 warnings, 2 notes"):
        assert words in result.output


def test_a_repaired_copy(sheared: Path, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in sheared.rglob("*") if f.is_file()}
    file = tmp_path / "found.json"
    result = call("check", sheared, "--repair-to", tmp_path / "copy", "--fill", "min", "--json", file)
    assert result.exit_code == 0, result.output
    assert "0 refused, 0 warnings, 3 notes" in result.output
    found = json.loads(file.read_text())["findings"]
    assert [f["check"] for f in found] == ["repaired"] * 3
    shown = [f["message"] for f in found]
    assert all("axes were set at right angles, which moves voxels by up to 0." in m for m in shown[:2])
    assert "were filled with" in shown[2]
    assert {f: f.read_bytes() for f in sheared.rglob("*") if f.is_file()} == before
    assert call("check", tmp_path / "copy").exit_code == 0
    again = call("check", sheared, "--repair-to", tmp_path / "copy")
    assert again.exit_code == 2
    assert "there already" in again.output


def test_labels_that_are_lost_at_the_spacing_that_is_given(sheared: Path) -> None:
    result = call("check", sheared, "--spacing", 20, 20, 20)
    assert "loses the label" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fill", "min"], "say where: --repair-to FOLDER"),
        (["--resample"], "say where: --repair-to FOLDER"),
        (["--repair-to", "NEW", "--fill", "mean"], "neither a number nor min"),
        (["--repair-to", "NEW", "--fill", "nan"], "finite number or min"),
        (["--repair-to", "DATA/sub"], "lies in the data set"),
        (["--spacing", "0", "1", "1"], "three positive numbers"),
        (["--spacing", "nan", "1", "1"], "three positive numbers"),
    ],
)
def test_options_that_cant_work(sheared: Path, tmp_path: Path, words: list[str], says: str) -> None:
    given = [w.replace("DATA", str(sheared)).replace("NEW", str(tmp_path / "new")) for w in words]
    result = call("check", sheared, *given)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_an_archive(tmp_path: Path) -> None:
    (tmp_path / "Task04.tar").write_bytes(b"")
    result = call("check", tmp_path / "Task04.tar")
    assert result.exit_code == 2
    assert "never unpacks" in result.output
