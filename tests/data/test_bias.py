# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""N4 bias correction and scaling by percentiles: against what they are to find, through preprocessing and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from preprocess_helpers import fit, one_case

from monai_autoaug.data import Preprocessing
from monai_autoaug.data.bias import CorrectBiasd, correct_bias
from monai_autoaug.data.statistics import IntensityStatistics
from monai_autoaug.data.volume_transforms import NormalizeLikeNNUNetd
from monai_autoaug.errors import ConfigError, DataError


def biased(shape: tuple[int, int, int] = (32, 36, 30)) -> tuple[np.ndarray, np.ndarray]:
    """Two tissues in noise, without and with a smooth field over them."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside, core = (grid**2).sum(0) < 0.9, (grid**2).sum(0) < 0.3
    clean = inside * (100.0 + 80 * core + rng.normal(0, 2, shape))
    return clean, clean * np.exp(0.4 * grid[0] - 0.3 * grid[1] * grid[2])


def spread(volume: np.ndarray, clean: np.ndarray) -> float:
    """Relative deviation within the outer tissue."""
    tissue = volume[(clean > 50) & (clean < 140)]
    return float(tissue.std() / tissue.mean())


def test_a_smooth_field_is_taken_off() -> None:
    clean, seen = biased()
    corrected = correct_bias(seen)
    assert corrected.dtype == np.float32
    assert spread(seen, clean) > 0.15
    assert spread(corrected, clean) < 0.06
    assert np.array_equal(corrected, correct_bias(seen))
    assert np.array_equal(corrected == 0, seen == 0)


@pytest.mark.parametrize("volume", [np.zeros((8, 8, 8)), np.full((8, 8, 8), 3.0), -np.ones((8, 8, 8))])
def test_where_there_is_nothing_to_correct_it_stays(volume: np.ndarray) -> None:
    assert np.array_equal(correct_bias(volume), volume.astype(np.float32))


def test_each_channel_is_corrected_by_itself() -> None:
    _, seen = biased((16, 16, 16))
    item = CorrectBiasd("image")({"image": torch.from_numpy(np.stack([seen, np.ones_like(seen)])).float()})
    assert torch.equal(item["image"][1], torch.ones(16, 16, 16))
    assert np.array_equal(item["image"][0].numpy(), correct_bias(seen.astype(np.float32)))


def test_preprocessing_corrects_before_it_normalises(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    plain = Preprocessing.fit(data, data.training, normalisation="percentile")
    assert plain.bias_correction is False
    both = Preprocessing.fit(data, data.training, normalisation="percentile", bias_correction=True)
    assert both == replace(plain, bias_correction=True)
    voxels = nib.load(data.training[0].images[0]).get_fdata(dtype=np.float32)
    for preprocessing, source in ((plain, voxels), (both, correct_bias(voxels))):
        low, high = np.percentile(source, (2, 98))
        image = preprocessing.transforms(keys=("image",))(data.to_monai()[0])["image"]
        np.testing.assert_allclose(image[0].numpy(), (source - low) / (high - low), atol=1e-5)
        assert float(image.min()) < 0
        assert float(image.max()) > 1
    assert not np.allclose(voxels, correct_bias(voxels))


def test_percentiles_that_are_equal_are_refused_by_name() -> None:
    """Dividing by their distance would make one voxel of it some millions."""
    flat = IntensityStatistics(2.0, 2.0, minimum=0.0, maximum=9.0, percentile_00_5=0.0, percentile_99_5=4.0)
    normalise = NormalizeLikeNNUNetd("image", schemes=("percentile",), statistics=(flat,))
    image = torch.zeros(1, 10, 10, 10)
    assert torch.equal(normalise({"image": image})["image"], image)  # constant: there is nothing to scale
    image[0, :2, 2, 2] = 100.0
    with pytest.raises(DataError, match=r"a1: can't be scaled by percentiles.*To do: use normalisation zscore"):
        normalise({"image": image, "case": "a1"})


def test_its_file_knows_it_and_older_files_do_not(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    preprocessing = fit(data)
    path = replace(preprocessing, bias_correction=True).save(tmp_path / "p.json")
    assert Preprocessing.load(path).bias_correction is True
    content = json.loads(path.read_text())
    del content["bias_correction"]
    path.write_text(json.dumps(content))
    assert Preprocessing.load(path) == preprocessing
    path.write_text(json.dumps(content | {"bias_correction": 1}))
    with pytest.raises(ConfigError, match="bias_correction can't be 1"):
        Preprocessing.load(path)


def test_images_normalised_as_ct_have_no_bias(tmp_path: Path) -> None:
    data = one_case(tmp_path)
    with pytest.raises(ConfigError, match="bias_correction is for MR images"):
        Preprocessing.fit(data, data.training, normalisation="ct", bias_correction=True)
