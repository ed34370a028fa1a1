# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer goes through the phases of its method; with one phase it is as nnU-Net has it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Method
from monai_autoaug.methods.phases import phase_at, schedule_epochs, spans
from monai_autoaug.networks import built, check_alike
from monai_autoaug.nnunet.task import TrainingTask

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["LaterSchedule", "PhasesMixin"]


class LaterSchedule:
    """A learning-rate schedule of nnU-Net's that begins at a later epoch than the first.

    Args:
        schedule: of as many epochs as it goes over, stepped by the number of the epoch.
        start: epoch in which it begins.
    """

    def __init__(self, schedule: Any, start: int) -> None:
        self.schedule, self.start = schedule, start

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch of the whole training."""
        self.schedule.step(epoch - self.start)

    def get_last_lr(self) -> Any:
        """As nnU-Net's schedules have it."""
        return self.schedule.get_last_lr()


class PhasesMixin(_Host):
    """The part of `AutoAugMixin` that lets the method go on from phase to phase."""

    autoaug_base: ClassVar[type[Any]]
    method: Method
    task: TrainingTask
    num_epochs: int
    _built_weights: list[float]

    def _prepare_phases(self) -> None:
        """See that the method's phases can be, and make the first one's learning-rate schedule.

        Raises:
            ConfigError: there are fewer epochs than phases, or the trainer changes its optimiser itself.
        """
        phases = self.method.phases
        if len(phases) == 1:
            return
        spans(phases, self.num_epochs)
        changes = list(inspect.signature(self.autoaug_base.configure_optimizers).parameters)[1:]
        if changes:
            raise ConfigError(
                f"{self.autoaug_base.__name__} changes its optimiser in the course of training ({', '.join(changes)}),"
                f" but method {self.method.name!r} trains in {len(phases)} phases with a schedule each; take another"
            )
        if any(phase.fresh for phase in phases[1:]):
            assert self.task.build is not None  # noqa: S101  # for the type checker: the trainer has given it
            check_alike(self.task.network, built(self.task.build, 0))
            self._built_weights = self._weights()
        self._make_optimizer()

    def _weights(self) -> list[float]:
        """What tells the network's weights from others: the mean size of each parameter."""
        return torch.stack([p.detach().abs().mean() for p in self.task.network.parameters()]).tolist()

    def _check_weights(self) -> None:
        """Refuse weights that were loaded after the network was built, of which the deployed one would know nothing.

        Raises:
            ConfigError: there are such weights, and a later phase begins with a fresh network.
        """
        fresh = [phase.name for phase in self.method.phases[1:] if phase.fresh]
        if fresh and self._weights() != self._built_weights:
            raise ConfigError(
                f"method {self.method.name!r} begins anew with a fresh network in its phase {fresh[-1]!r}, which the"
                " weights that were loaded (-pretrained_weights) don't reach; leave them out"
            )

    def _phase_start(self) -> int:
        """The first epoch of the phase that the method is in."""
        if len(self.method.phases) == 1:
            return 0
        return spans(self.method.phases, self.num_epochs)[self.method.phase_number].start

    @contextmanager
    def _epochs(self, count: int) -> Iterator[None]:
        """Within the block the training has this many epochs, for what makes a schedule of them."""
        whole, self.num_epochs = self.num_epochs, count
        try:
            yield
        finally:
            self.num_epochs = whole

    def _make_optimizer(self) -> None:
        """The trainer's optimiser without memory, and a schedule over the epochs until the next fresh network."""
        epochs = schedule_epochs(self.method.phases, self.num_epochs, self.method.phase_number)
        with self._epochs(len(epochs)):
            self.optimizer, schedule = self.configure_optimizers()
        self.task.optimizer = self.optimizer
        self.lr_scheduler = LaterSchedule(schedule, epochs.start) if epochs.start else schedule

    def _resume_phase(self) -> None:
        """The schedule of the phase that a loaded checkpoint is of; the optimiser's state is loaded already."""
        if self.method.phase_number:
            state = self.optimizer.state_dict()
            self._make_optimizer()
            self.optimizer.load_state_dict(state)

    def _enter_phase(self) -> None:
        """Go on to the phase of this epoch, if it is another one."""
        phases = self.method.phases
        number = phase_at(phases, self.num_epochs, self.current_epoch) if len(phases) > 1 else 0
        for later in range(self.method.phase_number + 1, number + 1):
            self.method.begin_phase(later)
            phase, span = self.method.phase, spans(phases, self.num_epochs)[later]
            if phase.fresh:
                self._make_optimizer()
            self._best_ema = None  # the best checkpoint is one of the last phase
            self.print_to_log_file(
                f"Phase {later + 1} of {len(phases)}: {phase.name}, epochs {span.start} to {span.stop - 1}"
                + (", from a fresh segmentation network" if phase.fresh else "")
            )

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; before, the method goes on to the phase of this epoch."""
        self._enter_phase()
        super().on_train_epoch_start()

    def on_epoch_end(self) -> None:
        """As nnU-Net; the moving average of the pseudo Dice begins anew with each phase."""
        if self.method.phase_number and self.current_epoch == self._phase_start():
            averages = self.logger.get_value("ema_fg_dice", step=None)
            averages[-1] = self.logger.get_value("mean_fg_dice", step=-1)
        super().on_epoch_end()
