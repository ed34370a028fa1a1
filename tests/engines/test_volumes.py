# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessed volumes in memory and in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from monai_autoaug.data import Preprocessing, read_datalist, write_phantom
from monai_autoaug.engines.volumes import volumes
from monai_autoaug.errors import DataError


def test_the_folder_holds_volumes_and_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = read_datalist(write_phantom(tmp_path / "data", cases=2, size=24))
    preprocessing = Preprocessing.fit(datalist, datalist.training)
    memory = volumes(datalist, datalist.training, preprocessing)
    folder = volumes(datalist, datalist.training, preprocessing, cache=tmp_path / "cache")
    for i in range(2):
        assert torch.equal(memory[i]["image"], folder[i]["image"])
        assert torch.equal(memory[i]["label"], folder[i]["label"])
    monkeypatch.setattr("monai_autoaug.data.nifti.read_nifti", _forbidden)
    monkeypatch.setattr("monai_autoaug.data.volume_transforms.read_nifti", _forbidden, raising=False)
    again = volumes(datalist, datalist.training, preprocessing, cache=tmp_path / "cache")
    assert torch.equal(again[0]["image"], memory[0]["image"])
    with pytest.raises(RuntimeError, match="LoadNiftid"):  # another preprocessing is another cache
        volumes(
            datalist, datalist.training, Preprocessing.fit(datalist, datalist.training, spacing=(2.0, 2.0, 2.0)),
            cache=tmp_path / "cache",
        )  # fmt: skip


def test_another_version_makes_its_own_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = read_datalist(write_phantom(tmp_path / "data", cases=1, size=24))
    preprocessing = Preprocessing.fit(datalist, datalist.training)

    def folders() -> list[str]:
        volumes(datalist, datalist.training, preprocessing, cache=tmp_path / "cache")
        return sorted(f.name for f in (tmp_path / "cache").iterdir())

    first = folders()
    assert folders() == first
    monkeypatch.setattr("monai_autoaug.__version__", "99.0")
    second = folders()
    assert len(second) == 2
    monkeypatch.undo()
    monkeypatch.setattr("monai_autoaug.engines.volumes._FORMAT", 99)
    assert len(folders()) == 3


def test_a_file_of_the_same_size_and_time_but_other_content_is_read_again(tmp_path: Path) -> None:
    datalist = read_datalist(write_phantom(tmp_path / "data", cases=1, size=24))
    preprocessing = Preprocessing.fit(datalist, datalist.training)
    (file,) = datalist.training[0].images
    times, content = file.stat(), bytearray(file.read_bytes())
    volumes(datalist, datalist.training, preprocessing, cache=tmp_path / "cache")
    content[-9] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=f"{file.name}: is truncated or damaged"):  # as it is now
        volumes(datalist, datalist.training, preprocessing, cache=tmp_path / "cache")


def _forbidden(*args: object, **kwargs: object) -> None:
    raise RuntimeError("the file was read again")
