# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from monai_autoaug.data import write_phantom
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation import METRICS, Evaluation, Metric, dice, evaluate


def save(folder: Path, name: str, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    image = nib.Nifti1Image(voxels.astype(np.uint8), np.eye(4) if affine is None else affine)
    nib.save(image, folder / f"{name}.nii.gz")


def test_dice_equals_monai_on_random_masks() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p, r = rng.random((5, 6, 7)) < 0.3, rng.random((5, 6, 7)) < 0.2
        expected = compute_dice(torch.tensor(p)[None, None], torch.tensor(r)[None, None])
        assert dice(p, r) == pytest.approx(float(expected), abs=1e-6)


def test_dice_of_empty_structures() -> None:
    none, some = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert np.isnan(dice(none, none))
    assert dice(some, none) == 0.0
    assert dice(none, some) == 0.0
    assert dice(some, some) == 1.0


def test_known_values_by_hand(tmp_path: Path) -> None:
    label = np.zeros((4, 4, 4))
    label[0, 0, :4] = 1
    label[2, :2, 0] = 2
    prediction = np.zeros((4, 4, 4))
    prediction[0, 0, :2] = 1  # 2 of 4: 2 * 2 / (2 + 4)
    prediction[2, :2, 0] = 2
    prediction[3, :2, 0] = 2  # 2 right, 2 too many: 2 * 2 / (4 + 2)
    save(tmp_path / "labels", "a", label)
    save(tmp_path / "labels", "b", np.where(label == 1, 1, 0))
    save(tmp_path / "labels", "c", label)
    save(tmp_path / "predictions", "a", prediction)
    save(tmp_path / "predictions", "b", np.where(label == 1, 1, 0))  # structure 2 in neither
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert result.cases == ("a", "b")
    assert result.classes == ("label_1", "label_2")
    np.testing.assert_allclose(result.values["dice"], [[2 / 3, 2 / 3], [1.0, np.nan]])
    assert result.mean(name="label_1") == pytest.approx(5 / 6)
    assert result.mean(name="label_2") == pytest.approx(2 / 3)
    assert result.mean() == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert result.without_prediction == ("c",)
    assert result.worst() == ["a", "b"]


def test_superfluous_axes_are_dropped(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6))
    label[1:3, 1:3] = 1
    for name, p, r in (("a", label[..., None], label), ("b", label, label[..., None])):
        save(tmp_path / "predictions", name, p)
        save(tmp_path / "data" / "labels", name, r)
        save(tmp_path / "data" / "images", name, label)
    assert evaluate(tmp_path / "predictions", tmp_path / "data").mean("dice") == 1.0


def test_regions_and_ignore_label_of_a_data_set(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=1, size=24, layout="nnunet", regions=True, ignore=True)
    file = next((data / "labelsTr").glob("*.nii.gz"))
    image = nib.load(file)
    label = np.asarray(image.dataobj)
    prediction = np.where(label == 4, 3, label)  # wrong only where the label is unknown
    prediction = np.where(prediction == 2, 1, prediction)  # another part of the same region "hook"
    save(tmp_path / "predictions", file.name.removesuffix(".nii.gz"), prediction, image.affine)
    result = evaluate(tmp_path / "predictions", data)
    assert result.classes == ("hook", "head", "round")
    hook, head, rest = result.values["dice"][0]
    assert hook == 1.0
    assert rest == 1.0
    ones, twos = (label == 1).sum(), (label == 2).sum()
    assert head == pytest.approx(2 * ones / (2 * ones + twos))


def test_interval_covers_the_mean_and_narrows_with_cases() -> None:
    rng = np.random.default_rng(0)
    width = []
    for n in (10, 1000):
        e = Evaluation(tuple(map(str, range(n))), ("x",), {"dice": rng.normal(0.8, 0.1, (n, 1))})
        mean, low, high = e.interval()
        assert low < mean < high
        assert e.interval() == (mean, low, high)  # the same seed
        width.append(high - low)
        # the normal approximation of the mean's own spread
        assert high - low == pytest.approx(2 * 1.96 * e.values["dice"].std() / n**0.5, rel=0.2)
    assert width[1] < width[0] / 5


