# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The spine: what a host owns (`Task`), what it hands over (`Batches`), and what a paper is (`Method`).

A method knows no host and a host knows no paper: the MONAI engine and the nnU-Net trainers carry the same
`Method.step`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.finite import check_finite
from monai_autoaug.methods.phases import Phase
from monai_autoaug.methods.task import Batches, Losses, Task
from monai_autoaug.networks import KeptStatistics, auxiliary_state, load_auxiliary_state
from monai_autoaug.policies.drawing import Drawing
from monai_autoaug.policies.evidence import Seen
from monai_autoaug.precision import rank

__all__ = ["Batches", "Losses", "Method", "Player", "Task"]


@dataclass
class Player:
    """A network of a method's own with its optimiser, updated in the same backward as the segmentation network."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float | None = None
    statistics: KeptStatistics = field(init=False)  # as they were after the last good step

    def __post_init__(self) -> None:
        self.statistics = KeptStatistics(self.module, norms=True)
        self.statistics.keep()


class Method(ABC):
    """What a paper is: the rule by which its augmentation gets a gradient.

    Args:
        task: what the host owns.
        seed: seed of the method's own random numbers; ranks draw different ones.

    A subclass fills ``players`` and implements ``step``. `Method.descend` is the one backward and the one update of
    all.
    """

    name: ClassVar[str]
    needs: tuple[str, ...] = ("train",)  # streams; with options that say otherwise, see `streams`
    phases: tuple[Phase, ...] = (Phase("train"),)  # of a training, in their order; hosts call `begin_phase`
    keeps_best: bool = False  # deploys the network of the best validation Dice (of the last phase), not the last one
    meta_batch: int = 8  # patches of a batch of the stream "meta"; a host that makes this stream reads it
    meta_share: ClassVar[float] = 0.25  # of the training cases, that hosts set apart for it unless told otherwise
    meta_split: ClassVar[str] = "fixed"  # or "resampled": other cases each epoch, unless told otherwise
    settled: int = 1_000_000  # updates after which everything learns that does; a host tries a step out there
    finishing: int = 0  # updates that `finish` makes; a host that tries a method out lowers it
    views_learn: bool = True  # False: the views at test time are a fixed choice, which predictions average by at once
    replaces_augmentation: ClassVar[bool] = False  # its augmentation is meant instead of the host's own, not over it
    over_augmentation: ClassVar[Mapping[str, Any]] = {}  # options where it is over the host's own, by default
    draws_operations: ClassVar[bool] = False  # of a training policy, see `drawing`
    classifies: ClassVar[bool] = True  # False: it needs labels of voxels

    def __init__(self, task: Task, *, seed: int = 0) -> None:
        if task.classification and not self.classifies:
            raise ConfigError(f"method {self.name!r} is made for segmentation and can't train a classification")
        self.task = task
        self.players: dict[str, Player] = {}
        self.steps = 0  # updates, not micro-batches
        self.seed, self.phase_number = seed, 0
        self.phase_began = 0  # updates before this phase
        self.generator = torch.Generator(device=task.device)
        self.generator.manual_seed(seed * 1009 + rank())
        self._own_loss: Tensor | None = None  # of the segmentation network, over the micro-batches of an update

    @classmethod
    def prepare(cls, network: nn.Module, **options: Any) -> nn.Module:
        """Change the segmentation network before its optimiser and DDP are made (auxiliary norms); default: nothing."""
        return network

    @classmethod
    def streams(cls, **options: Any) -> tuple[str, ...]:
        """Names of the streams that it draws from with these options: a host sets no cases apart for others."""
        return cls.needs

    @property
    def phase(self) -> Phase:
        """The phase that the training is in."""
        return self.phases[self.phase_number]

    @property
    def phase_steps(self) -> int:
        """Updates since this phase began."""
        return self.steps - self.phase_began

    def begin_phase(self, number: int) -> None:
        """Go on to a phase: a host calls it before the phase's first epoch, except for the first phase.

        Args:
            number: of the phase, counted from 0, larger than `phase_number`.
        """
        self.phase_number, self.phase_began = number, self.steps
        if self.phase.fresh:
            self.task.fresh(self.seed * 1009 + number)
        self.on_phase()

    def on_phase(self) -> None:  # noqa: B027  # most methods have one phase
        """Prepare for `phase`: freeze what it does not train, make other players; default: nothing.

        It is called when a later phase begins, behind `Task.fresh`, and before a checkpoint of such a phase is
        restored, whose players' states come on top. The first phase is what the constructor prepares for.
        """

    @abstractmethod
    def step(self, batches: Batches) -> dict[str, float]:
        """One training step of all players; returns the figures to log."""

    def finish(self, batches: Batches) -> dict[str, float]:
        """What there is to learn when the network is trained; returns its figures, nothing where nothing was done.

        A host calls it after the last step, and again after a resume that finds no step left: what was done for this
        network isn't done twice. The task hears of the event "finish" with how many updates of all are ``done``.
        """
        return {}

    def learning_steps(self, steps: int) -> int:
        """In how many of a training's steps all is updated that is: others may take less time; default: in all of them.

        Args:
            steps: of the training.
        """
        return steps

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Figures of the epoch that has ended (what tells a collapse); ``warnings()`` puts them into words."""
        return {}

    def announcement(self) -> list[str]:
        """What a user should know before training begins; hosts print it once."""
        return []

    def warnings(self) -> list[str]:
        """What a user should know about the epoch that has ended; empty when all is well."""
        return []

    def augmenters(self) -> dict[str, nn.Module]:
        """The learned augmenters that are worth keeping after training, by name."""
        return {}

    def policies(self) -> dict[str, nn.Module]:
        """The learned policies that are worth keeping after training: "training" and "test_time", those there are."""
        return {}

    def seen(self) -> Seen | None:
        """What is known of the operations of the training policy; None: there is none, or it learns nothing."""
        return None

    @classmethod
    def learns_views(cls, **options: Any) -> bool:
        """Whether a training with these options leaves a test-time policy, which predictions are to average by."""
        return False

    def drawing(self) -> Drawing | None:
        """How its training policy augments a batch: a host may do so in its workers (`Batch.operations`)."""
        return None

    def tell_loss(self, loss: Tensor) -> None:
        """Tell the host of the segmentation network's own loss, without which its coming update would not be checked.

        Args:
            loss: scalar, of this micro-batch.
        """
        self.task.notify("loss", {"loss": loss})
        found = loss.detach()
        self._own_loss = found if self._own_loss is None else self._own_loss + found

    def descend(self, loss: Tensor) -> None:
        """One backward of ``loss`` and one update of the segmentation network and of every player.

        Args:
            loss: scalar; players whose game is opposed see it through a gradient reversal.
        """
        self.backward(loss)
        self.update()

    def _optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, float | None]]:
        """Every optimiser with its largest gradient norm, by the name of the player."""
        own = {name: (player.optimizer, player.clip) for name, player in self.players.items()}
        return {"network": (self.task.optimizer, self.task.clip)} | own

    def backward(self, loss: Tensor) -> None:
        """The first half of `descend`, for methods that look at the gradients before they are used."""
        task = self.task
        if task.first_micro_batch:
            for optimizer, _ in self._optimizers().values():
                optimizer.zero_grad(set_to_none=True)
        task.precision.backward(loss / task.accumulation_steps if task.accumulation_steps > 1 else loss)
        task.notify("backward", {})

    def update(self) -> None:
        """The second half of `descend`; nothing but the notice where further micro-batches are to come."""
        task = self.task
        if task.last_micro_batch:
            for name in self._optimizers():
                self._step(name)
            self._end_step()
        task.notify("model", {})

    def _end_step(self) -> None:
        """What follows the updates of all players, however they were made."""
        self.task.precision.update()
        for player in self.players.values():  # one may have run behind its own update, or without one
            player.statistics.settle()
        self.steps += 1

    def _step(self, name: str) -> None:
        """One player's checked update; of a skipped one, its running statistics aren't kept either."""
        optimizer, clip = self._optimizers()[name]
        if name != "network":
            if not self.task.precision.step(name, optimizer, clip=clip):
                self.players[name].statistics.restore()
                self.players[name].statistics.keep()
            return
        loss, self._own_loss = self._own_loss, None
        if self.task.precision.step(name, optimizer, clip=clip, loss=loss):
            self.task.statistics.forget()
        else:
            self.task.statistics.restore()

    def _learned(self) -> dict[str, torch.optim.Optimizer]:
        """All that learns, by name: whatever of it is not finite must not get into a checkpoint."""
        return {name: optimizer for name, (optimizer, _) in self._optimizers().items()}

    def _held(self) -> dict[str, nn.Module]:
        """All modules of a checkpoint but the network, by name, for the same reason."""
        return {name: player.module for name, player in self.players.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the method adds to a checkpoint: tensors, numbers and strings only.

        The segmentation network and its optimiser are the host's to save; its auxiliary norm groups are in here.

        Raises:
            CheckpointError: something that has learned is not finite; the checkpoint before is to stay.
        """
        check_finite(self._learned(), self.task.network, self._held())
        return {
            "name": self.name,
            "steps": self.steps,
            "phase": self.phase_number,
            "phase_name": self.phase.name,
            "phase_began": self.phase_began,
            "players": {
                n: {"module": p.module.state_dict(), "optimizer": p.optimizer.state_dict()}
                for n, p in self.players.items()
            },
            "auxiliary": auxiliary_state(self.task.network),
            "generator": self.generator.get_state(),
            "precision": self.task.precision.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            CheckpointError: it is another method's, or has other phases or players.
        """
        self._restore_phase(state)
        if state["name"] != self.name or set(state["players"]) != set(self.players):
            raise CheckpointError(
                f"this checkpoint was written by method {state['name']!r} with players {sorted(state['players'])};"
                f" this run is {self.name!r} with {sorted(self.players)}. Resume with the options it was started with"
            )
        self.steps = state["steps"]
        for name, player in self.players.items():
            player.module.load_state_dict(state["players"][name]["module"])
            player.optimizer.load_state_dict(state["players"][name]["optimizer"])
            player.statistics.forget()
            player.statistics.keep()
        load_auxiliary_state(self.task.network, state["auxiliary"])
        self._restore_generator(state["generator"].cpu())
        self.task.precision.load_state_dict(state["precision"])

    def _restore_phase(self, state: Mapping[str, Any]) -> None:
        """The phase of a checkpoint, before its players are compared with those of here."""
        number = state.get("phase", 0)  # before there were phases there was one
        if state["name"] != self.name:
            return  # what follows says so
        if number >= len(self.phases) or state.get("phase_name", self.phases[number].name) != self.phases[number].name:
            raise CheckpointError(
                f"this checkpoint is of phase {number + 1}, {state['phase_name']!r}; this run's phases are"
                f" {', '.join(p.name for p in self.phases)}. Resume with the options it was started with"
            )
        self.phase_number, self.phase_began = number, state.get("phase_began", 0)
        if number:
            self.on_phase()

    def _restore_generator(self, state: Tensor) -> None:
        """Go on with the random numbers of the checkpoint, or, on another kind of device, with new ones of the seed."""
        if state.shape == self.generator.get_state().shape:
            self.generator.set_state(state)
            return
        self.generator.manual_seed(self.generator.initial_seed() + self.steps)
        warnings.warn(
            f"the checkpoint's random numbers are of another kind of device than {self.task.device}: this run goes on"
            " with other ones",
            stacklevel=2,
        )
