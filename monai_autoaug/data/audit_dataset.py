# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of the data set as a whole: one function a check; `audit.CHECKS` holds a row for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from monai_autoaug.data.audit_views import DataSetView, Fault
from monai_autoaug.data.audit_voxels import LARGEST
from monai_autoaug.data.nifti_header import is_archive, is_nifti
from monai_autoaug.data.sides import lateral_pairs

__all__ = [
    "absent_class",
    "duplicates",
    "half_precision",
    "leakage",
    "left_out",
    "left_right",
    "no_foreground",
    "odd_spacing",
]

_PARTS = {"train": "training", "meta": "meta-validation", "validation": "validation"}
_UNLABELLED = "unlabelled"
_HALF = 65504.0  # the largest number that half precision holds
# endings of images in other formats, which a folder may hold by mistake
_OTHERS = (".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".dcm", ".img", ".hdr", ".nii.zip")


def no_foreground(data: DataSetView) -> Iterator[Fault]:
    """Some case has foreground."""
    counts = [c.counts for c in data.cases if c.counts is not None]
    declared = set(data.datalist.label_values) - {0}
    if counts and not declared & set().union(*counts):
        came = f"background only in {len(counts)} labels"
        yield Fault("has no foreground in any case", "declared labels above 0", came, "check the label files")


def absent_class(data: DataSetView) -> Iterator[Fault]:
    """Every declared label occurs, and does so where it is learned from."""
    counts = {c.name: c.counts for c in data.cases if c.counts is not None}
    learned = counts
    if data.parts is not None:
        trained = {c.name for c in (*data.parts.train, *data.parts.meta)}
        learned = {name: found for name, found in counts.items() if name in trained}
    seen, known = set().union(*counts.values()), set().union(*learned.values())
    if not seen & set(data.datalist.label_values) - {0}:
        return  # told by no_foreground, or there are no labels at all
    for name, value in data.datalist.labels.items():
        values = set(value if isinstance(value, tuple) else (value,))
        if values == {0} or values & known:
            continue
        elsewhere = bool(values & seen)
        what = "training case" if elsewhere else "case"
        came = f"no voxel of {sorted(values)} in {len(learned)} labels" + (", but in validation" if elsewhere else "")
        remedy = "choose another split (--split-seed)" if elsewhere else "check the declaration"
        yield Fault(f'the label "{name}" occurs in no {what}', "at least one voxel", came, remedy)


def _equal_images(data: DataSetView) -> Iterator[list[str]]:
    """Names of cases that hold one and the same image."""
    groups = defaultdict(list)
    for case in data.cases:
        if case.digest:
            groups[case.digest].append(case.name)
    return (names for names in groups.values() if len(names) > 1)


def _file(data: DataSetView, name: str) -> Path | None:
    """The first image of a case."""
    return next((c.file for c in data.cases if c.name == name), None)


def _part_of(data: DataSetView) -> dict[str, str]:
    """Case -> the part of the split that it belongs to; empty without a split."""
    if data.parts is None:
        return {}
    known = {case.name: _PARTS[part] for part, cases in data.parts._asdict().items() for case in cases}
    return known | {case.name: _UNLABELLED for case in data.datalist.unlabelled}


def _apart(first: str | None, second: str | None) -> bool:
    """Whether cases of these two parts must not hold the same image; training cases may be among the unlabelled."""
    return first != second and {first, second} != {_PARTS["train"], _UNLABELLED}


def leakage(data: DataSetView) -> Iterator[Fault]:
    """No image is in two parts of the split: who trains on it knows it already when it validates."""
    part = _part_of(data)
    for names in _equal_images(data):
        first = names[0]
        for name in names[1:]:
            if _apart(part.get(name), part.get(first)):
                remedy = "remove one of the two cases, or choose a split (--split-seed) that keeps them together"
                kind = part.get(name)
                article = "an" if kind == _UNLABELLED else "a"
                message = f"is {article} {kind} case that holds the same image as the {part.get(first)} case {first}"
                yield Fault(message, "another image", f"that of {first}", remedy, case=name, path=_file(data, name))


def duplicates(data: DataSetView) -> Iterator[Fault]:
    """No image comes twice: it could be trained on and validated on."""
    part = _part_of(data)
    for names in _equal_images(data):
        for name in names[1:]:
            if not _apart(part.get(name), part.get(names[0])):  # else told by leakage
                remedy = "keep one, or see that both fall into the same part of a split"
                message = "holds the same image as another case"
                yield Fault(message, "distinct images", names[0], remedy, case=name, path=_file(data, name))


def odd_spacing(data: DataSetView) -> Iterator[Fault]:
    """Spacings are of one order of magnitude."""
    known = {c.name: np.array(c.spacing) for c in data.cases if c.spacing is not None and min(c.spacing) > 0}
    if len(known) < 3:
        return
    median = np.median(list(known.values()), axis=0)
    for name, spacing in known.items():
        ratio = spacing / median
        if ratio.max() > 4 or ratio.min() < 0.25:
            want, came = (" x ".join(f"{s:.3g}" for s in v) for v in (median, spacing))
            expected, remedy = f"about {want} mm (median)", "check its header"
            yield Fault("has an unusual spacing", expected, f"{came} mm", remedy, case=name, path=_file(data, name))


def half_precision(data: DataSetView) -> Iterator[Fault]:
    """Intensities fit into half precision as they are."""
    large = [c for c in data.cases if _HALF < c.extreme <= LARGEST]  # larger ones are refused by themselves
    if large:
        worst = max(large, key=lambda c: c.extreme)
        more = f"; so do {len(large) - 1} more cases" if len(large) > 1 else ""
        yield Fault(
            "holds intensities that overflow half precision" + more,
            f"up to {_HALF:.0f}",
            f"{worst.extreme:.4g}",
            "normalise before anything runs in float16, as this package and nnU-Net do",
            case=worst.name,
            path=worst.extreme_file,
        )


def left_right(data: DataSetView) -> Iterator[Fault]:
    """No two labels are left and right of one structure, which mirroring would exchange."""
    labels: Mapping[str, int] = {name: i for i, name in enumerate(data.datalist.labels)}
    names = list(labels)
    for left, right in lateral_pairs(labels):
        yield Fault(
            f'the labels "{names[left]}" and "{names[right]}" look like left and right: mirroring exchanges them',
            "pairs that are declared, or no mirroring",
            f"{names[left]}, {names[right]}",
            f"pair them by the method's option laterality ([[{names[left]}, {names[right]}]]), or do not mirror",
        )


def left_out(data: DataSetView) -> Iterator[Fault]:
    """The folders of images and labels hold nothing that someone may believe to be read."""
    cases = (*data.datalist.training, *data.datalist.test, *data.datalist.unlabelled)
    files = [f for c in cases for f in c.files]
    for folder in sorted({f.parent for f in files}):
        if not folder.is_dir():
            continue  # told file by file
        other = sorted(f for f in folder.iterdir() if is_archive(f) or f.name.lower().endswith(_OTHERS))
        other = [f for f in other if not f.name.startswith(".") and not is_nifti(f)]
        if other:
            shown = ", ".join(f.name for f in other[:5]) + (" ..." if len(other) > 5 else "")
            remedy = "unpack archives yourself, convert other images to NIfTI, or take them away"
            yield Fault(f"{len(other)} files are not read", "NIfTI files", shown, remedy, path=other[0])
