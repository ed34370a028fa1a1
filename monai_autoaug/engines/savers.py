# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoint files that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from ignite.handlers import DiskSaver
from monai.handlers import CheckpointSaver

from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import rank
from monai_autoaug.writing import write_tensors

__all__ = ["AtomicCheckpointSaver", "forget_undefined"]


def forget_undefined(engine: Any) -> None:
    """Let an engine of MONAI's forget a best metric that is NaN: it takes any first one, and nothing is above NaN.

    Args:
        engine: whose ``state`` has ``best_metric`` and ``best_metric_epoch``; another one is left as it is.

    >>> from types import SimpleNamespace
    >>> engine = SimpleNamespace(state=SimpleNamespace(best_metric=float("nan"), best_metric_epoch=1))
    >>> forget_undefined(engine)
    >>> engine.state.best_metric, engine.state.best_metric_epoch
    (-1, -1)
    """
    if math.isnan(getattr(engine.state, "best_metric", -1)):
        engine.state.best_metric = engine.state.best_metric_epoch = -1


class _AtomicDiskSaver(DiskSaver):
    """Writes files that are whole or not there (`monai_autoaug.writing`).

    ignite asks for the old file's removal before it asks for the new one to be written; here it goes afterwards, so
    that at any moment there is one.
    """

    def __init__(self, directory: Path, filename: str | None) -> None:
        super().__init__(dirname=directory, require_empty=False, atomic=False)
        self.filename = filename
        self.check: Callable[[Any], object] = _unchecked  # of what is to be written, before anything is
        self._outdated: list[Path] = []

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__call__(checkpoint, self.filename or filename, metadata)
        written = self.dirname / (self.filename or filename)
        for path in self._outdated:
            if path != written and rank() == self.save_on_rank:
                path.unlink(missing_ok=True)
        self._outdated = []

    def _save_func(self, checkpoint: Mapping[str, Any], path: Path, func: Callable[..., None]) -> None:
        self.check(checkpoint)
        write_tensors(path, checkpoint, func, **self.kwargs)

    def remove(self, filename: str) -> None:
        self._outdated.append(self.dirname / (self.filename or filename))


def _unchecked(content: Any) -> None:
    """Anything may be saved."""


class AtomicCheckpointSaver(CheckpointSaver):
    """``monai.handlers.CheckpointSaver`` whose files are never half written, whenever the process is killed.

    It has a ``state_dict`` too, so that a resumed run knows how good the best network was that it has saved. A key
    metric that is NaN is never the best.

    Args:
        args: of ``CheckpointSaver``.
        interval_filename: one file for the checkpoints of ``save_interval``, each in place of the one before.
        kwargs: of ``CheckpointSaver``.

    Raises:
        ConfigError: ``interval_filename`` without ``save_interval``, or with several files to keep.

    >>> import tempfile, torch
    >>> saver = AtomicCheckpointSaver(tempfile.mkdtemp(), {"model": torch.nn.Linear(1, 1)}, save_interval=1)
    """

    def __init__(self, *args: Any, interval_filename: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if interval_filename is not None:
            self._check_interval(interval_filename)
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                old: Any = checkpoint.save_handler
                fixed = interval_filename if checkpoint is self._interval_checkpoint else old.filename
                checkpoint.save_handler = _AtomicDiskSaver(old.dirname, fixed)
        if self._interval_checkpoint is not None:
            self._interval_checkpoint.greater_or_equal = True  # an epoch can be saved anew, see `TrainingCheckpoint`

    def _check_interval(self, filename: str) -> None:
        """Refuse a name for a file that would never be written, or that several would share."""
        if self._interval_checkpoint is None:
            raise ConfigError(f"interval_filename {filename!r} is never written: give save_interval too")
        if (self._interval_checkpoint.n_saved or 1) > 1:
            raise ConfigError(
                f"n_saved={self._interval_checkpoint.n_saved} files can't all be named {filename!r}: leave out"
                " interval_filename or n_saved"
            )

    def check_interval(self, check: Callable[[Any], object]) -> None:
        """Let ``check`` refuse, before it is written, what a checkpoint of ``save_interval`` shall hold.

        Args:
            check: raises an error of its own.
        """
        if self._interval_checkpoint is not None:
            handler: Any = self._interval_checkpoint.save_handler
            handler.check = check

    def metrics_completed(self, engine: Engine) -> None:
        """Save the network if its metric is among the best; one that is NaN would stay the best for ever."""
        forget_undefined(engine)
        checkpoint: Any = self._key_metric_checkpoint
        score = checkpoint.score_function(engine)
        if math.isnan(score):
            if self.logger is not None:
                self.logger.warning("the key metric is not defined (NaN): this network is not saved as the best")
            return
        super().metrics_completed(engine)

    def forget(self) -> None:
        """Save the next network that has a metric, however good those before were; it takes their file's place."""
        if self._key_metric_checkpoint is not None:
            self._key_metric_checkpoint._saved.clear()

    def state_dict(self) -> dict[str, Any]:
        """The metric and file of the best networks saved so far; empty if it saves none."""
        return {} if self._key_metric_checkpoint is None else dict(self._key_metric_checkpoint.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if state_dict:
            super().load_state_dict(dict(state_dict))
            checkpoint: Any = self._key_metric_checkpoint
            if checkpoint is not None:  # an earlier version may have saved one whose metric is NaN
                checkpoint._saved = [item for item in checkpoint._saved if not math.isnan(item.priority)]
