# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Phases in a MONAI engine: the event that tells of a new one, and what has to begin anew with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events

from monai_autoaug.engines.checkpoints import AtomicCheckpointSaver
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods import Method
from monai_autoaug.methods.phases import phase_at, schedule_epochs, spans

__all__ = ["LastPhaseOnly", "PhaseEvents", "PhaseSchedule", "check_phases", "enter_phase"]


class PhaseEvents(EventEnum):
    """What an `AutoAugTrainer` tells beside ignite's events.

    ``PHASE_STARTED``: a phase but the first has begun, with a fresh segmentation network if it has one; it is fired at
    the start of an epoch, before the handlers of ``EPOCH_STARTED``.
    """

    PHASE_STARTED = "phase_started"


def enter_phase(method: Method, epoch: int, epochs: int) -> bool:
    """Let a method go on to the phase of an epoch, if it isn't in it.

    Args:
        method: of the engine.
        epoch: about to start, counted from 1.
        epochs: of the whole training.

    Returns:
        Whether a phase has begun.

    Raises:
        CheckpointError: the method is in a later phase than the epoch's: the number of epochs has changed.
    """
    if len(method.phases) == 1:
        return False
    number = phase_at(method.phases, epochs, epoch - 1)
    if number < method.phase_number:
        raise CheckpointError(
            f"this run is in its phase {method.phase.name!r} already, but with {epochs} epochs epoch {epoch} belongs"
            f" to {method.phases[number].name!r}: resume with as many epochs as it was begun with"
        )
    begun = number > method.phase_number
    for later in range(method.phase_number + 1, number + 1):
        method.begin_phase(later)
    return begun


class PhaseSchedule:
    """Handler of an `AutoAugTrainer`: a learning-rate schedule that begins anew with each fresh segmentation network.

    It stands still in phases in which that network isn't trained. With a method of a single phase it is the schedule
    itself. It has a state, so that it can be saved and loaded::

        "lr_schedule": {"_target_": "monai_autoaug.engines.PhaseSchedule", "optimizer": "@optimizer",
                        "make": "$lambda o, n: torch.optim.lr_scheduler.PolynomialLR(o, n, 0.9)"}

    Args:
        optimizer: of the segmentation network.
        make: gives the schedule of an optimiser over a number of steps.
        epoch_level: a step is an epoch, as in ``monai.handlers.LrScheduleHandler``; False: an iteration.

    Raises:
        ConfigError: when it is attached, to another kind of engine or to one that doesn't know how long it runs.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> PhaseSchedule(optimizer, lambda o, n: torch.optim.lr_scheduler.PolynomialLR(o, n)).epoch_level
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        make: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler],
        *,
        epoch_level: bool = True,
    ) -> None:
        self.optimizer, self.make, self.epoch_level = optimizer, make, epoch_level
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self._engine: Any = None
        self._phase = 0  # for which the schedule was made

    def attach(self, engine: Engine) -> None:
        """Make the first schedule, step it, and make another one for each fresh segmentation network."""
        method = getattr(engine, "method", None)
        if method is None:
            raise ConfigError(f"PhaseSchedule belongs to an AutoAugTrainer, not to a {type(engine).__name__}")
        if engine.state.max_epochs is None or (engine.state.epoch_length is None and not self.epoch_level):
            raise ConfigError("PhaseSchedule needs an engine with max_epochs and epoch_length")
        self._engine = engine
        self._begin(method.phase_number)

        def restart(engine: Any) -> None:
            if engine.method.phase.fresh:
                self._begin(engine.method.phase_number)

        def step(engine: Any) -> None:
            if not engine.method.phase.rests:
                self._made().step()

        engine.add_event_handler(PhaseEvents.PHASE_STARTED, restart)
        event = Events.EPOCH_COMPLETED if self.epoch_level else Events.ITERATION_COMPLETED
        engine.add_event_handler(event, step)

    def _begin(self, number: int) -> None:
        """Make the schedule of a phase."""
        phases, state = self._engine.method.phases, self._engine.state
        epochs = state.max_epochs
        wanted = schedule_epochs(phases, epochs, number)
        trained = sum(not phases[phase_at(phases, epochs, epoch)].rests for epoch in wanted) or len(wanted)
        self.schedule = self.make(self.optimizer, trained * (1 if self.epoch_level else state.epoch_length))
        self._phase = number

    def _made(self) -> torch.optim.lr_scheduler.LRScheduler:
        if self.schedule is None:
            raise ConfigError("PhaseSchedule has no schedule before it is attached to an AutoAugTrainer")
        return self.schedule

    def state_dict(self) -> dict[str, Any]:
        """The schedule's own, and the phase that it was made for."""
        return {**self._made().state_dict(), "phase": self._phase}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; a schedule of a later phase is made anew, since functions have no state."""
        given, schedule = dict(state), self._made()
        number = given.pop("phase", self._phase)
        if number != self._phase:
            groups = self.optimizer.param_groups
            kept = [{k: v for k, v in group.items() if k != "params"} for group in groups]
            self._begin(number)
            for group, settings in zip(groups, kept, strict=True):
                group.update(settings)  # which a fresh schedule begins by changing
            schedule = self._made()
        schedule.load_state_dict(given)


class LastPhaseOnly:
    """Handler of an `AutoAugTrainer`: the best network is chosen among those of the last phase.

    When a phase begins, the evaluator and the saver forget how good the networks of the phases before were.

    Args:
        evaluator: the engine that validates.
        saver: its handler that saves the network of the best metric, under a fixed name.

    Raises:
        ConfigError: it is attached to another kind of engine.
    """

    def __init__(self, evaluator: Engine, saver: AtomicCheckpointSaver) -> None:
        self.evaluator, self.saver = evaluator, saver

    def attach(self, engine: Engine) -> None:
        """Listen to ``engine``, an `AutoAugTrainer`."""
        if not hasattr(engine, "method"):
            raise ConfigError(f"LastPhaseOnly belongs to an AutoAugTrainer, not to a {type(engine).__name__}")
        engine.add_event_handler(PhaseEvents.PHASE_STARTED, self.forget)

    def forget(self) -> None:
        """Begin the choice anew."""
        state: Any = self.evaluator.state
        state.best_metric, state.best_metric_epoch = -1, -1
        self.saver.forget()


def check_phases(method: Method, epochs: int | None) -> None:
    """Refuse phases that the run has no epochs for, before training.

    Raises:
        ConfigError: there are fewer epochs than phases.
    """
    if epochs is not None:
        spans(method.phases, epochs)
