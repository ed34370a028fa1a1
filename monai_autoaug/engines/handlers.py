# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Handlers for what a MONAI run with learned augmentation has more than a plain one, and TensorBoard's writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine, Events
from monai.utils import is_scalar

from monai_autoaug import augmenters, policies
from monai_autoaug.engines import log
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.montage import check_board
from monai_autoaug.policies.course import course_line, course_scalars
from monai_autoaug.precision import rank

__all__ = [
    "AugmenterSaver", "PolicyLogger", "PolicySaver", "board_writer", "check_trainer", "figures", "shared_writer",
]  # fmt: skip

_OURS = ".autoaug"  # how our files for TensorBoard end
_writers: WeakKeyDictionary[Engine, dict[Path, Any]] = WeakKeyDictionary()


def board_writer(folder: str | os.PathLike[str], first: int | None) -> Any:
    """TensorBoard's ``SummaryWriter`` for a folder.

    Args:
        folder: where its files go.
        first: the first epoch that it will write, counted from 1. TensorBoard no longer shows what earlier files of the
            folder hold of this step and later ones: a run that was stopped trains these epochs again. None: it shows
            all.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    check_board()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.fspath(folder), purge_step=first, filename_suffix=_OURS)


def shared_writer(engine: Engine, folder: str | os.PathLike[str]) -> Any:
    """The ``SummaryWriter`` of all handlers of an engine that write into a folder, closed when the training ends.

    They share it, because one that begins purges what others have written (`board_writer`). In a folder that isn't
    ours alone, such as one into which MONAI's handlers write steps that are iterations, nothing is purged.

    Args:
        engine: within the first epoch that is written.
        folder: where its files go.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    made, folder = _writers.setdefault(engine, {}), Path(folder)
    if folder not in made:
        alone = all(file.name.endswith(_OURS) for file in folder.glob("*tfevents*"))
        made[folder] = board_writer(folder, int(engine.state.epoch) if alone else None)
        # behind the handlers that write when the training ends: these are there already
        engine.add_event_handler(Events.COMPLETED, lambda: folder in made and made.pop(folder).close())
    return made[folder]


def figures() -> Callable[[Any], dict[str, float]]:
    """For ``output_transform`` of StatsHandler and TensorBoardStatsHandler: every scalar of a step, by name.

    >>> figures()([{"loss": 0.5, "loss_affine": 0.7, "pred": object()}])
    {'loss': 0.5, 'loss_affine': 0.7}
    """

    def pick(output: Any) -> dict[str, float]:
        first = output[0] if isinstance(output, list) else output
        return {str(name): float(value) for name, value in first.items() if is_scalar(value)}

    return pick


def check_trainer(handler: object, engine: Engine) -> None:
    """See that a handler is attached to an engine that has a method.

    Raises:
        ConfigError: it is not.
    """
    if not hasattr(engine, "method"):
        name = type(handler).__name__
        raise ConfigError(f"{name} belongs to an AutoAugTrainer, not to a {type(engine).__name__}")


def _attach(handler: Any, engine: Engine, interval: int) -> None:
    """Call a handler at the end of training, and every ``interval`` epochs if that is not 0."""
    check_trainer(handler, engine)
    if interval:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=interval), handler)
    engine.add_event_handler(Events.COMPLETED, handler)


class AugmenterSaver:
    """Writes what the augmentation has learned, in a file that `monai_autoaug.augmenters.load` reads.

    Args:
        path: the file, usually ``augmenters.pt``; a method without augmenters writes none and removes that of an
            earlier training, whose network is written over, too.
        interval: epochs between writes; it is always written when training ends. 0: only then.

    Raises:
        ConfigError: it is attached to an engine that has no method.

    >>> AugmenterSaver("augmenters.pt", interval=10).interval
    10
    """

    def __init__(self, path: str | os.PathLike[str], interval: int = 0) -> None:
        if interval < 0:
            raise ConfigError(f"interval must be a number of epochs, or 0, got {interval}")
        self.path, self.interval = Path(path), interval

    def attach(self, engine: Engine) -> None:
        """Save at the end of training and every ``interval`` epochs of ``engine``, an `AutoAugTrainer`."""
        _attach(self, engine, self.interval)

    def __call__(self, engine: Any) -> None:
        """Save now."""
        learned = engine.method.augmenters()
        if rank() != 0:
            return
        if learned:
            augmenters.save(self.path, learned)
        else:
            self.path.unlink(missing_ok=True)


