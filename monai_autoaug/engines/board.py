# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Samples of what the augmentation does, kept while it learns and shown in TensorBoard; and a log's scalars there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_autoaug.engines.handlers import check_trainer, shared_writer
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.montage import check_board, show
from monai_autoaug.methods.samples import Samples
from monai_autoaug.precision import rank

__all__ = ["SampleSaver", "write_scalars"]


def write_scalars(writer: Any, row: Mapping[str, Any]) -> None:
    """All numbers of a line of a run's log, by their names in it below ``training/``.

    Args:
        writer: a ``SummaryWriter``.
        row: of an epoch.
    """
    for name, value in row.items():
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool):
            writer.add_scalar(f"training/{name}", value, row["epoch"])


class SampleSaver:
    """Keeps one training patch and what the augmentation makes of it, for ``monai-autoaug report`` and TensorBoard.

    At no more than eight epochs of a training, denser at its beginning, each learned augmenter, or each class's policy,
    transforms the same patch by the same random numbers. TensorBoard gets a picture of each, named ``samples/KIND``.
    The file holds a piece of an image, but neither names nor paths. Nothing of the training changes by it.

    Args:
        path: the file, usually ``samples.pt``; nothing is written where nothing is learned that could be shown.
        summary_writer: TensorBoard's, as MONAI's handlers take it.
        log_dir: instead of it, the folder of one that is made here (`handlers.shared_writer`).
        orientation: the directions in which the patches' axes increase, such as "RAS"; "": not known.
        structures: names of the labels, without the background; none: they are numbered.

    Raises:
        ConfigError: both a writer and a folder are given, or it is attached to an engine that has no method, or
            tensorboard is not installed.

    >>> SampleSaver("samples.pt", orientation="RAS").orientation
    'RAS'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        summary_writer: Any = None,
        log_dir: str | os.PathLike[str] | None = None,
        orientation: str = "",
        structures: Sequence[str] = (),
    ) -> None:
        if summary_writer is not None and log_dir is not None:
            raise ConfigError("SampleSaver: give summary_writer or log_dir, not both")
        self.path, self.orientation, self.structures = Path(path), orientation, tuple(structures)
        self.summary_writer, self.log_dir = summary_writer, log_dir
        self.samples: Samples | None = None

    def attach(self, engine: Engine) -> None:
        """Keep samples of the training of ``engine``, an `AutoAugTrainer`."""
        check_trainer(self, engine)
        if rank() != 0:
            return
        if self.log_dir is not None:
            check_board()
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._offer)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _offer(self, engine: Any) -> None:
        """The patch is one of the first that are trained on, if anything learns that could be shown by it."""
        if not engine.method.augmenters() and "training" not in engine.method.policies():
            return
        if self.samples is None:
            self.samples = Samples(
                self.path, engine.state.max_epochs, orientation=self.orientation, structures=self.structures,
                regions=engine.method.task.regions, fresh=engine.state.iteration == 1,
            )  # fmt: skip
        batch = engine.batches.current
        if batch is not None and not self.samples.begun:
            self.samples.offer(batch)

    def __call__(self, engine: Any) -> None:
        """Keep samples now, if this epoch is one of those."""
        epoch = int(engine.state.epoch)
        if self.samples is None or not self.samples.wants(epoch):
            return
        made = self.samples.keep(epoch, engine.method)
        writer = self.summary_writer if self.log_dir is None else shared_writer(engine, self.log_dir)
        if made and writer is not None:
            show(writer, epoch, self.samples.patch, made)
