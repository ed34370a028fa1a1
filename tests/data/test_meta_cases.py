# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Meta-validation cases: apart from training cases and never validation cases, however they are chosen."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug.data import (
    Case,
    DataList,
    EpochCases,
    MetaSplit,
    PatchBatches,
    cases_of_another_set,
    loader,
    read_case_names,
    split,
)
from monai_autoaug.errors import ConfigError, DataError

CASES = [Case(f"case_{i}", ()) for i in range(10)]


def drawn(count: int, held: int, seed: int, length: int, part: Any) -> EpochCases[int]:
    return EpochCases(MetaSplit(tuple(range(count)), held, seed, resampled=True), length, part)


def test_parts_of_an_epoch_are_disjoint_and_change_from_epoch_to_epoch() -> None:
    train, meta = (drawn(8, held=2, seed=3, length=5, part=p) for p in ("train", "meta"))
    seen = set()
    for epoch in range(20):
        numbers = range(5 * epoch, 5 * epoch + 5)
        held = {meta(n) for n in numbers}
        assert len(held) == 1  # the same all through the epoch
        (one,) = held
        assert len(one) == 2
        assert all(sorted([*one, *train(n)]) == list(range(8)) for n in numbers)
        seen |= held
    assert set().union(*seen) == set(range(8))  # each case is held out at some time, and trained on at others
    assert len(seen) > 10
    assert [drawn(8, 2, 4, 5, "meta")(5 * e) for e in range(20)] != [meta(5 * e) for e in range(20)]


def test_a_split_is_a_function_of_seed_and_epoch() -> None:
    """Runs that were begun go on with these cases, whatever process asks for them, in whatever order."""
    names = ("a", "b", "c", "d", "e")
    split = MetaSplit(names, held=2, seed=1, resampled=True)
    known = [("a", "d"), ("b", "c"), ("a", "b")]
    assert [split.meta(epoch) for epoch in (2, 0, 1)] == [known[2], known[0], known[1]]
    assert [tuple(names[i] for i in drawn(5, 2, 1, 1, "meta")(epoch)) for epoch in range(3)] == known
    again = pickle.loads(pickle.dumps(split))  # noqa: S301  # as a worker gets it
    assert again.training(1) == ("a", "d", "e")
    fixed = MetaSplit(names, held=2, seed=1)
    assert {fixed.meta(epoch) for epoch in range(5)} == {known[0]}
    listed = MetaSplit(names, listed=("y", "x"))
    assert (listed.meta(7), listed.training(7)) == (("y", "x"), names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"held": 4}, "of 4 training cases, 1 to 3 can be"),
        ({}, "1 to 3 can be meta-validation cases of an epoch, got 0"),
        ({"held": 1, "seed": -1}, "seed -1"),
        ({"listed": ("a",)}, "listed meta-validation cases are none of the training cases"),
        ({"listed": ("x",), "held": 1}, "1 to draw"),
        ({"listed": ("x",), "resampled": True}, "resampled True"),
    ],
)
def test_splits_that_can_not_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaSplit(("a", "b", "c", "d"), **given)
    with pytest.raises(ConfigError, match="at least 1 batch"):
        EpochCases(MetaSplit(("a", "b"), 1), 0, "train")


def numbered(count: int) -> list[dict[str, Any]]:
    label = torch.ones(1, 8, 8, 8, dtype=torch.uint8)
    return [{"image": torch.full((1, 8, 8, 8), float(n)), "label": label, "case": str(n)} for n in range(count)]


def patches(part: Any, **options: Any) -> PatchBatches:
    given: dict[str, Any] = {"patch_size": (4, 4, 4), "batch_size": 6, "seed": 1, "num_classes": 2, "length": 30}
    given |= {"stream": part, "cases": drawn(6, 2, 1, 10, part)} | options
    return PatchBatches(numbered(6), **given)


def test_both_streams_draw_from_the_cases_of_their_epoch() -> None:
    streams = {part: patches(part) for part in ("train", "meta")}
    for epoch in range(3):
        held = {int(c) for c in streams["meta"].cases(10 * epoch)}  # type: ignore[misc]
        drawn = {
            part: {int(c) for n in range(10 * epoch, 10 * epoch + 10) for c in batches[n].case}
            for part, batches in streams.items()
        }
        assert drawn["meta"] == held
        assert drawn["train"] == set(range(6)) - held
    for number, batch in enumerate(loader(streams["train"], num_workers=2, start=8, stop=14), 8):
        assert torch.equal(batch.image, streams["train"][number].image)  # whatever process makes it


def test_cases_by_epoch_must_fit_the_items() -> None:
    for change in ({"cases": drawn(5, 2, 1, 10, "meta")}, {"replacement": False}):
        with pytest.raises(ConfigError, match="cases by epoch are of all 6 items"):
            patches("meta", **change)


def test_named_cases_are_set_apart_and_validation_stays() -> None:
    plain = split(CASES, seed=0, validation=3)
    names = [plain.train[4].name, plain.train[1].name]
    parts = split(CASES, seed=0, validation=3, meta=names)
    assert parts.validation == plain.validation
    assert {c.name for c in parts.meta} == set(names)
    assert parts.train == tuple(c for c in plain.train if c.name not in names)
    few = split(CASES, seed=0, validation=3, meta=names, train=4)
    assert few.meta == parts.meta
    assert few.train == parts.train[:2]
    with pytest.raises(ConfigError, match=f"{plain.validation[0].name} validate in this split"):
        split(CASES, seed=0, validation=3, meta=[plain.validation[0].name])
    with pytest.raises(ConfigError, match="no labelled cases nobody; take them off"):
        split(CASES, seed=0, validation=3, meta=["nobody"])
    with pytest.raises(ConfigError, match="no training case is left"):
        split(CASES, seed=0, validation=3, meta=[c.name for c in plain.train])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1, 2]", "must hold a list of case names"),
        ("a.json", "{", "can't be read as a list of cases"),
        ("a.txt", "# nothing\n\n", "at least one"),
        ("a.txt", "a\nb\na\n", "names a case twice: a"),
        ("missing.txt", None, "can't be read as a list of cases"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_case_names(tmp_path / name)


def test_lists_as_json_and_as_text(tmp_path: Path) -> None:
    for file, text in (("a.json", json.dumps(["x y", "z"])), ("b", '["x y", "z"]'), ("c.txt", "x y\n\n z \n")):
        (tmp_path / file).write_text(text)
        assert read_case_names(tmp_path / file) == ("x y", "z")


def test_another_data_set_must_mean_the_same() -> None:
    labels: Any = {"background": 0, "organ": 1, "lesion": 2}
    here = DataList(Path("a"), "nnunet", ("CT",), labels, training=tuple(CASES))
    there = replace(here, folder=Path("site_b"))
    assert cases_of_another_set(there, here)[3].name == "site_b/case_3"
    folders = DataList(Path("c"), "folders", ("image",), {"background": 0, "label_1": 1}, training=tuple(CASES))
    assert len(cases_of_another_set(folders, here)) == 10  # it has no names to compare, and fewer values
    for other, message in (
        (replace(there, channels=("CT", "PET")), "other channels than the training data"),
        (replace(there, channels=("MRI",)), "other channels than the training data"),
        (replace(there, labels={"background": 0, "lesion": 1, "organ": 2}), "other labels than"),
        (replace(folders, labels={"background": 0, "label_3": 3}), "other label values than"),
        (replace(there, training=()), "other cases than"),
    ):
        with pytest.raises(DataError, match=message):
            cases_of_another_set(other, here)
