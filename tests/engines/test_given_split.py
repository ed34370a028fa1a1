# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run whose cases are named: those and no others are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_autoaug.data import Case, DataList, SplitFile
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.parts import split_cases, unlabelled_cases
from monai_autoaug.errors import ConfigError

NAMES = tuple(f"case_{n}" for n in range(12))
DATA = DataList(
    Path("."), "decathlon", ("MRI",), {"background": 0, "organ": 1},
    training=tuple(Case(n, (Path(f"{n}.nii"),), Path(f"{n}_label.nii")) for n in NAMES),
)  # fmt: skip


def options(folder: Path, *, unlabelled: tuple[str, ...] = (), **given: Any) -> TrainOptions:
    file = SplitFile(NAMES[:8], NAMES[8:10], unlabelled).save(folder / "split.json")
    return TrainOptions("data", "run", **{"method": "none", "split": file} | given)


def names(cases: tuple[Case, ...]) -> set[str]:
    return {case.name for case in cases}


def test_named_cases_train_and_validate(tmp_path: Path) -> None:
    parts = split_cases(options(tmp_path), DATA)
    assert (names(parts.train), parts.meta) == (set(NAMES[:8]), ())
    assert [c.name for c in parts.validation] == list(NAMES[8:10])


@pytest.mark.parametrize(("given", "train", "meta"), [({}, 6, 2), ({"meta_cases": 3}, 5, 3),
                                                      ({"meta_split": "resampled"}, 8, 0)])  # fmt: skip
def test_meta_validation_is_carved_from_the_training_cases(
    tmp_path: Path, given: dict[str, Any], train: int, meta: int
) -> None:
    parts = split_cases(options(tmp_path, method="joint_policy", **given), DATA)
    assert (len(parts.train), len(parts.meta)) == (train, meta)
    assert names(parts.train) | names(parts.meta) == set(NAMES[:8])
    assert names(parts.validation) == set(NAMES[8:10])


def test_listed_meta_cases_are_among_the_training_cases(tmp_path: Path) -> None:
    (tmp_path / "meta.txt").write_text("case_1\ncase_5\n")
    parts = split_cases(options(tmp_path, method="joint_policy", meta_list=tmp_path / "meta.txt"), DATA)
    assert names(parts.meta) == {"case_1", "case_5"}
    (tmp_path / "meta.txt").write_text("case_11\n")
    with pytest.raises(ConfigError, match="no labelled cases case_11"):
        split_cases(options(tmp_path, method="joint_policy", meta_list=tmp_path / "meta.txt"), DATA)


def test_images_of_named_cases_are_unlabelled_ones(tmp_path: Path) -> None:
    chosen = options(tmp_path, method="task_driven", unlabelled=NAMES[10:])
    found = unlabelled_cases(chosen, DATA)
    assert [case.name for case in found] == ["unlabelled/case_10", "unlabelled/case_11"]
    assert all(case.label is None for case in found)
    with pytest.raises(ConfigError, match="in the file of --split by the key"):
        unlabelled_cases(options(tmp_path, method="task_driven"), DATA)
    assert unlabelled_cases(options(tmp_path, unlabelled=NAMES[10:]), DATA) == ()  # of a method that needs none


@pytest.mark.parametrize("given", [{"train_cases": 3}, {"validation_cases": 3}])
def test_one_choice_of_cases(tmp_path: Path, given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"split names the cases; leave out {next(iter(given))}"):
        options(tmp_path, **given)
