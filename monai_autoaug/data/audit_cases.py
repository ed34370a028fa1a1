# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of a case's files against each other: one function a check; `audit.CHECKS` holds a row for each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monai_autoaug.data.audit_views import CaseView, Fault, Volume
from monai_autoaug.data.volume_transforms import TOLERANCE

__all__ = ["same_direction", "same_origin", "same_shape", "same_spacing"]

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


def _placed(case: CaseView) -> Iterator[tuple[Volume, Volume]]:
    """The pairs of which both have an affine to be compared; `affine_usable` tells the others."""
    yield from ((a, b) for a, b in case.pairs if all(np.isfinite(v.affine).all() and v.spacing.all() for v in (a, b)))


def same_spacing(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label have one spacing."""
    for image, other in _placed(case):
        drift = np.abs(image.spacing - other.spacing) * np.array(image.shape[:3])
        if drift.max() > _tolerance(image):
            want, came = (" x ".join(f"{s:.5g}" for s in v.spacing) + " mm" for v in (image, other))
            message = f"{other.role} differs from the image in spacing"
            yield Fault(message, want, f"{came}, {drift.max():.3g} mm at the far end", _REMEDY, path=other.path)


def same_origin(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label begin at one place."""
    for image, other in _placed(case):
        shift = float(np.linalg.norm(image.affine[:3, 3] - other.affine[:3, 3]))
        if shift > _tolerance(image):
            want, came = (str([round(float(x), 3) for x in v.affine[:3, 3]]) for v in (image, other))
            message = f"{other.role} differs from the image in origin"
            yield Fault(message, want, f"{came}, {shift:.3g} mm apart", _REMEDY, path=other.path)


def same_direction(case: CaseView) -> Iterator[Fault]:
    """Image, further channels and label have axes that point the same way."""
    for image, other in _placed(case):
        first, second = (v.affine[:3, :3] / v.spacing for v in (image, other))
        distance = float(np.linalg.norm(first - second, axis=0).max()) * _extent(image)
        if distance > _tolerance(image):
            angles = np.degrees(np.arccos(np.clip((first * second).sum(axis=0), -1, 1)))
            message = f"{other.role} differs from the image in direction"
            came = f"axes turned by up to {angles.max():.3g} degrees, {distance:.3g} mm at the far end"
            yield Fault(message, "the same axes", came, "correct its header or " + _REMEDY, path=other.path)
