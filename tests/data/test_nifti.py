# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Broken files are refused with byte counts, whole ones read as nibabel reads them, and geometry is written back."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_autoaug.data.nifti import StrictNibabelReader, read_header, read_nifti, write_like, write_nifti
from monai_autoaug.errors import DataError

GEOMETRY = (
    "dim pixdim qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z "
    "srow_x srow_y srow_z xyzt_units"
).split()


def _image(shape: tuple[int, ...] = (9, 8, 7), kind: type[nib.Nifti1Image] = nib.Nifti1Image) -> nib.Nifti1Image:
    rng = np.random.default_rng(0)
    affine = np.array([[-1.1, 0.2, 0.1, 30], [0.2, 1.2, -0.1, -20], [0.1, 0.1, 2.4, 5], [0, 0, 0, 1]])
    image = kind(rng.integers(0, 1000, shape).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    return image


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_whole_files_are_read_as_nibabel_reads_them(tmp_path: Path, name: str, kind: type[nib.Nifti1Image]) -> None:
    image = _image(kind=kind)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / name)
    ours, theirs = read_nifti(tmp_path / name).image, nib.load(tmp_path / name)
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert ours.header == theirs.header
    assert read_header(tmp_path / name).get_data_shape() == (9, 8, 7)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = write_nifti(tmp_path / name, _image())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"a\.nii.*truncated or damaged") as caught:
        read_nifti(path)
    assert f"expected {352 + 9 * 8 * 7 * 2:,} bytes" in str(caught.value)
    assert " came 0 readable bytes" not in str(caught.value)
    assert "To do: copy or export the file again" in str(caught.value)


def test_checksum_is_compared(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", _image())
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum itself: every voxel can be read
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="CRC"):
        read_nifti(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.nii", b"", "an empty file"),
        ("a.nii.gz", b"", "an empty file"),
        ("a.nii", b"this is a text that someone renamed", "not a NIfTI file"),
        ("a.nii.gz", b"this is a text that someone renamed", "not a NIfTI file; expected a gzip stream"),
        ("a.nii.gz", gzip.compress(b"this is a text that someone renamed"), "not a NIfTI file"),
    ],
    ids=["empty", "empty-gz", "text", "text-gz", "compressed-text"],
)
def test_no_nifti(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_nifti, read_header):
        with pytest.raises(DataError, match=says):
            read(tmp_path / name)


def test_unknown_data_type(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", _image())
    data = bytearray(path.read_bytes())
    data[70:72] = (999).to_bytes(2, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="header that can't be read"):
        read_nifti(path)


def test_missing_and_dangling(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_nifti(tmp_path / "a.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "nowhere.nii")
    with pytest.raises(DataError, match=r"a link to .*nowhere\.nii, which is not there"):
        read_nifti(tmp_path / "b.nii")


def test_declared_size_beyond_any_memory(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", _image())
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[42:48] = np.array([32767] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(DataError, match="truncated or damaged"):
        read_nifti(path)


def test_written_bytes_repeat_and_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "new" / "a.nii.gz", _image())
    first = path.read_bytes()
    assert write_nifti(path, _image()).read_bytes() == first

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(path, _image((3, 3, 3)))
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["a.nii.gz"]
    with pytest.raises(DataError, match="not a NIfTI name"):
        write_nifti(tmp_path / "a.png", _image())


def _variants() -> dict[str, nib.Nifti1Image]:
    """Headers that tell their geometry in different ways."""
    found = {"both": _image(), "nifti2": _image(kind=nib.Nifti2Image), "4d": _image((9, 8, 7, 3))}
    found["singleton"] = _image((9, 8, 7, 1))
    for name, sform, qform in (("qform", 0, 1), ("sform", 2, 0), ("neither", 0, 0), ("contradiction", 1, 1)):
        image = _image()
        affine = image.affine.copy()
        image.set_qform(affine @ np.diag([1, 1, 1.1, 1]) if name == "contradiction" else affine, code=qform)
        image.set_sform(affine, code=sform)
        found[name] = image
    big = _image()
    found["big-endian"] = nib.Nifti1Image(np.asanyarray(big.dataobj), big.affine, big.header.as_byteswapped(">"))
    return found


@pytest.mark.parametrize("name", list(_variants()))
def test_geometry_is_written_bit_for_bit(tmp_path: Path, name: str) -> None:
    image = _variants()[name]
    image.header["descrip"] = b"somebody's name"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"somebody's name"))
    nib.save(image, tmp_path / "in.nii")
    header = read_header(tmp_path / "in.nii")
    labels = np.random.default_rng(1).integers(0, 300, (9, 8, 7)).astype(np.uint16)
    written = nib.load(write_like(tmp_path / "out.nii.gz", labels, header))
    raw = read_header(tmp_path / "out.nii.gz")
    for field in GEOMETRY:
        if name == "4d" and field == "dim":
            assert list(raw["dim"][:4]) == [3, 9, 8, 7]
            continue
        assert raw[field].tobytes() == header[field].tobytes(), field
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "in.nii").affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj).squeeze(), labels)
    assert written.shape == ((9, 8, 7, 1) if name == "singleton" else (9, 8, 7))
    assert b"somebody" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


def test_voxels_of_another_shape_are_refused(tmp_path: Path) -> None:
    nib.save(_image(), tmp_path / "in.nii")
    with pytest.raises(DataError, match=r"expected \(9, 8, 7\), came \(9, 8, 6\)"):
        write_like(tmp_path / "out.nii", np.zeros((9, 8, 6), np.uint8), read_header(tmp_path / "in.nii"))


def test_monai_reader(tmp_path: Path) -> None:
    nib.save(_image((9, 8, 7, 1)), tmp_path / "a.nii.gz")
    reader = StrictNibabelReader()
    array, meta = reader.get_data(reader.read([tmp_path / "a.nii.gz", tmp_path / "a.nii.gz"]))
    assert array.shape == (2, 9, 8, 7)
    np.testing.assert_allclose(meta["affine"], nib.load(tmp_path / "a.nii.gz").affine)
    with pytest.raises(TypeError, match="mmap"):
        reader.read(tmp_path / "a.nii.gz", mmap=False)
