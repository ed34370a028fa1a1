# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of a case's files against each other, and of the data set as a whole: one function a check."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from monai_autoaug.data.audit_views import CaseView, DataSetView, Fault, Volume
from monai_autoaug.data.volume_transforms import TOLERANCE

__all__ = [
    "absent_class",
    "duplicates",
    "leakage",
    "no_foreground",
    "odd_spacing",
    "same_direction",
    "same_origin",
    "same_shape",
    "same_spacing",
]

_PARTS = {"train": "training", "meta": "meta-validation", "validation": "validation"}
_UNLABELLED = "unlabelled"
_REMEDY = "resample it onto the image"


def _tolerance(image: Volume) -> float:
    """By how many mm files of a case may disagree: a small part of the shortest edge of a voxel."""
    return TOLERANCE * float(image.spacing.min())


def _extent(image: Volume) -> float:
    """The longest side of a volume in mm."""
    return float((image.spacing * np.array(image.shape[:3])).max())


def same_shape(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label have one shape."""
    for image, other in case.pairs:
        if image.shape[:3] != other.shape[:3]:
            message = f"{other.role} differs from the image in shape"
            yield Fault(message, f"{image.shape[:3]}", f"{other.shape[:3]}", _REMEDY, path=other.path)


def same_spacing(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label have one spacing."""
    for image, other in case.pairs:
        drift = np.abs(image.spacing - other.spacing) * np.array(image.shape[:3])
        if drift.max() > _tolerance(image):
            want, came = (" x ".join(f"{s:.5g}" for s in v.spacing) + " mm" for v in (image, other))
            message = f"{other.role} differs from the image in spacing"
            yield Fault(message, want, f"{came}, {drift.max():.3g} mm at the far end", _REMEDY, path=other.path)


def same_origin(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label begin at one place."""
    for image, other in case.pairs:
        shift = float(np.linalg.norm(image.affine[:3, 3] - other.affine[:3, 3]))
        if shift > _tolerance(image):
            want, came = (str([round(float(x), 3) for x in v.affine[:3, 3]]) for v in (image, other))
            message = f"{other.role} differs from the image in origin"
            yield Fault(message, want, f"{came}, {shift:.3g} mm apart", _REMEDY, path=other.path)


def same_direction(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label have axes that point the same way."""
    for image, other in case.pairs:
        if not image.spacing.all() or not other.spacing.all():
            continue  # told by affine_usable
        first, second = (v.affine[:3, :3] / v.spacing for v in (image, other))
        distance = float(np.linalg.norm(first - second, axis=0).max()) * _extent(image)
        if distance > _tolerance(image):
            angles = np.degrees(np.arccos(np.clip((first * second).sum(axis=0), -1, 1)))
            message = f"{other.role} differs from the image in direction"
            came = f"axes turned by up to {angles.max():.3g} degrees, {distance:.3g} mm at the far end"
            yield Fault(message, "the same axes", came, "correct its header or " + _REMEDY, path=other.path)


def no_foreground(data: DataSetView) -> Iterator[Fault]:
    """Some case has foreground."""
    counts = [c.counts for c in data.cases if c.counts is not None]
    declared = set(data.datalist.label_values) - {0}
    if counts and not declared & set().union(*counts):
        came = f"background only in {len(counts)} labels"
        yield Fault("has no foreground in any case", "declared labels above 0", came, "check the label files")


def absent_class(data: DataSetView) -> Iterator[Fault]:
    """Every declared label occurs."""
    counts = [c.counts for c in data.cases if c.counts is not None]
    seen = set().union(*counts)
    if not seen & set(data.datalist.label_values) - {0}:
        return  # told by no_foreground, or there are no labels at all
    for name, value in data.datalist.labels.items():
        values = set(value if isinstance(value, tuple) else (value,))
        if values != {0} and not values & seen:
            came = f"no voxel of {sorted(values)} in {len(counts)} labels"
            yield Fault(f'the label "{name}" occurs in no case', "at least one voxel", came, "check the declaration")


def _equal_images(data: DataSetView) -> Iterator[list[str]]:
    """Names of cases that hold one and the same image."""
    groups = defaultdict(list)
    for case in data.cases:
        if case.digest:
            groups[case.digest].append(case.name)
    return (names for names in groups.values() if len(names) > 1)


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
                yield Fault(message, "another image", f"that of {first}", remedy, case=name)


def duplicates(data: DataSetView) -> Iterator[Fault]:
    """No image comes twice: it could be trained on and validated on."""
    part = _part_of(data)
    for names in _equal_images(data):
        for name in names[1:]:
            if not _apart(part.get(name), part.get(names[0])):  # else told by leakage
                remedy = "keep one, or see that both fall into the same part of a split"
                yield Fault("holds the same image as another case", "distinct images", names[0], remedy, case=name)


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
            yield Fault("has an unusual spacing", f"about {want} mm (median)", f"{came} mm", "check it", case=name)
