# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files of others: sizes first, no pickle, nothing compressed, every number finite, every checksum right."""

from __future__ import annotations

import collections
import json
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug.reading import check_archive, leaves, read_json, read_tensors, read_text

GOOD = {"a": torch.arange(3.0), "b": [1, 2.5, "c", None, True], "d": {"e": (torch.ones(2, dtype=torch.uint8),)}}


class Harmful:
    """What a pickle would run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_good_files(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "a.pt")
    content = read_tensors(tmp_path / "a.pt")
    assert torch.equal(content["a"], GOOD["a"])
    assert content["b"] == GOOD["b"]
    assert torch.equal(content["d"]["e"][0], GOOD["d"]["e"][0])
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "b.pt")
    assert set(read_tensors(tmp_path / "b.pt")) == {"weight", "bias"}


def test_no_code_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"a": Harmful(made)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": Harmful(made)}))
    torch.save({"a": Harmful(made)}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "d.pt")
    for name, says in (("a", "UnpicklingError"), ("b", "no archive"), ("c", "no archive"), ("d", "UnpicklingError")):
        with pytest.raises(ValueError, match=says):
            read_tensors(tmp_path / f"{name}.pt")
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"a": [torch.tensor([1.0, float("nan"), float("inf")])]}, r"a\[0\] holds 2 values that are not finite"),
        ({"a": {"b": torch.tensor(float("inf"), dtype=torch.float16)}}, "a.b holds 1 values"),
        ({"a": collections.Counter("ab"), "b": torch.float16}, "b is a dtype"),
        (torch.device("cpu"), "the whole file is a device"),
    ],
)
def test_what_does_not_belong_in_such_a_file(tmp_path: Path, content: Any, where: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=where):
        read_tensors(tmp_path / "a.pt")


def test_values_that_need_not_be_finite(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([float("nan")]), "b": float("nan")}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt", finite=False)["a"].isnan().all()


def test_every_byte_counts(tmp_path: Path) -> None:
    """A byte of a tensor that was changed would otherwise be another weight."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(1000.0).numpy().tobytes())
    assert place > 0
    data[place + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(path)
    path.write_bytes(data[:2000])
    with pytest.raises(ValueError, match="no archive"):
        read_tensors(path)


def test_compressed_records(tmp_path: Path) -> None:
    """A thousand times as large in memory as on disk."""
    torch.save({"a": torch.zeros(1 << 16)}, tmp_path / "a.pt")
    packed = zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, packed:
        for record in plain.namelist():
            packed.writestr(record, plain.read(record))
    assert (tmp_path / "b.pt").stat().st_size < (tmp_path / "a.pt").stat().st_size / 20
    with pytest.raises(ValueError, match="is compressed"):
        check_archive(tmp_path / "b.pt")


def test_overlapping_records(tmp_path: Path) -> None:
    """The directory of an archive may name one record many times."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        made.writestr("archive/data", bytes(10_000))
        made.filelist += made.filelist * 9
    with pytest.raises(ValueError, match="overlap|no archive"):
        check_archive(tmp_path / "a.pt")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for read in (read_tensors, read_json, check_archive):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(OSError, match="none|directory"):
                read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "a field is given twice: 'c'"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is no number"),
        ("[1" + "0" * 400 + "]", "401 digits"),
        ("[" * 100_000, "very many"),
        ('{"a": ' * 100_000, "very many"),
        ("{", "Expecting"),
        ("", "Expecting"),
        (" " * 101, "too large: expected at most 100 bytes"),
    ],
)
def test_json(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_json(path, largest=100 if "100 bytes" in says else 10**6)


def test_json_of_very_many_fields_is_refused_at_once(tmp_path: Path) -> None:
    """Comparing each field with all others takes half a minute here, and hours in the largest file that is read."""
    path = tmp_path / "a.json"
    path.write_text("{" + ", ".join(f'"{n % 39_999}": 1' for n in range(40_000)) + "}")
    began = time.process_time()
    with pytest.raises(ValueError, match="a field is given twice: '0'"):
        read_json(path)
    assert time.process_time() - began < 5


def test_good_json_and_text(tmp_path: Path) -> None:
    content = {"a": [1, -2.5, None, True, "ü"], "b": {}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == content
    assert read_text(path, largest=100).startswith('{"a"')
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(path, largest=100)


def test_a_file_whose_size_is_not_known_is_not_read_for_ever() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    with pytest.raises(ValueError, match="too large"):
        read_text("/dev/zero", largest=1000)


def test_leaves_name_the_way() -> None:
    assert dict(leaves({"a": [{"b": 1}, 2], "c": ()})) == {"a[0].b": 1, "a[1]": 2}
    assert list(leaves(3)) == [("the whole file", 3)]
