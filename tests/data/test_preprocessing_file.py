# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The JSON file of a preprocessing is read back as it was, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monai_autoaug.data import Preprocessing, read_datalist, write_phantom
from monai_autoaug.data.statistics import IntensityStatistics
from monai_autoaug.errors import ConfigError


def _fitted(folder: Path) -> Preprocessing:
    data = read_datalist(write_phantom(folder, cases=1, size=16))
    return Preprocessing.fit(data, data.training)


def test_saved_and_loaded(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "data", cases=1, size=16, layout="nnunet", channels=2, regions=True, ignore=True)
    data = read_datalist(folder)
    preprocessing = Preprocessing.fit(data, data.training, normalisation=("ct", "zscore"))
    assert Preprocessing.load(preprocessing.save(tmp_path / "run" / "preprocessing.json")) == preprocessing
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["preprocessing.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing": [1.0, 0.0, 1.0]}, {"spacing": [1.0, 1.0]}, {"spacing": ["1", 1.0, 1.0]}, {"channels": []},
        {"normalisation": ["minmax"]}, {"label_values": [1, 2, 3]}, {"label_values": [0, 2, 1]}, {"ignore_label": 1},
        {"orientation": "RAX"}, {"orientation": "RLS"}, {"version": 2}, {"extra": 1}, {"statistics": [{"mean": 1.0}]},
        {"regions_class_order": [1]}, {"label_names": ["background"]}, {"median_shape": [1.5, 1, 1]},
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = _fitted(tmp_path / "data").save(tmp_path / "p.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=r"p\.json: is no valid preprocessing"):
        Preprocessing.load(path)


def test_files_that_are_not_finite_or_not_json(tmp_path: Path) -> None:
    path = _fitted(tmp_path / "data").save(tmp_path / "p.json")
    text = path.read_text()
    path.write_text(text.replace(str(json.loads(text)["statistics"][0]["mean"]), "NaN"))
    with pytest.raises(ConfigError, match="mean must be a finite number"):
        IntensityStatistics(float("nan"), 1.0, 0.0, 1.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="NaN is no number"):
        Preprocessing.load(path)
    path.write_text(text[:100])
    with pytest.raises(ConfigError, match="can't be read"):
        Preprocessing.load(path)
