# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run from NIfTI to NIfTI: complete, repeatable, resumable, and refused where it can't work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from run_helpers import options, rows, weights

from monai_autoaug import augmenters
from monai_autoaug.data import read_datalist, split, write_phantom
from monai_autoaug.engines import TrainOptions, predict, train
from monai_autoaug.engines.options import find_device
from monai_autoaug.engines.prediction import PredictionError
from monai_autoaug.engines.progress import Progress
from monai_autoaug.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=5, size=20)


def test_a_run_leaves_everything(data: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    run = train(options(data, tmp_path / "run"), listener=heard.append)
    log = rows(run)
    assert [r["epoch"] for r in log] == [1, 2, 3]
    assert ["dice_head" in r for r in log] == [False, True, True]  # every second epoch, and the last
    assert all(r["deformation_noise_share"] > 0 for r in log)
    summary = json.loads(run.summary.read_text())
    assert summary["method"] == "adversarial"
    assert summary["cases"] == {"train": 3, "validation": 2}
    assert summary["cpu_seconds"] > 0
    assert set(augmenters.load(run.augmenters)) == {"affine", "deformation", "appearance"}
    config = json.loads(run.config.read_text())
    written = {f.name.removesuffix(".nii.gz"): f for f in run.validation.iterdir()}
    assert sorted(written) == sorted(config["split"]["validation"])
    for name, file in written.items():
        image = nib.load(data / "imagesTr" / f"{name}.nii.gz")
        prediction = nib.load(file)
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)
        assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2, 3}
    stages = [p.stage for p in heard]
    begun = ["checking"] * 5 + ["hashing"] * 5 + ["preparing"] * 6
    assert stages == [*begun, *["training"] * 14, *["predicting"] * 2]
    assert [p.note for p in heard if p.note] == ["5 cases: 3 train the network, 2 validate it"]
    # every iteration, and again after each validation and at the end of each epoch
    assert [p.done for p in heard if p.stage == "training"] == [1, 2, 3, 3, 4, 5, 6, 6, 6, 7, 8, 9, 9, 9]
    assert [p.dice is None for p in heard if p.stage == "training"] == [True] * 7 + [False] * 7


def test_the_end_of_an_epoch_tells_what_its_line_in_the_log_does(data: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    run = train(options(data, tmp_path / "run", method="none"), listener=heard.append)
    log, ends = [json.loads(line) for line in run.log.read_text().splitlines()], [p for p in heard if p.ended]
    assert [p.epoch for p in ends] == [1, 2, 3]
    assert sum(p.ended.seconds for p in ends if p.ended) == pytest.approx(log[-1]["seconds"], abs=0.01)
    for row, progress in zip(log, ends, strict=True):
        ended = progress.ended
        assert ended is not None
        assert progress.dice == pytest.approx(row["dice"], rel=1e-4) if "dice" in row else not ended.dice
        assert ended.dice == pytest.approx(
            {name: row[f"dice_{name}"] for name in ("head", "body", "round") if f"dice_{name}" in row}, rel=1e-4
        )
        assert ended.loss == pytest.approx(row["loss"], rel=1e-4)
        assert ended.memory is None or 100 < ended.memory < 100_000
        assert ended.device_memory is None
        assert ended.entropy == {}  # there is no policy


def test_the_same_seed_gives_the_same_run_and_another_seed_another(data: Path, tmp_path: Path) -> None:
    first = train(options(data, tmp_path / "a"))
    second = train(options(data, tmp_path / "b"))
    third = train(options(data, tmp_path / "c", seed=1))
    assert rows(first) == rows(second)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert rows(first) != rows(third)
    splits = [json.loads(r.config.read_text())["split"] for r in (first, third)]
    assert splits[0] == splits[1]  # another seed trains differently on the same cases


def test_a_cache_on_disk_changes_nothing(data: Path, tmp_path: Path) -> None:
    memory = train(options(data, tmp_path / "memory", method="none"))
    disk = train(options(data, tmp_path / "disk", method="none", cache=tmp_path / "cache"))
    again = train(options(data, tmp_path / "again", method="none", cache=tmp_path / "cache"))
    assert rows(memory) == rows(disk) == rows(again)
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 5


@pytest.mark.parametrize("network", ["segresnet", "dynunet"])
def test_other_networks_two_channels_and_workers(tmp_path: Path, network: str) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20, channels=2)
    small = {"segresnet": {"filters": 4, "blocks_down": [1, 1], "blocks_up": [1]}, "dynunet": {"channels": [4, 8, 8]}}
    one = train(options(data, tmp_path / "one", network=network, network_options=small[network], epochs=1))
    two = train(options(data, tmp_path / "two", network=network, network_options=small[network], epochs=1, workers=2))
    assert rows(one) == rows(two)
    model = one.load_model()
    assert model(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


def test_regions_are_learned_and_written(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20, layout="nnunet", regions=True)
    run = train(options(data, tmp_path / "run"))
    assert {"dice_hook", "dice_head", "dice_round"} <= set(rows(run)[-1])
    for file in run.validation.iterdir():
        assert set(np.unique(np.asarray(nib.load(file).dataobj))) <= {0, 1, 2, 3}


@pytest.mark.parametrize("method", ["none", "adversarial"])
def test_an_ignore_label_is_no_class(tmp_path: Path, method: str) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20, layout="nnunet", ignore=True)
    run = train(options(data, tmp_path / "run", method=method))
    assert np.isfinite([r["loss"] for r in rows(run)]).all()
    assert run.load_model()(torch.zeros(1, 1, 16, 16, 16)).shape[1] == 4


