# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer with learned augmentation is served with patches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from monai_autoaug.methods import Method
from monai_autoaug.nnunet.loading import RecordingLoader, StockStream, Stream, second_loader, take_loader
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.patches import PatchLayout, prepare_loader, steady_blur
from monai_autoaug.precision import rank

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["ServingMixin", "environment"]


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class ServingMixin(_Host):
    """The part of `AutoAugMixin` that makes and closes streams of patches."""

    autoaug: Options
    method: Method
    layout: PatchLayout
    run_seed: int
    _streams: dict[str, Stream | StockStream]
    _positions: dict[str, int]

    def get_dataloaders(self) -> tuple[Any, Any]:
        """The base trainer's loaders, recorded, and served seeded and in order (or as nnU-Net serves them)."""
        options = self.autoaug
        plain = options.base_augmentation == "stock" and not any(self.layout.margin)
        if options.loader == "stock" and options.method == "none" and plain:
            return super().get_dataloaders()
        workers = get_allowed_n_proc_DA()
        with environment("nnUNet_n_proc_DA", "0"):  # the loaders themselves, not yet in workers
            train, val = (take_loader(a, n) for a, n in zip(super().get_dataloaders(), ("train", "val"), strict=True))
        masked = options.method != "none" and any(self.configuration_manager.use_mask_for_norm)
        prepare_loader(train, options.base_augmentation, self.layout.margin, masked)
        if options.base_augmentation == "none":
            self.inference_allowed_mirroring_axes = None  # a network that saw no mirrored patch shan't predict on them
        fewer = max(1, workers // 2) if workers else 0
        self._streams = {"train": self._stream("train", train, workers), "val": self._stream("val", val, fewer)}
        if "real" in self.method.needs:
            self._streams["real"] = self._stream("real", second_loader(train), fewer)
        return self._streams["train"], self._streams["val"]

    def _stream(self, name: str, loader: RecordingLoader, workers: int) -> Stream | StockStream:
        start, pinned = self._positions.get(name, 0), self.device.type == "cuda"
        if self.autoaug.loader == "stock":
            return StockStream(loader, workers=workers, cached=max(6, workers // 2), start=start, pin_memory=pinned)
        steady_blur(loader.loader.transforms.transforms)
        return Stream(
            loader, seed=self.run_seed, rank=rank(), stream=name, workers=workers, start=start, pin_memory=pinned
        )

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}
