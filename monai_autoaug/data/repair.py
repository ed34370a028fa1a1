# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A copy of a data set in which some faults are mended, on request; the data set itself is never written to.

What is mended: axes that meet almost at right angles (the header only; every voxel keeps its value), axes that don't
(the case is resampled), and voxels of images that are NaN or infinite (filled with a value of the user's choice).
Nothing is guessed: each is asked for, and each file that was changed is named with the size of the change.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import SpatialResample
from numpy.typing import NDArray

from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.data.findings import Finding
from monai_autoaug.data.geometry import SHEAR, right_angled
from monai_autoaug.data.names import leaves_folder
from monai_autoaug.data.nifti import Nifti, corner_shift, read_nifti, write_nifti
from monai_autoaug.data.nifti_writing import write_stream
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.reading import read_json
from monai_autoaug.writing import write_whole

__all__ = ["check_repair", "repair"]

_LEAST = 1e-4  # cosine between axes that counts as none


Note = Callable[[str, str, str], None]


@dataclass(frozen=True)
class _Wish:
    """What is to be mended.

    Args:
        resample: volumes whose axes don't meet at right angles.
        fill: for NaN and infinite voxels of images: a number, or "min", the image's lowest finite value.
    """

    resample: bool
    fill: float | str | None


def check_repair(datalist: DataList, output: Path, fill: float | str | None) -> None:
    """Refuse a repair that can't be done, before any work.

    Args:
        datalist: the data set.
        output: the folder of the copy.
        fill: see `repair`.

    Raises:
        ConfigError: the folder is not empty, or lies in the data set; a file lies elsewhere, or its copy would; or fill
            is no finite number.
    """
    if fill is not None and fill != "min" and (isinstance(fill, str) or not math.isfinite(fill)):
        raise ConfigError(f"fill must be a finite number or min, got {fill!r}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is there already; give a folder that is empty or not there")
    inside, outside = output.resolve(), datalist.folder.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ConfigError(f"{output}: lies in the data set, or the data set in it; give a folder elsewhere")
    named = [file for file, _ in _named(datalist)]
    elsewhere = [f for f in named if not _lies_in(f, datalist.folder)]
    if elsewhere:
        raise ConfigError(f"{elsewhere[0]}: lies outside the data set's folder, which alone is copied; move it there")
    for file in named:
        _check_target(_target(file, datalist.folder, output), file, output)


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder by its path once every ``..`` in it is worked out."""
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))


def _target(file: Path, folder: Path, output: Path) -> Path:
    """Where the copy of a file of the data set belongs: where the copy's dataset.json looks for it."""
    if file.is_relative_to(folder):
        return output / file.relative_to(folder)
    return output / Path(os.path.abspath(file)).relative_to(os.path.abspath(folder))


def _check_target(target: Path, source: Path, output: Path) -> None:
    """See, before and right at a write, that it can't reach anything but the copy.

    Raises:
        ConfigError: it would reach what lies elsewhere, or the file that it is a copy of.
    """
    same = target.exists() and source.exists() and target.samefile(source)
    if same or not target.resolve().is_relative_to(output.resolve()):
        raise ConfigError(
            f"{source}: its copy {target} would be written outside the folder {output}, over data that may be the only"
            " ones; name the file in dataset.json by a path without .."
        )


def repair(
    datalist: DataList,
    output: Path,
    *,
    resample: bool = False,
    fill: float | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Write a copy of a data set, in its own layout, whose files are mended where that was asked for.

    Axes that meet at right angles but for a shear of 0.01 are always set at right angles. What can't be mended is
    copied as it is: audit the copy. Files that can't be read, or that a link leads to from elsewhere, are left out.

    Args:
        datalist: the data set.
        output: a folder that is empty or not there.
        resample: bring volumes with a larger shear onto a grid of right angles that holds all of them; images linearly
            and as float32, labels by the nearest voxel.
        fill: what NaN and infinite voxels of images become: a number, or "min", the image's lowest finite value.
        progress: called with the number of files done and of all files.

    Returns:
        A note a change: the file, what came, and by how many mm or in how many voxels it was changed.

    Raises:
        ConfigError: see `check_repair`.

    >>> import tempfile
    >>> from monai_autoaug.data import read_datalist, write_phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> data = read_datalist(write_phantom(folder / "data", cases=2, size=16))
    >>> repair(data, folder / "copy"), len(read_datalist(folder / "copy").training)
    ([], 2)
    """
    check_repair(datalist, output, fill)
    wish, changes = _Wish(resample, fill), []
    files = dict(_files(datalist))
    for done, (source, (case, role)) in enumerate(files.items(), 1):
        target = _target(source, datalist.folder, output)
        _check_target(target, source, output)
        changes += _mend(source, target, case, role, wish, datalist.folder)
        if progress is not None:
            progress(done, len(files))
    declared = datalist.folder / "dataset.json"
    if declared.is_file() and not leaves_folder(declared, datalist.folder):
        content = _description(declared, datalist.folder)
        write_whole(output / declared.name, lambda file: file.write_bytes(content))
    return changes


def _description(declared: Path, folder: Path) -> bytes:
    """What dataset.json says; absolute paths in its table of cases would lead from the copy back to the data set."""
    content = read_json(declared)
    made = content | {"dataset": _relative(content["dataset"], folder)} if "dataset" in content else content
    return declared.read_bytes() if made == content else (json.dumps(made, indent=1) + "\n").encode()


def _relative(named: Any, folder: Path) -> Any:
    """The table with absolute paths of what lies in the folder made relative to it."""
    if isinstance(named, dict):
        return {name: _relative(value, folder) for name, value in named.items()}
    if isinstance(named, list):
        return [_relative(value, folder) for value in named]
    if isinstance(named, str) and Path(named).is_absolute() and _lies_in(Path(named), folder):
        return Path(os.path.relpath(named, folder)).as_posix()
    return named


def _named(datalist: DataList) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Every file that the data set names, wherever it lies, with its case and role."""
    cases: tuple[Case, ...] = (*datalist.training, *datalist.test, *datalist.unlabelled)
    for case in cases:
        labels = () if case.label is None else (case.label,)
        for role, files in (("image", case.images), ("label", labels)):
            yield from ((file, (case.name, role)) for file in files)


def _files(datalist: DataList) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Those of them that no link leads out of the data set's folder."""
    yield from ((f, whose) for f, whose in _named(datalist) if not leaves_folder(f, datalist.folder))


def _mend(source: Path, target: Path, case: str, role: str, wish: _Wish, folder: Path) -> list[Finding]:
    """Copy one file, mended where that was asked for; the changes."""
    changes: list[Finding] = []

    def note(message: str, expected: str, came: str) -> None:
        name = os.path.relpath(source, folder)
        changes.append(Finding(case, "repaired", "note", message, expected, came, file=name))

    try:
        nifti = read_nifti(source)
    except DataError:  # told by the audit
        if source.is_file():
            _copy(source, target)
        return changes
    if role == "image" and wish.fill is not None:
        nifti = _filled(nifti, wish.fill, note)
    square, cosine = _angles(nifti)
    if cosine > SHEAR and wish.resample:
        made = _resampled(nifti.image, square, nearest=role == "label")
        came = f"a shear of {cosine:.3g}; its shape {tuple(nifti.image.shape)} is now {tuple(made.shape)}"
        note("was resampled to axes at right angles", "right angles", came)
        write_nifti(target, made)
        return changes
    if _LEAST < cosine <= SHEAR:
        nifti = _straight(nifti, square, cosine, note)
    if changes:
        write_stream(target, nifti.proxy.file_like.getvalue())
    else:
        _copy(source, target)
    return changes


def _copy(source: Path, target: Path) -> None:
    """The file as it is."""
    write_whole(target, lambda file: shutil.copyfile(source, file))


def _changed(nifti: Nifti, header: nib.Nifti1Header, voxels: NDArray[Any] | None = None) -> Nifti:
    """The file with another header of the same kind, or other stored voxels; all else bit for bit."""
    data = bytearray(nifti.proxy.file_like.getvalue())
    data[: len(header.binaryblock)] = header.binaryblock
    if voxels is not None:
        start = nifti.proxy.offset
        data[start : start + voxels.nbytes] = voxels.tobytes()
    return Nifti(nifti.path, header, type(nifti.image).from_stream(BytesIO(bytes(data))))


def _filled(nifti: Nifti, fill: float | str, note: Note) -> Nifti:
    """Without NaN and infinite voxels."""
    if nifti.header.get_data_dtype().kind != "f":
        return nifti
    stored, voxels = nifti.stored, nifti.scaled(nifti.stored)
    finite = np.isfinite(voxels)
    count = int((~finite).sum())
    if not count or not finite.any():
        return nifti
    lowest = int(np.argmin(np.where(finite, voxels, np.inf)))
    slope, inter = float(nifti.proxy.slope), float(nifti.proxy.inter)
    value = stored[lowest] if isinstance(fill, str) else stored.dtype.type((fill - inter) / slope)
    told = float(voxels[lowest]) if isinstance(fill, str) else fill
    note(f"NaN and infinite voxels were filled with {told:g}", "finite voxels", f"{count:,} of {voxels.size:,}")
    return _changed(nifti, nifti.header, np.where(finite, stored, value).astype(stored.dtype))


def _angles(nifti: Nifti) -> tuple[NDArray[np.float64], float]:
    """The affine of right angles, and the cosine that the axes have instead; 0 where that can't be told."""
    affine, shape = np.asarray(nifti.image.affine, np.float64), nifti.image.shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if len(shape) < 3 or not np.isfinite(affine).all() or not spacing.all():
        return affine, 0.0
    return right_angled(affine, shape)


def _straight(nifti: Nifti, square: NDArray[np.float64], cosine: float, note: Note) -> Nifti:
    """With axes at right angles: another header, the same voxels."""
    shift = corner_shift(nifti.image.affine, square, nifti.image.shape)
    note(
        f"axes were set at right angles, which moves voxels by up to {shift:.3g} mm", "right angles",
        f"a shear of {cosine:.3g}",
    )  # fmt: skip
    header = nifti.header.copy()
    for form in ("sform", "qform"):
        code = int(header[f"{form}_code"]) or int(header["sform_code"]) or int(header["qform_code"])
        getattr(header, f"set_{form}")(square, code=code)
    return _changed(nifti, header)


def _resampled(image: nib.Nifti1Image, square: NDArray[np.float64], *, nearest: bool) -> nib.Nifti1Image:
    """On a grid of right angles that holds all of a volume; outside it an image is its border, a label background."""
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in image.shape[:3]), [1], indexing="ij")).reshape(4, -1)
    ends = (np.linalg.inv(square) @ image.affine @ corners)[:3]
    first = np.floor(ends.min(axis=1) + 1e-6)
    shape = np.ceil(ends.max(axis=1) - 1e-6) - first + 1
    target = square.copy()
    target[:3, 3] += square[:3, :3] @ first
    voxels = np.asanyarray(image.dataobj)
    dtype: Any = voxels.dtype if nearest else np.float32
    channels = np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), -1, 0).astype(np.float64 if nearest else np.float32)
    resample = SpatialResample(
        mode="nearest" if nearest else "bilinear", padding_mode="zeros" if nearest else "border", dtype=np.float64
    )
    volume = MetaTensor(torch.as_tensor(np.ascontiguousarray(channels)), affine=torch.as_tensor(image.affine))
    moved = resample(volume, dst_affine=torch.as_tensor(target), spatial_size=[int(n) for n in shape])
    out = np.moveaxis(moved.numpy(), 0, -1).astype(dtype)
    made = type(image)(out if len(image.shape) > 3 else out[..., 0], target, dtype=dtype)
    made.header.set_xyzt_units(2)  # mm
    return made
