# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Post-processing by connected components against scipy, and what it does to Dice and to a distance."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from monai_autoaug.cli import main
from monai_autoaug.data import Preprocessing, read_datalist, write_phantom
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.segmentation import build_network
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import Components, Evaluation, evaluate, hausdorff95

SPACING = (1.0, 0.8, 2.5)


def speckled(seed: int, shape: tuple[int, ...] = (14, 15, 16)) -> np.ndarray:
    """Blobs of three labels with many specks of each."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    for value, low in ((1, 0.05), (2, 0.12), (3, 0.2)):
        labels[smooth > low] = value
    specks = rng.random(shape) < 0.04
    labels[specks] = rng.integers(1, 4, int(specks.sum()))
    return labels


def reference(labels: np.ndarray, connectivity: int, keep: str, least: float = 0.0) -> np.ndarray:
    """The same by scipy alone: ``least`` in voxels, or a share."""
    result = np.zeros_like(labels)
    structure = ndimage.generate_binary_structure(labels.ndim, connectivity)
    for value in (1, 2, 3):
        parts, count = ndimage.label(labels == value, structure)
        sizes = ndimage.sum_labels(labels == value, parts, range(1, count + 1))
        whole = sizes.sum()
        chosen = {
            "largest": [int(sizes.argmax()) + 1] if count else [],
            "share": [k + 1 for k in range(count) if sizes[k] >= least * whole],
            "voxels": [k + 1 for k in range(count) if sizes[k] >= least],
        }[keep]
        result[np.isin(parts, chosen)] = value
    return result


@pytest.mark.parametrize("connectivity", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_scipy(connectivity: int, seed: int) -> None:
    labels = speckled(seed)
    before = labels.copy()
    largest = Components(largest=True, connectivity=connectivity)(labels)
    assert np.array_equal(largest, reference(labels, connectivity, "largest"))
    for share in (0.02, 0.3):
        found = Components(share=share, connectivity=connectivity)(labels)
        assert np.array_equal(found, reference(labels, connectivity, "share", share))
    voxel = float(np.prod(SPACING))
    for voxels in (1, 2, 3, 7):  # a component of exactly this volume stays
        found = Components(volume=voxels * voxel, connectivity=connectivity)(labels, SPACING)
        assert np.array_equal(found, reference(labels, connectivity, "voxels", voxels))
        found = Components(volume=(voxels + 0.1) * voxel, connectivity=connectivity)(labels, SPACING)
        assert np.array_equal(found, reference(labels, connectivity, "voxels", voxels + 1))
    assert np.array_equal(labels, before)
    assert largest.dtype == labels.dtype
    assert not np.array_equal(largest, labels)


def test_corners_belong_together_unless_told_otherwise() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[1, 1, 2] = 1
    assert np.array_equal(Components(largest=True)(labels), labels)
    assert int(Components(largest=True, connectivity=2)(labels).sum()) == 2
    flat = np.eye(4, dtype=np.uint8)
    assert np.array_equal(Components(largest=True)(flat), flat)


def test_empty_and_full_structures_and_what_is_smaller_than_the_least() -> None:
    empty = np.zeros((4, 4, 4), np.int16)
    full = np.ones((4, 4, 4), np.int16)
    for components in (Components(largest=True), Components(share=0.5), Components(volume=64.0)):
        assert np.array_equal(components(empty, (1, 1, 1)), empty)
        assert np.array_equal(components(full, (1, 1, 1)), full)
    assert not Components(volume=65.0)(full, (1, 1, 1)).any()


def test_regions_are_looked_at_as_a_whole() -> None:
    """A core within an oedema: one region, though its labels lie apart."""
    labels = np.zeros((1, 1, 9), np.uint8)
    labels[0, 0] = [1, 2, 1, 1, 0, 2, 2, 0, 0]
    assert Components(largest=True)(labels)[0, 0].tolist() == [0, 0, 1, 1, 0, 2, 2, 0, 0]
    assert Components(largest=True)(labels, structures=[(1, 2)])[0, 0].tolist() == [1, 2, 1, 1, 0, 0, 0, 0, 0]
    assert Components(largest=True)(labels, structures=[(1, 2), (2,)])[0, 0].tolist() == [1, 2, 1, 1, 0, 0, 0, 0, 0]


def test_no_warnings_reach_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cleaned = Components(share=0.1, largest=True)(speckled(0))
    assert cleaned.any()


@pytest.mark.parametrize(("text", "expected"), [("largest", "largest"), ("12.5%", "12.5%"), ("500mm3", "500 mm3")])
def test_what_an_option_says(text: str, expected: str) -> None:
    assert str(Components.parse(text)) == expected
    assert Components.parse(str(Components.parse(text))) == Components.parse(text)


def test_what_cannot_be_is_refused() -> None:
    for text in ("biggest", "10", "-5%", "150%", "0%"):
        with pytest.raises(ConfigError, match="components"):
            Components.parse(text)
    with pytest.raises(ConfigError, match="need the voxel size along 3 axes, got ()"):
        Components(volume=3.0)(speckled(0))
    with pytest.raises(ConfigError, match="connectivity must be"):
        Components(largest=True, connectivity=4)
    with pytest.raises(ConfigError, match="otherwise all of them stay"):
        Components()


def write(folder: Path, name: str, labels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([*SPACING, 1.0])), folder / f"{name}.nii.gz")


def test_dice_and_distance_with_and_without(tmp_path: Path) -> None:
    """A speck far away hardly changes Dice; it decides the distance."""
    label = np.zeros((20, 20, 20), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    prediction = label.copy()
    prediction[17:20, 16:19, 17:20] = 1
    for k in range(2):
        write(tmp_path / "labels", f"case{k}", label)
        write(tmp_path / "predictions", f"case{k}", prediction)
    args = ["evaluate", str(tmp_path / "predictions"), str(tmp_path / "labels"), "--hd95", "--json"]
    found = {}
    for name, more in (("with", ["--components", "largest"]), ("without", []), ("small", ["--components", "1000mm3"])):
        file = tmp_path / f"{name}.json"
        result = CliRunner().invoke(main, [*args, str(file), *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "HD95 in mm" in result.output
        assert ("components: " in result.output) == bool(more)
        found[name] = Evaluation.load(file)
    assert found["with"].mean("dice") == 1.0
    assert found["with"].mean("hd95") == 0.0
    assert found["without"].mean("dice") > 0.93
    assert found["without"].mean("hd95") > 20
    assert found["small"].to_dict()["cases"]["case0"]["hd95"] == {"label_1": None}  # nothing is left to measure
    assert [found[n].components for n in ("with", "without", "small")] == ["largest", "", "1000 mm3"]
    assert "components" not in json.loads((tmp_path / "without.json").read_text(encoding="utf-8"))
    same = evaluate(
        tmp_path / "predictions", tmp_path / "labels", metrics=["hd95"], components=Components(largest=True)
    )
    assert same.mean("hd95") == 0.0


@pytest.mark.parametrize("regions", [False, True])
def test_predictions_are_cleaned_before_they_are_written(regions: bool, tmp_path: Path) -> None:
    """A network that was never trained predicts specks; regions are looked at as regions."""
    datalist = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16, layout="nnunet", regions=regions))
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    preprocessing = Preprocessing.fit(datalist, datalist.training)
    preprocessing.save(run.preprocessing)
    options = {"data": "data", "method": "none", "method_options": {}}
    content = {"patch_size": [16] * 3, "margin": [0] * 3, "options": options, "split": {"train": [], "validation": []}}
    run.config.write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(0)
    options = {"channels": [4, 8]}
    outputs = preprocessing.num_outputs
    network = build_network("unet", len(preprocessing.channels), outputs, **options)
    run.save_model(network, name="unet", inputs=len(preprocessing.channels), outputs=outputs, options=options)
    image = datalist.training[0].images[0]
    args = ["predict", str(run.folder), str(image), "--device", "cpu"]
    found = []
    for name, more in (("all", []), ("largest", ["--components", "largest"])):
        file = tmp_path / f"{name}.nii.gz"
        result = CliRunner().invoke(main, [*args[:3], str(file), *args[3:], *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found.append(np.asanyarray(nib.load(file).dataobj))
    structures = preprocessing.regions or [(v,) for v in preprocessing.label_values[1:]]
    assert np.array_equal(found[1], Components(largest=True)(found[0], structures=structures))
    assert not np.array_equal(found[0], found[1])
    refused = CliRunner().invoke(main, [*args[:3], str(tmp_path / "x.nii.gz"), "--components", "biggest"])
    assert refused.exit_code != 0
    assert "components must be largest" in refused.output


def test_distance_against_scipy() -> None:
    """Surfaces by erosion, distances by a distance transform; the larger of the two 95th percentiles."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = (ndimage.gaussian_filter(rng.normal(size=(16, 14, 12)), 2) > 0.02 for _ in range(2))
        edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]
        far = [ndimage.distance_transform_edt(~e, sampling=SPACING) for e in edges]
        expected = max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95))
        assert hausdorff95(a, b, SPACING) == pytest.approx(expected, abs=1e-4)
    none = np.zeros_like(a)
    assert np.isnan([hausdorff95(a, none, SPACING), hausdorff95(none, a, SPACING)]).all()
