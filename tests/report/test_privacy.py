# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Names and paths are hidden in any text, and nothing else is."""

from __future__ import annotations

import pytest

from monai_autoaug.report.privacy import Veil


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("anna-k is too small", "case 1 is too small"),
        ("anna-k2 and anna-k", "case 2 and case 1"),
        ("see /home/dr/anna-k.nii.gz", "see …"),
        (r"see C:\scans\x.nii now", "see … now"),
        ("in ~/scans/x", "in …"),
        ("blur/sharpen at 1/2 of 3 voxels", "blur/sharpen at 1/2 of 3 voxels"),
        ("<b>anna-k</b> of /mnt/data", "<b>case 1</b> of …"),
        ("SMITH_JOHN_1970-01-02.mha, b.nii.gz", "…, …"),
        ("policy patients/smith/policy.json is read", "policy … is read"),
        (r"in scans\x.pt", "in …"),
        ("weights 0.5/1.5 e.g. MONAI 1.6.1", "weights 0.5/1.5 e.g. MONAI 1.6.1"),
        ("p1", "case 3"),
        ("p1 has 1 voxel", "p1 has 1 voxel"),  # too short to be told from other words
        ("0042: expected 10042, came 0.0042", "case 4: expected 10042, came 0.0042"),
        ("Anna (x.y+z)", "Anna (case 5)"),
    ],
)
def test_names_and_paths_are_hidden(text: str, told: str) -> None:
    veil = Veil(["anna-k", "anna-k2", "p1", "0042", "x.y+z"])
    assert veil(text) == told
    assert Veil(["anna-k"], lifted=True)(text) == text


def test_values_of_all_kinds_pass() -> None:
    veil = Veil(["anna"])
    assert veil({"a": ["anna", 1, None, {"b": ("anna", 2.5)}], "anna": True}) == {
        "a": ["case 1", 1, None, {"b": ["case 1", 2.5]}], "anna": True,
    }  # fmt: skip
    assert veil.case("anna") == "case 1"
    assert veil.case("somebody") == "a case"
    assert Veil([])("anna") == "anna"
    assert Veil([], paths=["/home/Dr No/data"])("in /home/Dr No/data/a.nii, 3") == "in …, 3"
