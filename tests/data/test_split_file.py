# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A split by names: written, read, refused where it can't be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from monai_autoaug.data import Case, SplitFile
from monai_autoaug.errors import ConfigError

CASES = [Case(name, (Path(f"{name}.nii"),), Path(f"{name}_label.nii")) for name in "abcde"]


def test_round_trip(tmp_path: Path) -> None:
    own = SplitFile(("a", "c"), ("b",), ("d",))
    assert SplitFile.load(own.save(tmp_path / "split.json")) == own
    (tmp_path / "short.json").write_text('{"validation": ["a"], "train": ["b"]}')
    assert SplitFile.load(tmp_path / "short.json") == SplitFile(("b",), ("a",))


def test_choose() -> None:
    train, validation, unlabelled = SplitFile(("c", "a"), ("b",), ("d",)).choose(CASES)
    assert ([c.name for c in train], [c.name for c in validation]) == (["c", "a"], ["b"])
    assert unlabelled == (Case("d", (Path("d.nii"),)),)  # without its label
    with pytest.raises(ConfigError, match="there are no labelled cases x, y in the data set"):
        SplitFile(("x", "a"), ("y",)).choose(CASES)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"train": ["a"]}, "at least one case to train on and one to validate with"),
        ({"train": ["a", "b"], "validation": ["b"]}, "names b twice"),
        ({"train": ["a"], "validation": ["b"], "test": ["c"]}, "by train, validation, unlabelled, and nothing else"),
        ({"train": "a", "validation": ["b"]}, "must hold lists of names"),
        ({"train": [1], "validation": ["b"]}, "must hold lists of names"),
        (["a"], "must hold lists of names"),
    ],
)
def test_what_is_no_split(tmp_path: Path, content: object, told: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=told):
        SplitFile.load(file)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name, text in (("none.json", None), ("broken.json", "{"), ("twice.json", '{"train": ["a"], "train": ["b"]}')):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=f"{name}: can't be read"):
            SplitFile.load(tmp_path / name)


def test_very_many_names_take_no_longer_than_they_are_many() -> None:
    """Comparing each name with all others takes a minute here."""
    names = tuple(f"case_{number}" for number in range(40_000))
    began = time.process_time()
    SplitFile(names[1:], names[:1])
    with pytest.raises(ConfigError, match="names case_7 twice"):
        SplitFile(names, names[7:8])
    assert time.process_time() - began < 5
