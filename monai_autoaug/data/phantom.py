# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A small synthetic labelled data set, written as NIfTI, so that everything can be tried with nothing else at hand.

Each subject holds a bent, tapering tube (a hook) split into head and body, and a round structure with a bumpy surface,
inside an ellipsoid of textured tissue with an unlabelled distractor. Subjects differ in pose, size, shape, contrast,
gain, bias field, noise, spacing and orientation, so that spatial and intensity augmentation both have work to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from monai_autoaug.data.nifti import write_nifti
from monai_autoaug.errors import ConfigError
from monai_autoaug.writing import write_text

__all__ = ["write_phantom"]

LABELS = {"background": 0, "head": 1, "body": 2, "round": 3}
_SPACING = np.array([1.0, 1.0, 4 / 3])
# mean intensity of air, tissue, distractor, head, body, round in each of two contrasts
_CONTRASTS = np.array([[0.0, 0.5, 0.95, 0.82, 0.72, 0.25], [0.0, 0.5, 0.15, 0.8, 0.65, 0.95]])
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Subject:
    """One synthetic subject: image (channels, x, y, z), label (x, y, z), affine."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: Array


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Array:
    """Smooth random values of about unit size: a coarse grid of normal numbers, interpolated to ``shape``."""
    coarse = rng.standard_normal((cells,) * len(shape))
    return np.asarray(zoom(coarse, [n / cells for n in shape], order=3, mode="nearest", grid_mode=True))


def _coordinates(rng: np.random.Generator, shape: tuple[int, ...], spacing: Array) -> Array:
    """Voxel positions in the subject's own frame, about -1 to 1, shape (3, x, y, z): pose, size and a smooth warp."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")).reshape(3, -1)
    half = (np.array(shape) * spacing).mean() / 2
    turn = Rotation.from_euler("xyz", rng.normal(0, 12, 3), degrees=True).as_matrix()
    size = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.05, 3))
    position = (turn @ (grid * spacing[:, None] / half)) / size[:, None] + rng.normal(0, 0.06, (3, 1))
    warp = np.stack([_smooth_noise(rng, shape, 4) for _ in range(3)])
    return position.reshape(3, *shape) + 0.045 * warp


def _hook(rng: np.random.Generator, where: Array) -> tuple[Array, Array]:
    """Signed distance to the surface of a bent tube (negative inside), and the position along it, 0 to 1."""
    along = np.linspace(0, 1, 40)
    bend = np.pi * (0.75 + rng.normal(0, 0.08))
    radius = 0.42 + rng.normal(0, 0.03)
    centre = np.stack(
        [
            -0.25 + 0.12 * np.sin(np.pi * along) * rng.normal(1, 0.4),
            radius * np.cos(bend * along) + 0.1,
            radius * np.sin(bend * along) * (0.9 + rng.normal(0, 0.05)) - 0.15,
        ]
    )
    distance, nearest = cKDTree(centre.T).query(where.reshape(3, -1).T, workers=1)
    thickness = (0.2 - 0.1 * along) * (1 + 0.15 * np.sin(2 * np.pi * (2 * along + rng.uniform())))
    shape = where.shape[1:]
    return (distance - thickness[nearest]).reshape(shape), along[nearest].reshape(shape)


