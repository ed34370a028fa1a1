# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""JSON files that were edited or damaged: read, or refused with a message that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_helpers import ANYTHING, EXAMPLES, fuzz, mutated, spoilt_bytes
from hypothesis import strategies as st

from monai_autoaug import policies
from monai_autoaug.data import Preprocessing, audit, print_findings, read_case_names, read_datalist, write_phantom
from monai_autoaug.engines.folder import read_json
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import AutoAugError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy


def refused(read: Callable[[], Any], path: Path) -> bool:
    """Whether a file is refused; the message names it, and can be shown."""
    try:
        read()
    except AutoAugError as error:
        text = str(error)
        assert path.name in text or path.parent.name in text, text
        assert all(line.isprintable() for line in text.splitlines()), text
        return True
    return False


def texts(content: Any) -> st.SearchStrategy[bytes]:
    """The content with some of it changed, or its text damaged, or anything."""
    whole = json.dumps(content).encode()
    edited = st.one_of(mutated(content), mutated(content), mutated(content), ANYTHING)
    return st.one_of(edited.map(lambda c: json.dumps(c).encode()), spoilt_bytes(whole))


@EXAMPLES
@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "table"])
def test_dataset_json(tmp_path: Path, layout: str, examples: int) -> None:
    regions = layout == "nnunet"
    kind: Any = "decathlon" if layout == "decathlon" else "nnunet"
    folder = write_phantom(tmp_path / "data", cases=1, size=16, layout=kind, channels=2, test=1, regions=regions)
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    if layout == "table":
        images = [f"imagesTr/phantom_000_000{i}.nii.gz" for i in range(2)]
        content["dataset"] = {"phantom_000": {"images": images, "label": "labelsTr/phantom_000.nii.gz"}}
    content["unlabelled"] = ["imagesTs/phantom_001.nii.gz"]
    outcomes = set()

    def one(text: bytes) -> None:
        path.write_bytes(text)
        bad = refused(lambda: read_datalist(folder), path)
        outcomes.add(bad)
        if not bad:
            audit(read_datalist(folder), workers=1)

    fuzz(examples, one, texts(content))
    assert outcomes == {True, False}


@EXAMPLES
def test_policy_json(tmp_path: Path, examples: int) -> None:
    training = TrainingPolicy.preset("nnunet", laterality=((1, 2),))
    path = policies.save(
        tmp_path / "policy.json", training=training, test_time=TestTimePolicy.preset("nnunet"), provenance={"seed": 1}
    )
    fuzz(examples, lambda text: _written(path, text, policies.load), texts(json.loads(path.read_text())))


def _written(path: Path, text: bytes, read: Callable[[Path], Any]) -> None:
    path.write_bytes(text)
    refused(lambda: read(path), path)


@EXAMPLES
def test_preprocessing_json(tmp_path: Path, examples: int) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=1, size=16, layout="nnunet", regions=True))
    path = Preprocessing.fit(data, data.training).save(tmp_path / "preprocessing.json")
    fuzz(examples, lambda text: _written(path, text, Preprocessing.load), texts(json.loads(path.read_text())))


CONFIG = {
    "options": TrainOptions("data", "run").to_dict(),
    "patch_size": [16, 16, 16],
    "margin": [2, 2, 2],
    "split": {"train": ["a"], "meta": [], "validation": ["b"]},
    "unlabelled": [],
    "versions": {"torch": "2"},
}
SUMMARY = {
    "method": "none", "iterations": 3, "parameters": 7, "device": "cpu", "seconds": 1.0, "cpu_seconds": 1.0,
    "warnings": [], "cases": {"train": 1, "validation": 1}, "validation_on_preprocessed_grid": {"dice": None},
}  # fmt: skip
AUDIT = {"version": 1, "counts": {"refuse": 0, "warn": 1, "note": 0}, "findings": []}


@EXAMPLES
@pytest.mark.parametrize(("name", "content"), [("config", CONFIG), ("summary", SUMMARY), ("audit", AUDIT)])
def test_files_of_a_run(tmp_path: Path, name: str, content: dict[str, Any], examples: int) -> None:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    assert not refused(lambda: read_json(path), path)

    def one(text: bytes) -> None:
        path.write_bytes(text)
        if refused(lambda: read_json(path), path):
            return
        found = read_json(path)
        # what the package takes from these files is there, and of its kind
        if name == "config":
            assert all(n >= 1 for n in found["patch_size"])
            assert isinstance(found["options"]["method_options"], dict)
            assert isinstance(found["split"]["validation"], list)
        elif name == "summary":
            assert found["seconds"] / 60 >= 0 or found["seconds"] < 0
            assert found["cases"]["train"] % 1 == 0  # 0.0 is an integer to JSON schema
        else:
            assert found["counts"]["warn"] % 1 == 0

    fuzz(examples, one, texts(content))


@EXAMPLES
def test_evaluation_json(tmp_path: Path, examples: int) -> None:
    import numpy as np

    values = {"dice": np.array([[0.9, np.nan], [0.8, 0.5]])}
    path = Evaluation(("a", "b"), ("liver", "tumour"), values).save(tmp_path / "validation.json")
    fuzz(examples, lambda text: _written(path, text, Evaluation.load), texts(json.loads(path.read_text())))


@EXAMPLES
@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_lists_of_cases(tmp_path: Path, suffix: str, examples: int) -> None:
    path = tmp_path / f"meta{suffix}"
    fuzz(examples, lambda text: _written(path, text, read_case_names), texts(["liver_3", "liver_7"]))


@EXAMPLES
def test_findings_of_anything_can_be_printed(examples: int) -> None:
    from io import StringIO

    from rich.console import Console

    from monai_autoaug.data import Finding

    def one(words: list[str]) -> None:
        text = StringIO()
        case, message, came, file = words
        finding = Finding(case, "x", "warn", message, "expected", came, "remedy", file)
        print_findings([finding] * 5, Console(file=text, width=100))
        assert all(line.isprintable() for line in text.getvalue().splitlines())

    fuzz(examples, one, st.lists(st.text(max_size=30), min_size=4, max_size=4))


@pytest.mark.parametrize("wrong", [{"cases": [True], "classes": [{}]}, {"cases": ["a"]}, {"without_prediction": 3}])
def test_an_evaluation_with_lists_for_tables(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = tmp_path / "validation.json"
    empty = {"version": 1, "classes": ["x"], "cases": {}, "summary": {"dice": {}}, "without_prediction": []}
    path.write_text(json.dumps(empty))
    assert not refused(lambda: Evaluation.load(path), path)
    path.write_text(json.dumps(empty | wrong))
    assert refused(lambda: Evaluation.load(path), path)
