# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Links that lead elsewhere, archives, names made to mislead: refused, and never shown as they are."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from monai_autoaug.data import audit, print_findings, read_datalist, read_images, write_phantom
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.names import name_fault
from monai_autoaug.errors import DataError


def test_links(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    image, label = data.training[0].images[0], data.training[0].label
    assert label is not None
    image.rename(tmp_path / "outside.nii.gz")
    image.symlink_to(tmp_path / "outside.nii.gz")
    label.rename(label.with_name("inside.nii.gz"))
    label.symlink_to("inside.nii.gz")
    found = audit(data)
    assert [(f.check, f.case) for f in found] == [("link_leaves_folder", "phantom_000")]
    (tmp_path / "outside.nii.gz").unlink()
    assert {f.check for f in audit(data)} == {"link_leaves_folder"}  # it is not followed
    # a link to the whole folder is the user's own choice
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    label.unlink()
    label.with_name("inside.nii.gz").rename(label)
    image.unlink()
    remaining = read_datalist(tmp_path / "alias")
    assert audit(replace(remaining, training=remaining.training[1:])) == []


def test_what_a_link_leads_to_is_never_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to waits for ever."""
    data = read_datalist(write_phantom(tmp_path / "data", cases=1, size=16, layout="folders"))
    label = data.training[0].label
    assert label is not None
    os.mkfifo(tmp_path / "pipe")
    label.unlink()
    label.symlink_to(tmp_path / "pipe")
    again = read_datalist(tmp_path / "data")  # reads the labels' values
    assert [f.check for f in audit(again)] == ["link_leaves_folder"]


def test_a_folder_that_is_a_link_and_links_in_a_circle(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=1, size=16))
    (tmp_path / "data" / "imagesTr").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "imagesTr").symlink_to(tmp_path / "elsewhere")
    assert [f.check for f in audit(data)] == ["link_leaves_folder"]
    (tmp_path / "data" / "imagesTr").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "data" / "imagesTr")
    image = data.training[0].images[0]
    image.unlink()
    image.symlink_to(image.name)
    assert [(f.check, f.severity) for f in audit(data)] == [("readable", "refuse")]


def test_images_from_another_folder_are_held_to_their_own(tmp_path: Path) -> None:
    """Unlabelled images may lie elsewhere, but none of their links leaves that folder."""
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    (tmp_path / "other").mkdir()
    first, second = (c.images[0] for c in data.training)
    (tmp_path / "other" / "a.nii.gz").write_bytes(first.read_bytes())
    (tmp_path / "other" / "b.nii.gz").symlink_to(second)
    cases = read_images(tmp_path / "other")
    found = audit(replace(data, training=(), unlabelled=cases))
    assert [(f.check, f.case) for f in found] == [("link_leaves_folder", "b")]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\nb", "control character"),
        ("a\x1b[2Jb", "control character"),
        ("scan\u202egz.iin", "direction of writing"),
        ("a\u2028b", "control character"),
        ("a\\b", "/ or"),
        ("-rf", "begins with -"),
        ("x" * 201, "longer than 200 bytes"),
        (os.fsdecode(b"a\xff"), "no valid UTF-8"),
    ],
    ids=ascii,
)
def test_names_of_files(tmp_path: Path, name: str, says: str) -> None:
    folder = write_phantom(tmp_path / "data", cases=2, size=16, layout="nnunet")
    for sub, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / sub / f"phantom_000{suffix}.nii.gz").rename(folder / sub / f"{name}{suffix}.nii.gz")
    data = read_datalist(folder)
    found = audit(data)
    assert {(f.check, f.severity) for f in found} == {("file_name", "refuse")}
    assert len(found) == 2
    assert all(says in f.came for f in found)
    text = StringIO()
    print_findings(found, Console(file=text, width=300))
    assert all(line.isprintable() for line in text.getvalue().splitlines())


def test_names_that_are_good() -> None:
    for name in ("case_01", "Fall-07", "患者_3", "é", "a b.c"):
        assert name_fault(name) == ""
    for name in ("", ".", "..", ".hidden", "a/b"):
        assert name_fault(name)


def test_messages_show_no_control_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_datalist(tmp_path / "a\x1b[2Jb")
    assert "a\\x1b[2Jb: is not a folder" in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["/etc/image.nii.gz", "../image.nii.gz", "imagesTr/../../image.nii.gz", "a\x00b.nii.gz", "", "a/..", 7, None],
)
@pytest.mark.parametrize("where", ["image", "label", "test", "unlabelled"])
def test_paths_of_a_dataset_json(tmp_path: Path, where: str, place: object) -> None:
    folder = write_phantom(tmp_path, cases=1, size=16)
    content = json.loads((folder / "dataset.json").read_text())
    if where in ("image", "label"):
        content["training"][0][where] = place
    else:
        content[where] = [place]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"names a file (wrongly|outside its folder).*expected"):
        read_datalist(folder)


def test_absolute_paths_of_a_dataset_json_are_to_be_written_relative_to_it(tmp_path: Path) -> None:
    """The files are where they belong; copying them is no help."""
    folder = write_phantom(tmp_path, cases=1, size=16)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["image"] = str((folder / content["training"][0]["image"]).absolute())
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"by an absolute path; .* To do: write all paths relative to dataset\.json"):
        read_datalist(folder)


@pytest.mark.parametrize(
    "place",
    ["x" * 300 + "/a.nii.gz", "images/" + "é" * 120 + "/a.nii.gz", "." * 300 + "/a.nii.gz", "-" * 300 + "/a.nii.gz",
     "a/" * 2100 + "a.nii.gz", "a\\b/c.nii.gz"],
    ids=range(6),
)  # fmt: skip
@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
def test_folders_that_no_system_takes(tmp_path: Path, place: str, layout: str) -> None:
    """Told as any other wrong path, whoever would have looked for it first."""
    folder = write_phantom(tmp_path, cases=1, size=16, layout=layout)
    content = json.loads((folder / "dataset.json").read_text())
    if layout == "decathlon":
        content["training"][0]["image"] = place
    else:
        content["dataset"] = {"one": {"images": ["../" + place], "label": "labelsTr/phantom_000.nii.gz"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"dataset.json: names a file wrongly") as caught:
        read_datalist(folder)
    assert len(str(caught.value)) < 1000


def test_hidden_folders_may_be_named(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "data", cases=1, size=16, layout="nnunet")
    (tmp_path / ".cache" / "-own").mkdir(parents=True)
    image = (folder / "imagesTr" / "phantom_000_0000.nii.gz").rename(tmp_path / ".cache" / "-own" / "a.nii.gz")
    content = json.loads((folder / "dataset.json").read_text())
    for place in (str(image), "../.cache/-own/a.nii.gz", "../data/./../.cache/-own/a.nii.gz"):
        content["dataset"] = {"one": {"images": [place], "label": "labelsTr/phantom_000.nii.gz"}}
        (folder / "dataset.json").write_text(json.dumps(content))
        assert read_datalist(folder).training[0].images[0].samefile(image)


@pytest.mark.parametrize("name", ["../../escape", "a/b", "..", "a\nb", ""])
def test_names_of_cases_in_an_nnunet_table(tmp_path: Path, name: str) -> None:
    """A prediction is called after its case."""
    folder = write_phantom(tmp_path, cases=1, size=16, layout="nnunet")
    content = json.loads((folder / "dataset.json").read_text())
    row = {"images": ["imagesTr/phantom_000_0000.nii.gz"], "label": "labelsTr/phantom_000.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content | {"dataset": {name: row}}))
    with pytest.raises(DataError, match="lists a case whose name can't be used"):
        read_datalist(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("channel_names", {"0": "a\x1b[2J"}), ("labels", {"background": 0, "a\nb": 1})]
)
def test_names_of_channels_and_labels(tmp_path: Path, key: str, value: object) -> None:
    folder = write_phantom(tmp_path, cases=1, size=16, layout="nnunet")
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(DataError, match="unusable name") as caught:
        read_datalist(folder)
    assert str(caught.value).isprintable()


def archive(kind: str) -> bytes:
    """An archive that holds a file which would be written outside the folder it is unpacked in."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as made:
            made.writestr("../escape.txt", "x")
    else:
        with tarfile.open(fileobj=out, mode="w") as made:
            made.addfile(tarfile.TarInfo("../escape.txt"))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_archive_in_place_of_an_image(data: DataList, kind: str, suffix: str) -> None:
    case = data.training[0]
    path = case.images[0].with_name(f"archive{suffix}")
    content = archive(kind)
    path.write_bytes(gzip.compress(content) if kind == "tar" and suffix == ".nii.gz" else content)
    found = audit(replace(data, training=(replace(case, images=(path,)),)))
    assert [(f.check, f.severity, f.came) for f in found] == [("readable", "refuse", f"a {kind} archive")]
    assert "unpack it" in found[0].remedy
    assert not (data.folder / "escape.txt").exists()


@pytest.mark.parametrize("name", ["Task04.tar", "data.zip", "a.tar.gz", "b.7z"])
def test_an_archive_in_place_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(archive("zip"))
    for read in (read_datalist, read_images):
        with pytest.raises(DataError, match=r"is an archive, which this package never unpacks.*To do: unpack"):
            read(tmp_path / name)


def test_files_that_are_not_read_are_told(data: DataList) -> None:
    folder = data.training[0].images[0].parent
    for name in ("more.zip", "other.mha", "._hidden.zip", "notes.txt"):
        (folder / name).write_bytes(b"")
    found = audit(data)
    assert [(f.check, f.severity, f.came) for f in found] == [("left_out", "warn", "more.zip, other.mha")]


@pytest.mark.parametrize(
    ("content", "came"),
    [
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(128) + b"DICM" + bytes(99), "a DICOM file"),
        (gzip.compress(b"x", mtime=0), "a gzip stream"),
    ],
)
def test_other_files_are_known(data: DataList, content: bytes, came: str) -> None:
    path = data.training[0].images[0].with_suffix("")
    path.write_bytes(content)
    found = audit(replace(data, training=(replace(data.training[0], images=(path,)),)))
    assert [f.check for f in found] == ["readable"]
    assert came in found[0].came