def _anatomy(rng: np.random.Generator, where: Array) -> NDArray[np.uint8]:
    """Tissue classes (x, y, z): 0 air, 1 tissue, 2 distractor, 3 head, 4 body, 5 round."""

    def ellipsoid(centre: list[float], axes: list[float], bumps: float) -> Array:
        offset = (where - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(axes, (3, 1, 1, 1))
        wave = np.sin(offset[0] * 3 + rng.uniform(0, 6)) * np.cos(offset[1] * 3 + rng.uniform(0, 6))
        return np.linalg.norm(offset, axis=0) * (1 + bumps * wave)

    tissue = np.zeros(where.shape[1:], np.uint8)
    tissue[ellipsoid([0, 0, 0], [0.95, 1.0, 0.95], 0.03) < 1] = 1
    size = 0.2 * np.exp(rng.normal(0, 0.12))
    tissue[ellipsoid([0.15, -0.5 + rng.normal(0, 0.05), 0.45], [size, size * 1.2, size], 0.1) < 1] = 2
    size = 0.27 * np.exp(rng.normal(0, 0.12))
    tissue[ellipsoid([0.42, 0.15 + rng.normal(0, 0.05), -0.1], [size, size, size * 1.15], 0.18) < 1] = 5
    distance, along = _hook(rng, where)
    border = 0.38 + rng.normal(0, 0.03)
    tissue[distance < 0] = np.where(along < border, 3, 4)[distance < 0]
    return tissue


def _intensities(rng: np.random.Generator, tissue: NDArray[np.uint8], channels: int) -> NDArray[np.int16]:
    """Image (channels, x, y, z): contrast, texture, partial volume, bias field, noise and gain."""
    shape = tissue.shape
    texture = gaussian_filter(rng.standard_normal(shape), 1.2)
    texture *= 0.04 / texture.std()
    image = np.empty((channels, *shape), np.int16)
    for c in range(channels):
        means = _CONTRASTS[c % 2] + np.concatenate([[0.02], rng.normal(0, 0.025, 5)])
        clean = gaussian_filter(np.maximum(means[tissue] + texture * (tissue > 0), 0), 0.6)
        clean = clean ** np.exp(rng.normal(0, 0.08))
        bias = np.exp(0.12 * _smooth_noise(rng, shape, 3))
        noise = rng.standard_normal((2, *shape)) * rng.uniform(0.03, 0.08)
        magnitude = np.hypot(clean * bias + noise[0], noise[1])  # Rician, as in magnitude MRI
        image[c] = np.clip(np.rint(magnitude * 1000 * np.exp(rng.normal(0, 0.5))), 0, 30000)
    return image


def _subject(seed: int, index: int, size: int, channels: int) -> _Subject:
    """The subject number ``index`` of the set ``seed``."""
    rng = np.random.default_rng([seed, index])
    shape = tuple(int(n) + int(rng.integers(-2, 3)) for n in (size, size, round(size * 0.75)))
    spacing = _SPACING * (48 / size) * np.exp(rng.normal(0, 0.03)) * np.exp(rng.normal(0, 0.02, 3))
    tissue = _anatomy(rng, _coordinates(rng, shape, spacing))
    label = np.where(tissue >= 3, tissue - 2, 0).astype(np.uint8)
    turn = Rotation.from_euler("xyz", rng.normal(0, 8, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + rng.normal(0, 10, 3)
    image = _intensities(rng, tissue, channels)
    if index % 3 == 1:  # stored left to right the other way, as many scanners do
        image, label = image[:, ::-1], label[::-1]
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = shape[0] - 1
        affine = affine @ flip
    return _Subject(image, label, affine)


def _save(path: Path, data: NDArray[Any], affine: Array) -> None:
    """Write a volume with qform and sform codes (scanner space)."""
    image = nib.Nifti1Image(np.asfortranarray(data), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_nifti(path, image)


def _image_names(name: str, channels: int, layout: str) -> list[str]:
    """The image files of a subject: several channels are one 4D file (Decathlon) or a file each."""
    if layout == "nnunet" or (layout == "folders" and channels > 1):
        return [f"{name}_{c:04d}.nii.gz" for c in range(channels)]
    return [f"{name}.nii.gz"]


def _write_image(folder: Path, names: list[str], subject: _Subject) -> None:
    """Write the image into one file, or a channel a file."""
    if len(names) == len(subject.image):
        for name, channel in zip(names, subject.image, strict=True):
            _save(folder / name, channel, subject.affine)
    else:
        _save(folder / names[0], np.moveaxis(subject.image, 0, -1), subject.affine)


def _refuse_leftovers(folder: Path, planned: set[str]) -> None:
    """Refuse a folder with other NIfTI files, which would become part of the data set."""
    others = sorted(f.name for f in folder.glob("*.nii*") if f.name not in planned) if folder.is_dir() else []
    if others:
        raise ConfigError(f"{folder} holds other files ({', '.join(others[:3])}); choose an empty folder")


def _description(layout: str, names: list[str], tests: list[str], channels: int, regions: bool, ignore: bool) -> str:
    """The text of dataset.json."""
    contrasts = {str(c): f"MRI{c}" if channels > 1 else "MRI" for c in range(channels)}
    content: dict[str, Any] = {"name": "phantom", "numTraining": len(names)}
    if layout == "decathlon":
        content |= {"tensorImageSize": "3D" if channels == 1 else "4D", "numTest": len(tests)}
        content |= {"modality": contrasts, "labels": {str(v): k for k, v in LABELS.items()}}
        pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
        content |= {"training": pairs, "test": [f"./imagesTs/{n}.nii.gz" for n in tests]}
    else:
        labels: dict[str, Any] = dict(LABELS)
        if regions:
            labels = {"background": 0, "hook": [1, 2], "head": [1], "round": [3]}
            content["regions_class_order"] = [2, 1, 3]
        if ignore:
            labels["ignore"] = 4
        content |= {"channel_names": contrasts, "labels": labels, "file_ending": ".nii.gz"}
    return json.dumps(content, indent=1)


def write_phantom(
    folder: str | Path,
    *,
    cases: int = 24,
    size: int = 48,
    seed: int = 0,
    layout: Literal["decathlon", "nnunet", "folders"] = "decathlon",
    channels: int = 1,
    test: int = 0,
    regions: bool = False,
    ignore: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic labelled data set; the same arguments give the same bytes.

    Volumes are int16 of about ``size`` x ``size`` x 0.75 ``size`` voxels of about 1 x 1 x 1.33 mm (at size 48), with a
    rotated affine; labels are uint8: 1 head and 2 body of a hook, 3 a round structure.

    Args:
        folder: where to; made if missing.
        cases: the number of labelled subjects.
        size: voxels a side, at least 16; the anatomy keeps its extent in mm, so fewer voxels are larger ones.
        seed: another seed gives other subjects.
        layout: ``"decathlon"``, ``"nnunet"`` or ``"folders"`` (images/ and labels/).
        channels: 1, or 2 contrasts of the same anatomy (4D files for the Decathlon's layout, else a file each).
        test: the number of further subjects without a label, in imagesTs.
        regions: nnU-Net's layout only: declare regions (hook = 1 or 2, head = 1, round = 3).
        ignore: nnU-Net's layout only: declare the ignore label 4 and leave every third slice's label unknown.
        progress: called with the number of subjects written and of all subjects.

    Returns:
        The folder.

    Raises:
        ConfigError: an argument is out of range, or the folder holds other NIfTI files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(p.name for p in write_phantom(folder, cases=1, size=16).iterdir())
    ['dataset.json', 'imagesTr', 'labelsTr']
    """
    if cases < 1 or test < 0 or size < 16 or not 1 <= channels <= 2 or layout not in ("decathlon", "nnunet", "folders"):
        raise ConfigError(
            "a phantom needs cases >= 1, test >= 0, size >= 16, 1 or 2 channels and a known layout, "
            f"got cases={cases}, test={test}, size={size}, channels={channels}, layout={layout!r}"
        )
    if (regions or ignore) and layout != "nnunet":
        raise ConfigError(f'regions and an ignore label need layout="nnunet", got {layout!r}')
    folder = Path(folder)
    images, labels = ("images", "labels") if layout == "folders" else ("imagesTr", "labelsTr")
    names = [f"phantom_{i:03d}" for i in range(cases + test)]
    files = {n: _image_names(n, channels, layout) for n in names}
    for place, group in ((images, names[:cases]), ("imagesTs", names[cases:])):
        _refuse_leftovers(folder / place, {f for n in group for f in files[n]})
    _refuse_leftovers(folder / labels, {f"{n}.nii.gz" for n in names[:cases]})
    for i, name in enumerate(names):
        subject = _subject(seed, i, size, channels)
        _write_image(folder / (images if i < cases else "imagesTs"), files[name], subject)
        if i < cases:
            label = subject.label.copy()
            if ignore:
                label[:, :, 2::3] = 4
            _save(folder / labels / f"{name}.nii.gz", label, subject.affine)
        if progress is not None:
            progress(i + 1, len(names))
    if layout != "folders":
        text = _description(layout, names[:cases], names[cases:], channels, regions, ignore)
        write_text(folder / "dataset.json", text + "\n")
    return folder
