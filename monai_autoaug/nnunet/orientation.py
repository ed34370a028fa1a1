# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where left and right are in nnU-Net's arrays: images are neither reoriented nor in the order of their file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import Laterality, left_right_axis

__all__ = ["axis_of_case", "directions", "laterality_of", "left_right_of_dataset", "orientation_of_case"]


def axis_of_case(properties: Mapping[str, Any], transposed: Sequence[int]) -> int | None:
    """The axis of a preprocessed image, counted from 0, that runs between left and right.

    Args:
        properties: what nnU-Net has kept of the image file.
        transposed: the plans' ``transpose_forward``.

    Returns:
        None where nnU-Net's reader has kept no orientation.

    >>> axis_of_case({"sitk_stuff": {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}, [1, 0, 2])
    2
    """
    affine = _affine(properties)
    # readers reverse the order of the axes
    return None if affine is None else list(transposed).index(2 - left_right_axis(affine))


def orientation_of_case(properties: Mapping[str, Any], transposed: Sequence[int]) -> str:
    """The directions in which the axes of a preprocessed image increase, one letter each, as in nibabel.

    Args:
        properties: see `axis_of_case`.
        transposed: see `axis_of_case`.

    Returns:
        "" where nnU-Net's reader has kept no orientation.

    >>> orientation_of_case({"sitk_stuff": {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}, [1, 0, 2])
    'PSL'
    """
    letters = directions(properties)
    # readers reverse the order of the axes
    return "" if letters is None else "".join(letters[::-1][axis] for axis in transposed)


def directions(properties: Mapping[str, Any]) -> str | None:
    """Where the axes of an image's voxels point to, in the order of its file: "RAS" is right, anterior, superior.

    Args:
        properties: what nnU-Net has kept of the image file.

    Returns:
        None where nnU-Net's reader has kept no orientation.

    >>> directions({"sitk_stuff": {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}})
    'LPS'
    """
    affine = _affine(properties)
    return None if affine is None else "".join(nib.aff2axcodes(affine))


def _affine(properties: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Voxels as they were read, in the order of the file, to right, anterior, superior; None where it isn't known."""
    if "sitk_stuff" in properties and len(properties["sitk_stuff"]["direction"]) == 9:
        affine = np.eye(4)
        # ITK counts to the left and to posterior
        affine[:3, :3] = np.diag([-1, -1, 1]) @ np.reshape(properties["sitk_stuff"]["direction"], (3, 3))
        return affine
    if "nibabel_stuff" in properties:
        kept = properties["nibabel_stuff"]
        return np.asarray(kept.get("reoriented_affine", kept.get("original_affine")), np.float64)
    return None


def left_right_of_dataset(folder: Path, transposed: Sequence[int]) -> int:
    """The axis between left and right of all cases of a preprocessed data set.

    Args:
        folder: nnU-Net's folder of preprocessed cases.
        transposed: the plans' ``transpose_forward``.

    Raises:
        ConfigError: cases differ in it, or it isn't known.
    """
    axes: dict[int | None, str] = {}
    for file in sorted(folder.glob("*.pkl")):
        with file.open("rb") as stream:
            properties = pickle.load(stream)  # noqa: S301  # nnU-Net's own file, which it reads so, too
        axes.setdefault(axis_of_case(properties, transposed), file.stem)
    found = next(iter(axes), None)
    if len(axes) != 1 or found is None:
        seen = ", ".join(f"{'unknown' if a is None else f'axis {a}'} ({case})" for a, case in axes.items()) or "no case"
        raise ConfigError(
            "method option laterality: which axis runs between left and right must be known and the same for all"
            f" cases, got {seen}. To do: bring all images into one orientation (RAS) and preprocess them again, or"
            " leave laterality out and the mirroring cascades and views off"
        )
    return found


def laterality_of(
    given: Laterality | Sequence[Sequence[int]] | Mapping[str, Any],
    folder: Path,
    transposed: Sequence[int],
    spatial_dims: int,
) -> Laterality | None:
    """Pairs of labels with the axis along which they are each other's mirror image in a network's patches.

    Args:
        given: the method's option ``laterality``: pairs, or pairs and ``mirrors``; an axis in it is replaced.
        folder: see `left_right_of_dataset`.
        transposed: see `left_right_of_dataset`.
        spatial_dims: 2 for slices across the first axis, or 3.

    Returns:
        None without pairs, and for sagittal slices: nothing that is done within them exchanges left and right.

    Raises:
        ConfigError: see `left_right_of_dataset`, or the option gives an axis.
    """
    if isinstance(given, Mapping) and "axis" in given:
        raise ConfigError("method option laterality: the trainer finds the axis itself; give pairs and mirrors only")
    known = Laterality.of(given)
    axis = left_right_of_dataset(folder, transposed) - (3 - spatial_dims)
    return None if known is None or axis < 0 else replace(known, axis=axis)