@pytest.mark.parametrize("method", ["none", "adversarial"])
def test_regions_with_an_ignore_label(tmp_path: Path, method: str) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20, layout="nnunet", ignore=True, regions=True)
    run = train(options(data, tmp_path / "run", method=method))
    assert np.isfinite([r["loss"] for r in rows(run)]).all()
    assert {"dice_hook", "dice_head", "dice_round"} <= set(rows(run)[-1])
    assert json.loads(run.summary.read_text())["skipped_updates"] == {}
    for file in run.validation.iterdir():
        assert set(np.unique(np.asarray(nib.load(file).dataobj))) <= {0, 1, 2, 3}


@pytest.mark.parametrize("chosen", ["auto", "ct", ("ct",)])
def test_ct_can_be_asked_for_where_channels_have_no_names(
    tmp_path: Path, chosen: str | tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved, and prediction normalises by the training cases' intensities and not by the image's own."""
    data = write_phantom(tmp_path / "data", cases=4, size=20, layout="folders")
    run = train(options(data, tmp_path / "run", normalisation=chosen, method="none", epochs=1))
    assert json.loads(run.preprocessing.read_text())["normalisation"] == ["zscore" if chosen == "auto" else "ct"]
    file = sorted((data / "images").iterdir())[0]
    image = nib.load(file)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) + 500, image.affine), tmp_path / "bright.nii.gz")
    seen = []

    def look(network: object, image: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        seen.append(image)
        return torch.zeros(4, *image.shape[1:])

    monkeypatch.setattr("monai_autoaug.engines.prediction.infer", look)
    for path in (file, tmp_path / "bright.nii.gz"):
        predict(run.folder, path, tmp_path / "out", device="cpu")
    difference = float((seen[1] - seen[0]).mean())
    assert abs(difference) < 1e-3 if chosen == "auto" else difference > 0.5


def test_as_many_normalisations_as_channels(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one for all channels or one for each of MRI; got ct, zscore"):
        train(options(data, tmp_path / "run", normalisation=("ct", "zscore")))
    assert not (tmp_path / "run").exists()


def test_predict_file_and_folder(data: Path, tmp_path: Path) -> None:
    run = train(options(data, tmp_path / "run", epochs=1))
    image = data / "imagesTr" / "phantom_000.nii.gz"
    single = predict(run.folder, image, tmp_path / "out" / "mine.nii.gz", device="cpu")
    assert single == [tmp_path / "out" / "mine.nii.gz"]
    many = predict(run.folder, data / "imagesTr", tmp_path / "many", device="cpu")
    assert [f.name for f in many] == [f"phantom_{i:03d}.nii.gz" for i in range(5)]
    one, same = (np.asarray(nib.load(f).dataobj) for f in (single[0], many[0]))
    np.testing.assert_array_equal(one, same)
    with pytest.raises(ConfigError, match="5 images can't be predicted into the one file"):
        predict(run.folder, data / "imagesTr", tmp_path / "x.nii.gz")
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite an image"):
        predict(run.folder, image, image)
    with pytest.raises(ConfigError, match="would overwrite an image"):
        predict(run.folder, data / "imagesTr", data / "imagesTr")
    assert image.read_bytes() == before
    with pytest.raises(ConfigError, match="overlap must be"):
        predict(run.folder, image, tmp_path / "out", overlap=1.0)
    with pytest.raises(ConfigError, match="mine.nii.gz: a prediction is there already"):
        predict(run.folder, image, single[0])
    assert predict(run.folder, image, single[0], overwrite=True, device="cpu") == single
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(before[:300])
    with pytest.raises(PredictionError, match="1 image can't be predicted:\n  broken: is truncated") as caught:
        predict(run.folder, broken, tmp_path / "out", device="cpu")
    assert (list(caught.value.failed), caught.value.written) == (["broken"], [])
    run.model.unlink()
    with pytest.raises(CheckpointError, match="train first"):
        predict(run.folder, image, tmp_path / "out")


def test_a_broken_data_set_is_refused_before_training(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20)
    file = data / "labelsTr" / "phantom_002.nii.gz"
    label = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:-1], label.affine), file)
    with pytest.raises(DataError, match=r"phantom_002(.|\n)*\nTo do: correct the data"):
        train(options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_image_in_training_and_validation_is_refused(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=20)
    parts = split(read_datalist(data).training, seed=0, validation=2)
    for kind in ("imagesTr", "labelsTr"):
        first, second = (data / kind / f"{part[0].name}.nii.gz" for part in (parts.train, parts.validation))
        second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"case that holds the same image as the .* case .*: remove one of the two"):
        train(options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_options_are_checked_before_anything_is_read() -> None:
    good = TrainOptions("nowhere", "run")
    assert TrainOptions.from_mapping(good.to_dict()) == good
    for change, message in [
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"method_options": {"gamma": 1}}, "method 'adversarial' has no option 'gamma'"),
        ({"network": "vit"}, "there is no network 'vit'"),
        ({"network_options": {"filters": 8}}, "network 'unet' has no option 'filters'"),
        ({"network_options": {"channels": [8]}}, "channels must be at least 2 numbers"),
        ({"network_options": {"channels": [8, 1.5]}}, "channels must be positive whole numbers"),
        ({"network": "segresnet", "network_options": {"blocks_up": [1]}}, "one number more than blocks_up"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be at least 1, got 2.5"),
        ({"batch_size": True}, "batch_size must be"),
        ({"learning_rate": 2.0}, "learning_rate must be between 0 and 1"),
        ({"patch_size": (8, 8)}, "patch_size must be three positive numbers"),
        ({"validation_cases": 1.5}, "validation_cases must be"),
        ({"validation_cases": 0}, "validation_cases must be"),
        ({"normalisation": "minmax"}, "normalisation must be one of auto, ct, zscore, percentile, or a list of these"),
        ({"normalisation": ("ct", 1)}, "normalisation must be one of"),
        ({"normalisation": ()}, "normalisation must be one of"),
        ({"normalisation": 3}, "normalisation must be one of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(good, **change)


def test_given_spacing_and_patch_size_are_used(data: Path, tmp_path: Path) -> None:
    given = {"spacing": (3.0, 4.0, 5.0), "patch_size": (8, 8, 12)}
    run = train(options(data, tmp_path / "run", method="none", epochs=1, **given))
    assert json.loads(run.preprocessing.read_text())["spacing"] == [3.0, 4.0, 5.0]
    assert json.loads(run.config.read_text())["patch_size"] == [8, 8, 12]
    for file in run.validation.iterdir():  # in the images' own spacing all the same
        assert nib.load(file).shape == nib.load(data / "imagesTr" / file.name).shape


def test_a_gpu_is_used_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


def test_a_device_or_precision_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 'cuda:99' can't be used"):
        train(options(data, tmp_path / "run", device="cuda:99"))
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        train(options(data, tmp_path / "run", precision="float16"))


def test_reduced_precision_runs(data: Path, tmp_path: Path) -> None:
    run = train(options(data, tmp_path / "run", precision="bfloat16", epochs=1))
    assert json.loads(run.summary.read_text())["precision"] == "bfloat16"
    assert all(t.dtype == torch.float32 for t in weights(run).values())
