# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""NIfTI files with damaged headers and streams: the audit tells or accepts them, and what it accepts can be used."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fuzz_helpers import EXAMPLES, fuzz, spoilt_bytes
from hypothesis import strategies as st

from monai_autoaug.data import Preprocessing, audit, read_datalist, refused, write_phantom
from monai_autoaug.data.audit_resampling import median_spacing
from monai_autoaug.data.datalist import DataList
from monai_autoaug.data.geometry import resampled_grid
from monai_autoaug.data.nifti import read_header, read_nifti
from monai_autoaug.errors import AutoAugError

HEADER = 352
# name, offset, struct's letter, how many
FIELDS = (
    ("sizeof_hdr", 0, "i", 1), ("dim", 40, "h", 8), ("datatype", 70, "h", 1), ("bitpix", 72, "h", 1),
    ("pixdim", 76, "f", 8), ("vox_offset", 108, "f", 1), ("scl", 112, "f", 2), ("units", 123, "B", 1),
    ("codes", 252, "h", 2), ("quaternion", 256, "f", 6), ("srow", 280, "f", 12), ("magic", 344, "I", 1),
)  # fmt: skip
RANGES = {"h": (-(2**15), 2**15 - 1), "B": (0, 255), "i": (-(2**31), 2**31 - 1), "I": (0, 2**32 - 1)}
WHOLE = [0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 255, 256, 512, 1024, 1536, 1792, 2304, 32767, -32768]
REAL = [0.0, -0.0, 1.0, -1.0, 1e-6, 1e-30, 1e30, 3e38, math.nan, math.inf, -math.inf, 352.0, 353.0, 1e9, 0.01]


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """A file whose header's fields hold odd values, or some of whose bytes do."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        _, start, letter, count = draw(st.sampled_from(FIELDS))
        place = start + struct.calcsize(letter) * draw(st.integers(0, count - 1))
        if letter == "f":
            value: Any = draw(st.one_of(st.sampled_from(REAL), st.floats(width=32)))
        else:
            low, high = RANGES[letter]
            value = draw(st.one_of(st.sampled_from([v for v in WHOLE if low <= v <= high]), st.integers(low, high)))
        struct.pack_into("<" + letter, data, place, value)
    return draw(st.one_of(st.just(bytes(data)), spoilt_bytes(bytes(data))))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> DataList:
    """One case of plain .nii files."""
    folder = write_phantom(tmp_path_factory.mktemp("fuzz"), cases=1, size=16, layout="folders")
    for path in list(folder.rglob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return read_datalist(folder)


def usable(data: DataList) -> None:
    """What was not refused goes through preprocessing and back, or is refused there by name."""
    case = data.training[0]
    header = read_header(case.images[0])
    affine = np.array(type(header).from_header(header).get_best_affine())
    spacing = median_spacing(data.folder, data.training, "RAS")
    assert spacing is not None
    if math.prod(resampled_grid(affine, header.get_data_shape(), spacing, "RAS")[1]) > 1e5:
        return  # sound, but it takes long
    try:
        preprocessing = Preprocessing.fit(data, data.training)
        item: Any = preprocessing.transforms()(data.to_monai()[0])
        assert item["image"].isfinite().all()
        path = preprocessing.restore(item["label"], case=case, path=data.folder / "out.nii.gz")
    except AutoAugError:
        return
    np.testing.assert_array_equal(nib.load(path).affine, nib.load(case.images[0]).affine)


def check(data: DataList) -> bool:
    """Audit a case; whether it is refused."""
    found = audit(data, workers=1)
    for finding in found:
        assert finding.message
        assert finding.expected
        assert finding.came
        assert finding.remedy or finding.severity == "note", finding
    bad = refused(found)
    if not bad:
        usable(data)
    return bad


@EXAMPLES
@pytest.mark.parametrize("which", ["image", "label"])
def test_headers(pair: DataList, which: str, examples: int) -> None:
    case = pair.training[0]
    assert case.label is not None
    path = case.images[0] if which == "image" else case.label
    whole, outcomes = path.read_bytes(), set()

    def one(content: bytes) -> None:
        path.write_bytes(content)
        outcomes.add(check(pair))

    try:
        fuzz(examples, one, edited(whole))
    finally:
        path.write_bytes(whole)
    assert outcomes == {True, False}


@EXAMPLES
def test_image_and_label_with_the_same_header(pair: DataList, examples: int) -> None:
    """So that what is wrong with both alike is met, which no comparison of the two tells."""
    case = pair.training[0]
    assert case.label is not None
    files = {path: path.read_bytes() for path in (case.images[0], case.label)}
    base = files[case.images[0]]
    number = st.one_of(st.sampled_from(REAL), st.floats(-3, 3, width=32))
    forms = st.lists(st.tuples(st.integers(0, 11), number), max_size=3)

    def one(edits: list[tuple[int, float]], codes: tuple[int, int], spacing: float) -> None:
        head = bytearray(base[252:328])
        struct.pack_into("<2h", head, 0, *codes)
        for place, value in edits:
            struct.pack_into("<f", head, 28 + 4 * place, value)
        for path, whole in files.items():
            path.write_bytes(whole[:80] + struct.pack("<f", spacing) + whole[84:252] + bytes(head) + whole[328:])
        check(pair)

    try:
        fuzz(examples, one, forms, st.tuples(*[st.integers(-1, 5)] * 2), st.one_of(st.just(2.0), st.sampled_from(REAL)))
    finally:
        for path, whole in files.items():
            path.write_bytes(whole)


@EXAMPLES
def test_compressed_streams(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8), np.eye(4))
    whole = gzip.compress(image.to_bytes(), mtime=0)
    voxels = np.asanyarray(image.dataobj).tobytes(order="F")

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = read_nifti(path)
        except AutoAugError:
            return
        # what is accepted is what was written: nothing is filled with zeros
        assert found.stored.tobytes() == voxels

    fuzz(examples, one, spoilt_bytes(whole))


@EXAMPLES
def test_any_bytes(tmp_path: Path, examples: int) -> None:
    def one(content: bytes, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_nifti, read_header):
            with pytest.raises(AutoAugError, match=name):
                read(path)

    fuzz(examples, one, st.binary(max_size=400), st.sampled_from(["a.nii", "a.nii.gz"]))
