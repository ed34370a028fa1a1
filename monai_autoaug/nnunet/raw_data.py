# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cases of any layout as nnU-Net's raw data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_autoaug.data import Case, DataList
from monai_autoaug.data.nifti_writing import write_nifti
from monai_autoaug.errors import ConfigError
from monai_autoaug.writing import write_text

__all__ = ["write_images", "write_raw"]


def write_images(folder: Path, case: Case, channels: int, *, link: bool = True) -> None:
    """Put a case's image where nnU-Net looks for it: one file a channel.

    Args:
        folder: ``imagesTr`` or the like.
        case: with a file for each channel, or one that holds all.
        channels: how many.
        link: by links; False: copies. Channels of one file are always written as files of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if len(case.images) == channels:
        for channel, image in enumerate(case.images):
            ending = ".nii.gz" if image.name.endswith(".gz") else ".nii"
            _put(image, folder / f"{case.name}_{channel:04d}{ending}", link)
        return
    whole: Any = nib.load(case.images[0])
    values = np.asanyarray(whole.dataobj)
    for channel in range(channels):
        target = folder / f"{case.name}_{channel:04d}.nii.gz"
        if not target.exists():
            write_nifti(target, nib.Nifti1Image(values[..., channel], whole.affine))


def _put(source: Path, target: Path, link: bool) -> None:
    if target.is_symlink() or target.exists():
        target.unlink()
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


def write_raw(folder: Path, datalist: DataList, training: Sequence[Case]) -> Path:
    """A raw data set of nnU-Net: links to images and labels, and ``dataset.json``.

    Args:
        folder: of the data set; what is in it is lost.
        datalist: what the cases hold.
        training: cases with labels.

    Raises:
        ConfigError: some files are compressed and others aren't, which nnU-Net can't read.

    >>> import tempfile
    >>> from monai_autoaug.data import read_datalist, write_phantom
    >>> data = read_datalist(write_phantom(f"{tempfile.mkdtemp()}/data", cases=2, size=16))
    >>> folder = write_raw(Path(tempfile.mkdtemp()) / "Dataset900_tiny", data, data.training[:1])
    >>> [len([*(folder / name).iterdir()]) for name in ("imagesTr", "labelsTr")]
    [1, 1]
    """
    shutil.rmtree(folder, ignore_errors=True)
    channels = len(datalist.channels)
    endings = set()
    for case in training:
        if case.label is None:
            raise ConfigError(f"{case.name} has no label, so nnU-Net can't train on it")
        endings.add(".nii.gz" if case.label.name.endswith(".gz") else ".nii")
        (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
        write_images(folder / "imagesTr", case, channels)
        (folder / "labelsTr" / f"{case.name}{max(endings)}").symlink_to(case.label.resolve())
    endings |= {".nii.gz" if f.name.endswith(".gz") else ".nii" for f in (folder / "imagesTr").iterdir()}
    if len(endings) > 1:
        raise ConfigError("nnU-Net wants all files of a data set to end alike, in .nii.gz or in .nii; convert some")
    labels: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in datalist.labels.items()}
    if datalist.ignore_label is not None:
        labels["ignore"] = datalist.ignore_label
    content: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(datalist.channels)}, "labels": labels,
        "numTraining": len(training), "file_ending": endings.pop(),
    }  # fmt: skip
    if datalist.regions_class_order is not None:
        content["regions_class_order"] = list(datalist.regions_class_order)
    write_text(folder / "dataset.json", json.dumps(content, indent=1) + "\n")
    return folder