class PolicySaver:
    """Writes the learned policies, in a file that `monai_autoaug.policies.load` and `TestTimePolicyInferer` read.

    Args:
        path: the file, usually ``policy.json``; a method without policies writes none and removes that of an earlier
            training, whose network is written over, too.
        interval: epochs between writes; it is always written when training ends. 0: only then.
        provenance: what else the file shall say of its origin, besides method, seed, epoch and versions: no paths, and
            no names of patients.

    Raises:
        ConfigError: the interval is negative, or it is attached to an engine that has no method.

    >>> PolicySaver("policy.json", provenance={"dataset": "hippocampus"}).interval
    0
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: int = 0,
        *,
        provenance: Mapping[str, str | float | bool | None] | None = None,
    ) -> None:
        if interval < 0:
            raise ConfigError(f"interval must be a number of epochs, or 0, got {interval}")
        self.path, self.interval, self.provenance = Path(path), interval, dict(provenance or {})

    def attach(self, engine: Engine) -> None:
        """Save at the end of training and every ``interval`` epochs of ``engine``, an `AutoAugTrainer`."""
        _attach(self, engine, self.interval)

    def __call__(self, engine: Any) -> None:
        """Save now."""
        learned: dict[str, Any] = engine.method.policies()
        if rank() != 0:
            return
        if learned:
            known = {"method": engine.method.name, "seed": engine.seed, "epoch": engine.state.epoch}
            policies.save(self.path, **learned, provenance=known | self.provenance, seen=engine.method.seen())
        else:
            self.path.unlink(missing_ok=True)


class PolicyLogger:
    """Writes what has become of the policies, one JSON object an epoch, and to TensorBoard if asked to.

    A line holds, exactly, what `policies.course.course_line` gives: ``epoch``; ``training``: by class and cascade the
    ``entropy`` (a share of the largest: 1 where nothing is decided) and the ``probabilities`` by operation;
    ``test_time``: the ``entropy``, the ``probabilities`` by view, and ``top``: the views that would be averaged with
    their ``weights``. TensorBoard gets
    the same as scalars named ``policy/CLASS/CASCADE/OPERATION``, ``policy_entropy/CLASS/CASCADE`` and
    ``policy/views/VIEW``. A resumed run goes on in the file; lines of epochs that it trains again are removed.

    Args:
        path: the file, for example ``policy.jsonl``.
        interval: epochs between lines.
        summary_writer: TensorBoard's, as MONAI's handlers take it.
        log_dir: instead of it, the folder of one that is made here (`shared_writer`).

    Raises:
        ConfigError: the interval is below 1, both a writer and a folder are given, or it is attached to an engine that
            has no method, or tensorboard is not installed.

    >>> PolicyLogger("policy.jsonl", interval=5).interval
    5
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: int = 1,
        *,
        summary_writer: Any = None,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if interval < 1:
            raise ConfigError(f"interval must be a number of epochs, at least 1, got {interval}")
        if summary_writer is not None and log_dir is not None:
            raise ConfigError("PolicyLogger: give summary_writer or log_dir, not both")
        self.path, self.interval = Path(path), interval
        self.summary_writer, self.log_dir = summary_writer, log_dir
        self._begun = False

    def attach(self, engine: Engine) -> None:
        """Write every ``interval`` epochs of ``engine``, an `AutoAugTrainer`."""
        check_trainer(self, engine)
        if self.log_dir is not None:
            check_board()
        engine.add_event_handler(Events.COMPLETED, self._finished)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def _finished(self, engine: Any) -> None:
        """Write the last epoch's line anew, if anything was learned since."""
        if engine.finished and rank() == 0:
            log.cut(self.path, int(engine.state.epoch) - 1)
            self(engine)

    def __call__(self, engine: Any) -> None:
        """Write now."""
        learned = engine.method.policies()
        if not learned or rank() != 0:
            return
        epoch = int(engine.state.epoch)
        if not self._begun:  # a resumed run trains some epochs again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log.cut(self.path, epoch - 1)
            self._begun = True
        row = course_line(epoch, learned)
        log.append(self.path, row)
        writer = self.summary_writer if self.log_dir is None else shared_writer(engine, self.log_dir)
        if writer is not None:
            for name, value in course_scalars(row):
                writer.add_scalar(name, value, epoch)
