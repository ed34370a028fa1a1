# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which class a patch was cut for: nnU-Net centres some patches on a voxel of a class that it draws, and says nothing.

Where the voxel lies near the border of the image, or the patch is larger than that, the patch's centre is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NOT_FOR_A_CLASS", "BoxRecorder"]

NOT_FOR_A_CLASS = -1


class BoxRecorder:
    """In the place of a loader's ``get_bbox``: a patch's box, and a note of what it was cut for.

    Args:
        loader: nnU-Net's loader; its transforms have a list ``sampled``, to which the number of the class or region is
            added, counted from 1, or `NOT_FOR_A_CLASS`.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __call__(self, data_shape: Any, force_fg: bool, class_locations: Any, *rest: Any, **given: Any) -> Any:
        """See nnU-Net's ``get_bbox``, which reads the voxels of the class it has drawn last."""
        read = None if class_locations is None else _LastRead(class_locations)
        box = type(self.loader).get_bbox(self.loader, data_shape, force_fg, read, *rest, **given)
        found = NOT_FOR_A_CLASS if read is None or not force_fg else read.number()
        self.loader.transforms.sampled.append(found)
        return box


class _LastRead(dict[Any, Any]):
    """A case's voxels of each class or region, in the order of the network's channels."""

    def __init__(self, given: Mapping[Any, Any]) -> None:
        super().__init__(given)
        self.last: Any = None

    def __getitem__(self, key: Any) -> Any:
        self.last = key
        return super().__getitem__(key)

    def number(self) -> int:
        """Of the class that was read last, or `NOT_FOR_A_CLASS`: the case has no foreground, or none that is known."""
        key = self.last
        everything = isinstance(key, tuple) and -1 in key  # all voxels with a label, where some have none
        if key is None or everything or len(super().__getitem__(key)) == 0:
            return NOT_FOR_A_CLASS
        return 1 + list(self).index(key)