def test_few_cases_give_no_interval() -> None:
    values = np.array([[0.8, 0.5], [0.7, 0.5], [0.9, np.nan], [0.6, 0.4], [0.8, 0.6]])
    e = Evaluation(tuple("abcde"), ("x", "y"), {"dice": values})
    assert e.interval(name="x").low < e.interval(name="x").high
    four = e.interval(name="y")
    assert four.mean == pytest.approx(0.5)
    assert np.isnan([four.low, four.high]).all()
    summary = json.loads(json.dumps(e.to_dict(), allow_nan=False))["summary"]["dice"]
    assert summary["y"] == {"mean": 0.5, "interval_95": [None, None], "cases": 4}
    assert None not in summary["mean"]["interval_95"]


def test_a_structure_that_no_case_has_is_not_defined() -> None:
    e = Evaluation(("a",), ("x", "y"), {"dice": np.array([[0.5, np.nan]])})
    assert np.isnan(e.interval(name="y").mean)
    assert e.mean() == 0.5
    assert json.loads(json.dumps(e.to_dict(), allow_nan=False))["summary"]["dice"]["y"]["mean"] is None


def test_save_and_load(tmp_path: Path) -> None:
    e = Evaluation(("a", "b"), ("x", "y"), {"dice": np.array([[0.5, np.nan], [0.25, 1.0]])}, ("c",))
    back = Evaluation.load(e.save(tmp_path / "evaluation.json"))
    assert (back.cases, back.classes, back.without_prediction) == (e.cases, e.classes, e.without_prediction)
    np.testing.assert_array_equal(back.values["dice"], e.values["dice"])
    (tmp_path / "evaluation.json").write_text('{"version": 99}')
    with pytest.raises(DataError, match="another version; expected 1, came 99"):
        Evaluation.load(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(DataError, match="is no evaluation"):
        Evaluation.load(tmp_path / "evaluation.json")


def test_another_metric_is_a_function_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        METRICS, "volume_error", Metric(lambda p, r, s: float((p.sum() - r.sum()) * np.prod(s)), "mm3", False)
    )
    save(tmp_path / "labels", "a", np.eye(4)[None].repeat(2, 0), np.diag([2, 1, 1, 1]))
    save(tmp_path / "predictions", "a", np.ones((2, 4, 4)), np.diag([2, 1, 1, 1]))
    result = evaluate(tmp_path / "predictions", tmp_path / "labels", metrics=["dice", "volume_error"])
    assert result.values["volume_error"][0, 0] == (32 - 8) * 2
    assert set(result.to_dict()["summary"]) == {"dice", "volume_error"}


def test_faults_are_refused(tmp_path: Path) -> None:
    labels, predictions = tmp_path / "labels", tmp_path / "predictions"
    block = np.zeros((4, 4, 4))
    block[1:3] = 1
    save(labels, "a", block)
    with pytest.raises(DataError, match="holds no prediction"):
        evaluate(predictions, labels)
    save(predictions, "b", block)
    with pytest.raises(DataError, match=r"without a label; expected names such as \['a'\], came \['b'\]"):
        evaluate(predictions, labels)
    (predictions / "b.nii.gz").unlink()
    save(predictions, "a", block[:3])
    with pytest.raises(DataError, match=r"expected \(4, 4, 4\), came \(3, 4, 4\)"):
        evaluate(predictions, labels)
    moved = np.eye(4)
    moved[0, 3] = 0.2
    save(predictions, "a", block, moved)
    with pytest.raises(DataError, match="0.2 mm apart"):
        evaluate(predictions, labels)
    save(predictions, "a", block * 7)
    with pytest.raises(DataError, match=r"does not declare; expected \[0, 1\], came \[7\]"):
        evaluate(predictions, labels)
    with pytest.raises(ConfigError, match=r"unknown metrics \['hd'\]; choose from dice"):
        evaluate(predictions, labels, metrics=["hd"])


def test_predictions_of_images_without_labels_are_told_from_those_of_another_data_set(tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=1, size=16, test=1)
    (image,) = (data / "imagesTs").glob("*.nii.gz")
    save(tmp_path / "unlabelled", image.name.removesuffix(".nii.gz"), np.zeros((16, 16, 16)))
    with pytest.raises(DataError, match="To do: the data set has no label for these images"):
        evaluate(tmp_path / "unlabelled", data)
    save(tmp_path / "other", "stranger", np.zeros((16, 16, 16)))
    with pytest.raises(DataError, match="To do: give the data set that the predictions were made of"):
        evaluate(tmp_path / "other", data)
