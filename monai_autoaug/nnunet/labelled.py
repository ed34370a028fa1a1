# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What images without labels must not be beside a data set's labelled ones: copies of them, or turned otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from numpy.typing import NDArray

from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.nnunet.orientation import directions

__all__ = ["LabelledCases"]

_ALONG_AXIS = 16  # voxels that are compared, at most
_TOLERANCE = 1e-3  # of the standard deviation: another machine rounds otherwise


class LabelledCases:
    """A configuration's labelled cases as nnU-Net has preprocessed them, to compare others with.

    Args:
        folder: nnU-Net's folder of them.

    Raises:
        ConfigError: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        if not any(folder.glob("*.pkl")):
            raise ConfigError(
                f"{folder} holds no preprocessed case: first preprocess the data set in this configuration"
                " (nnUNetv2_preprocess)"
            )
        self.kind: Any = infer_dataset_class(str(folder))
        cases = self.kind(str(folder))
        self._looks: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
        self._directions: set[str] = set()
        for name in cases.identifiers:
            image, _, _, properties = cases.load_case(name)
            self._looks.setdefault(tuple(image.shape), {})[name] = _look(image)
            lies = directions(properties)
            if lies is not None:
                self._directions.add(lies)

    def check(self, folder: Path, name: str, file: str) -> None:
        """Refuse an image that has been preprocessed in the same way.

        Args:
            folder: of it.
            name: its case.
            file: its file, for the message.

        Raises:
            DataError: it is one of the labelled images, whatever its file, or its axes point otherwise than all theirs.
        """
        image, _, _, properties = self.kind(str(folder), identifiers=[name]).load_case(name)
        lies = directions(properties)
        if self._directions and lies is not None and lies not in self._directions:
            raise DataError(
                "has axes in directions in which no labelled image has them", file=file,
                expected=" or ".join(sorted(self._directions)), came=lies,
                remedy="reorient it: nnU-Net takes voxels in the order in which they are stored",
            )  # fmt: skip
        look = _look(image)
        for other, known in self._looks.get(tuple(image.shape), {}).items():
            scale = float(known.std())
            if scale > 0 and float(np.abs(look - known).max()) <= _TOLERANCE * scale:
                raise DataError(
                    "is an image that the data set holds with a label", file=file, expected="other images",
                    came=f"the image of case {other}",
                    remedy="remove it from the folder: in some fold it is a validation case",
                )  # fmt: skip


def _look(image: Any) -> NDArray[np.float32]:
    """Some thousand voxels of a preprocessed image (C, D, H, W), the same places in all of one size."""
    steps = [-(-n // _ALONG_AXIS) for n in image.shape[1:]]
    window = (slice(None), *(slice(step // 2, None, step) for step in steps))
    return np.asarray(image[:], dtype=np.float32)[window].copy()
