# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoints from which a run goes on as if it had never stopped: players, scaler, random states, stream positions."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import SmartCacheDataset
from monai.handlers import CheckpointLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.engines.fingerprints import KnownFiles
from monai_autoaug.engines.random_states import (
    random_numbers,
    random_states,
    restore_random_states,
    transform_states,
    unpack,
)
from monai_autoaug.engines.savers import AtomicCheckpointSaver, forget_undefined
from monai_autoaug.errors import AutoAugError, CheckpointError, ConfigError
from monai_autoaug.precision import rank, world_size
from monai_autoaug.reading import MALFORMED, check_content, leaves, read_tensors

if TYPE_CHECKING:
    from monai_autoaug.engines.trainer import AutoAugTrainer

__all__ = [
    "AtomicCheckpointSaver",
    "AutoAugState",
    "TrainingCheckpoint",
    "inexact",
]

_VERSION = 2
_FILES = "fingerprints"  # of the files that a run reads, in its checkpoint


def inexact(loader: Any, epoch_length: int | None) -> list[str]:
    """Why the batches of a resumed run can't be those of an uninterrupted one; empty where they are.

    >>> inexact(DataLoader([1, 2, 3]), epoch_length=2)
    ["epoch_length 2 is not the loader's length 3, and the place in its order isn't known"]
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, PatchBatches):
        return []
    reasons = []
    if loader.num_workers > 0 and loader.persistent_workers:
        reasons.append("persistent workers keep random states that only they know")
    if isinstance(loader.dataset, SmartCacheDataset):
        reasons.append("a SmartCacheDataset starts with a new cache")
    try:
        length = len(loader)
    except TypeError:  # an iterable data set that doesn't know its length
        length = epoch_length if epoch_length is not None else 0
    if epoch_length not in (None, length):
        reasons.append(
            f"epoch_length {epoch_length} is not the loader's length {length}, and the place in its order isn't known"
        )
    return reasons


class AutoAugState:
    """All that a resumed run needs besides network, optimiser and engine: for ``save_dict`` and ``load_dict``.

    It holds the method (players, their optimisers, auxiliary norms, generator, scaler), the random states and the
    streams' positions. Saved at the end of an epoch after validation, a run that loads it continues bit for bit::

        saved = {"model": network, "optimizer": optimizer, "autoaug": trainer.autoaug_state, "trainer": trainer}
        AtomicCheckpointSaver(save_dir, saved, save_interval=1), CheckpointLoader(path, saved)

    `TrainingCheckpoint` is both in one handler. With several processes, of which only one writes, all have to call
    `gather` after the last handler that draws random numbers (a validation's loader does) and right before it is saved;
    `TrainingCheckpoint` sees to that. Otherwise what is saved of the others is their state before all handlers. Where a
    run can't be repeated to the bit (`inexact`), the log says so.

    Args:
        trainer: the engine it belongs to.
    """

    def __init__(self, trainer: AutoAugTrainer) -> None:
        self.trainer = trainer
        self._everyone: list[Any] = [None] * world_size()  # what is each rank's own, gathered at the end of an epoch
        self._pending: Mapping[str, Any] | None = None

    def gather(self) -> None:
        """Let every rank know the others' random states, since only one of them writes a checkpoint."""
        if world_size() > 1:
            dist.all_gather_object(self._everyone, self._own())

    def _loaders(self) -> list[Any]:
        """Those whose transforms draw random numbers in this process."""
        return [self.trainer.data_loader, *self.trainer.streams.loaders]

    def _own(self) -> dict[str, Any]:
        """What differs between ranks: all of the method's state but players and norms, and all random states."""
        alike = ("players", "auxiliary", "learners")
        method = {k: v for k, v in self.trainer.method.state_dict().items() if k not in alike}
        transforms = transform_states(*self._loaders())
        return {"method": method, "random": random_states(), "transforms": transforms}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only."""
        ranks = list(self._everyone)
        ranks[rank()] = self._own()
        trainer = self.trainer
        return {
            "version": _VERSION,
            "method": trainer.method.state_dict(),
            "ranks": ranks,
            "streams": trainer.streams.state_dict(),
            "best": {"metric": float(trainer.state.best_metric), "epoch": int(trainer.state.best_metric_epoch)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the method now, and random states when the first epoch starts, whatever handlers draw until then.

        Raises:
            CheckpointError: it is of another version or of another number of ranks.
        """
        if state.get("version") not in (1, _VERSION):
            raise CheckpointError(
                f"the checkpoint has version {state.get('version')}; this package reads 1 to {_VERSION}"
            )
        if len(state["ranks"]) != world_size():
            raise CheckpointError(
                f"the checkpoint was written by {len(state['ranks'])} processes, this run has {world_size()};"
                " resume with as many, or load only the network and start anew"
            )
        own = state["ranks"][rank()]
        self.trainer.method.load_state_dict(state["method"] if own is None else {**state["method"], **own["method"]})
        # before version 2 there was one stream besides the training one
        self.trainer.streams.load_state_dict(state["streams"] if "streams" in state else {"real": state["real"]})
        self.trainer.state.best_metric = state["best"]["metric"]
        self.trainer.state.best_metric_epoch = state["best"]["epoch"]
        forget_undefined(self.trainer)  # which an earlier version kept
        self._pending = own

    def restore(self) -> None:
        """Restore random states if a checkpoint was loaded since the last call.

        Raises:
            CheckpointError: the data's random transforms are not those of the checkpoint.
        """
        if self._pending is None:
            return
        own, self._pending = self._pending, None
        first, *others = self._loaders()
        reasons = inexact(first, self.trainer.state.epoch_length)
        for reason in dict.fromkeys([*reasons, *(r for loader in others for r in inexact(loader, None))]):
            self.trainer.logger.warning(f"the resumed run will differ from an uninterrupted one: {reason}")
        numbers = random_numbers(*self._loaders())
        if len(numbers) != len(own["transforms"]):
            raise CheckpointError(
                f"the checkpoint was written with {len(own['transforms'])} random transforms, this run has"
                f" {len(numbers)}: resume with the data and transforms it was started with"
            )
        for number, saved in zip(numbers, own["transforms"], strict=True):
            number.set_state(unpack(saved))
        restore_random_states(own["random"])


class _Finite:
    """What may be in a checkpoint, the same for writing and for loading: tensors that are finite.

    Args:
        objects: what is saved; where one of their networks has been made with something infinite, that may stay.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        plain = {name: _unwrapped(o) for name, o in objects.items()}
        states = {name: o.state_dict() for name, o in plain.items() if isinstance(o, nn.Module)}
        made = ((where, value) for where, value in leaves(states) if isinstance(value, Tensor))
        self.meant = {w: t.detach().cpu().clone() for w, t in made if not bool(torch.isfinite(t).all())}

    def __call__(self, content: Any) -> None:
        """See that everything is finite.

        Raises:
            ValueError: what is not, and where.
        """
        check_content(content, meant=self.meant)


def _unwrapped(module: Any) -> Any:
    return module.module if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else module


class _StrictLoader(CheckpointLoader):
    """``monai.handlers.CheckpointLoader`` of whole files and finite tensors, which names a file that can't be used."""

    files: KnownFiles | None = None  # which must hold what they held when the run began

    def __call__(self, engine: Engine) -> None:
        """Load, once the file's checksums have been compared and its content has been looked at."""
        try:
            content = read_tensors(self.load_path, finite=False)
            _Finite(self.load_dict)(content)
            if self.files is not None and _FILES in content:  # in checkpoints of earlier versions there is none
                self.files.check(content[_FILES], Path(self.load_path))
            del content
            super().__call__(engine)
        except AutoAugError:
            raise
        except (OSError, pickle.UnpicklingError, *MALFORMED) as error:
            raise CheckpointError(
                f"{self.load_path}: can't be resumed from ({type(error).__name__}: {error}). To do: put the run's own"
                " checkpoint back, or start without resume"
            ) from error


class TrainingCheckpoint:
    """Handler of an `AutoAugTrainer` that writes all of a run into one file and resumes from it.

    To what it is given it adds the engine itself and its `AutoAugState`, which a configuration file can't refer to
    where it makes the engine. It belongs behind the validation handler and the learning rate schedule, so that what it
    saves is what the next epoch starts with. Of several processes one writes, but all need the handler.

    Args:
        path: the file, written anew and atomically.
        objects: what else to save and load, by name: network, optimiser, schedule, an `AtomicCheckpointSaver`.
        interval: epochs between writes.
        files: images and labels that the run reads: what they hold when it begins is remembered (`KnownFiles`), and it
            is resumed only if they still hold it, in the same order.
        resume: go on from the file.
        map_location: of ``torch.load``.

    Raises:
        CheckpointError: when it is attached, if there is nothing to resume from; when the run starts, if the file is
            damaged or does not fit, or one of ``files`` has changed.
        ConfigError: it is attached to another kind of engine.

    >>> import torch
    >>> net = torch.nn.Conv3d(1, 2, 1)
    >>> TrainingCheckpoint("run/checkpoint.pt", {"model": net}, resume=True).resume
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: Mapping[str, Any],
        *,
        interval: int = 1,
        files: Iterable[str | os.PathLike[str]] = (),
        resume: bool = False,
        map_location: Any = None,
    ) -> None:
        if interval < 1:
            raise ConfigError(f"interval must be a number of epochs, got {interval}")
        if {"autoaug", "trainer", _FILES} & set(objects):
            raise ConfigError(
                f"the names 'autoaug', 'trainer' and {_FILES!r} are taken: the engine is saved by itself, and what the"
                " argument files names is remembered"
            )
        self.files = KnownFiles(files)
        self.path, self.objects, self.interval = Path(path), dict(objects), interval
        self.resume, self.map_location = resume, map_location

    def attach(self, engine: Engine) -> None:
        """Load at the start of the run, if asked to, and save from then on."""
        state = getattr(engine, "autoaug_state", None)
        if state is None:
            raise ConfigError(f"TrainingCheckpoint belongs to an AutoAugTrainer, not to a {type(engine).__name__}")
        objects = {**self.objects, "autoaug": state, "trainer": engine}
        if self.resume:
            if not self.path.is_file():
                raise CheckpointError(f"{self.path}: there is no checkpoint to resume from; start without resume")
            loader = _StrictLoader(str(self.path), objects, map_location=self.map_location)
            loader.files = self.files if self.files.files else None
            loader.attach(engine)
        # on all ranks, and not at the end of the epoch as such: what validation draws in between is drawn once only
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), state.gather)
        saved: dict[str, Any] = dict(objects)
        if self.files.files:
            saved[_FILES] = self.files
            if rank() == 0:  # behind the loader, which may know already
                engine.add_event_handler(Events.STARTED, self.files.look)
        saver = AtomicCheckpointSaver(
            str(self.path.parent), saved, save_interval=self.interval, n_saved=1, interval_filename=self.path.name
        )
        finite = _Finite(objects)

        def check(content: Any) -> None:
            try:
                finite(content)
            except ValueError as error:
                raise CheckpointError(
                    f"{self.path}: is not written, since it could not be resumed from ({error}); the last good one"
                    " stays. To do: lower the learning rate, clip the gradient, or train in float32"
                ) from error

        saver.check_interval(check)
        saver.attach(engine)

        def save_finished(engine: Any) -> None:
            if engine.finished:  # behind what the method does after the last step
                state.gather()
                saver.interval_completed(engine)

        engine.add_event_handler(Events.COMPLETED, save_finished)
