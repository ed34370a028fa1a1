# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The spine: what a host owns (`Task`), what it hands over (`Batches`), and what a paper is (`Method`).

A method knows no host and a host knows no paper: the MONAI engine and the nnU-Net trainers carry the same
`Method.step`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.phases import Phase
from monai_autoaug.networks import (
    auxiliary_state,
    built,
    frozen,
    load_auxiliary_state,
    norm_groups,
    renew,
    with_parameters,
)
from monai_autoaug.policies.drawing import Drawing
from monai_autoaug.policies.evidence import Seen
from monai_autoaug.precision import Precision, average_gradients, broadcast, rank

__all__ = ["Batches", "Losses", "Method", "Player", "Task"]


class Losses(Protocol):
    """One loss a sample, whose mean has the value and the gradient of the host's own loss on hard labels."""

    def __call__(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        """Loss of each sample.

        Args:
            output: what the network returned: logits (B, K, D, H, W), or a list of them, full resolution first; of a
                classification (B, K).
            label: of the logits' shape, soft.
            valid: (B, 1, D, H, W), or None.

        Returns:
            (B,) losses in float32.
        """
        ...


class Batches(Protocol):
    """Lazily drawn batches of the streams that a method needs."""

    def next(self, stream: str) -> Batch:
        """The next batch of a stream, on the device of the task.

        Args:
            stream: "train", "real" (a second training batch), "meta" (meta-validation; a host that draws its cases
                anew each epoch serves none of the epoch before) or "unlabelled" (``label`` and ``valid`` are 0).
        """
        ...


@dataclass
class Player:
    """A network of a method's own with its optimiser, updated in the same backward as the segmentation network."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float | None = None

    def descend(self, parameter: Tensor, gradient: Tensor) -> None:
        """One update by a gradient that was not found by a backward."""
        parameter.grad = gradient.to(parameter)
        self.optimizer.step()
        parameter.grad = None


def _ignore(event: str, values: Mapping[str, Any]) -> None:
    """A host that doesn't want to hear of events."""


class Task:
    """What a host owns: the segmentation network, its optimiser, its loss and the precision they run in.

    Args:
        network: the segmentation network, unwrapped (no DDP, not compiled); auxiliary norm groups are already in it.
        optimizer: its optimiser.
        losses: the host's loss, one value a sample (see `Losses`).
        precision: autocast, scaler, ranks.
        spatial_dims: 2 or 3.
        regions: whether the label's channels are overlapping regions (sigmoid) rather than classes (softmax).
        classification: whether labels and logits are of whole images, (B, K), rather than of voxels.
        clip: largest gradient norm of the segmentation network, or None.
        call: how the host runs its network, for example compiled; default: ``network`` itself.
        accumulation_steps: micro-batches whose gradients are added before an update.
        steps: updates that the host plans, for schedules; None: it doesn't know.
        patch_size: voxels of a patch without margin, if all are alike.
        label_names: of the label values from 0 on, if they have names; of regions "background" and theirs.
        listener: is told "forward", "loss", "backward" and "model" within each step, with what there is to know.
        build: makes a network like this one on the CPU, prepared and untrained; None: `fresh` isn't there.

    >>> net = nn.Conv3d(1, 2, 1)
    >>> task = Task(net, torch.optim.SGD(net.parameters(), 0.1), precision=Precision("cpu"),
    ...             losses=lambda o, y, v: (o - y).square().mean((1, 2, 3, 4)))
    >>> task.probabilities(task.forward(torch.zeros(1, 1, 4, 4, 4))).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        precision: Precision,
        *,
        spatial_dims: int = 3,
        regions: bool = False,
        classification: bool = False,
        clip: float | None = None,
        call: Callable[[Tensor], Any] | None = None,
        accumulation_steps: int = 1,
        steps: int | None = None,
        patch_size: tuple[int, ...] | None = None,
        label_names: tuple[str, ...] = (),
        listener: Callable[[str, Mapping[str, Any]], None] = _ignore,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.network, self.optimizer, self.losses, self.precision = network, optimizer, losses, precision
        self.spatial_dims, self.regions, self.clip = spatial_dims, regions, clip
        self.classification = classification
        self.call: Callable[[Tensor], Any] = network if call is None else call
        self.accumulation_steps, self.steps = accumulation_steps, steps
        self.patch_size, self.label_names = patch_size, label_names
        self.first_micro_batch = self.last_micro_batch = True  # a host that accumulates sets these before each step
        self.notify, self.build = listener, build
        # what the optimiser begins with; a schedule changes it
        self._settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]

    def fresh(self, seed: int) -> None:
        """Begin anew: the network as its builder makes it of ``seed``, the optimiser without memory of what was.

        Both stay the same objects, compiled, wrapped or referred to as they are. On all ranks the weights are the
        same. The host's learning-rate schedule begins anew too; global random numbers are left as they are.

        Args:
            seed: of the initial weights.

        Raises:
            ConfigError: the host hasn't said how its network is built, or builds another one.
        """
        if self.build is None:
            raise ConfigError("this method begins anew with a fresh segmentation network, but the host can't build one")
        renew(self.network, built(self.build, seed))
        broadcast([*self.network.parameters(), *self.network.buffers()])
        self.optimizer.state.clear()
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        return self.precision.device

    def forward(
        self,
        image: Tensor,
        extra: Tensor | None = None,
        group: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Run the segmentation network under the host's precision.

        Args:
            image: (B, C, D, H, W).
            extra: (B, E, D, H, W) channels appended to the image, or None.
            group: (B,) int64 norm group of each sample, 0 the main one; None: all main.
            parameters: run with these instead of the network's own (see `networks.with_parameters`), in float32, not
                compiled, with dropout and statistics frozen, so that nothing but the result comes of it; all samples
                in the main norm group. None: as in training.

        Returns:
            The network's output: logits, or a list of them with deep supervision.
        """
        x = image if extra is None else torch.cat([image, extra], dim=1)
        if parameters is not None:
            off = torch.autocast(x.device.type, enabled=False)
            with frozen(self.network), with_parameters(self.network, parameters), off:
                return self.network(x if x.dtype == torch.float64 else x.float())
        with norm_groups(self.network, group), self.precision.autocast():
            return self.call(x)

    def logits(self, output: Any) -> Tensor:
        """Logits at full resolution, at least float32."""
        first: Tensor = output[0] if isinstance(output, list | tuple) else output
        return first if first.dtype == torch.float64 else first.float()

    @property
    def sigmoid(self) -> bool:
        """Whether logits go through a sigmoid each, rather than a softmax."""
        return self.regions

    def activate(self, logits: Tensor) -> Tensor:
        """Class or region probabilities of logits (B, K, D, H, W)."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)

    def probabilities(self, output: Any) -> Tensor:
        """Class or region probabilities at full resolution, at least float32."""
        return self.activate(self.logits(output))

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each of the optimiser's parameters, unscaled and averaged over ranks; None where there is none.

        Between backward and update; what the update does with them (clipping) is not in them.
        """
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        average_gradients(parameters)  # the update averages them again, which changes nothing
        scale = self.precision.scale
        return [
            None if p.grad is None else p.grad.detach() if scale == 1 else p.grad.detach().float() / scale
            for p in parameters
        ]

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The host's own loss of an unaugmented batch, a scalar; hosts use their own target and loss here."""
        return self.losses(output, batch.label, batch.valid).mean()


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
        task, precision = self.task, self.task.precision
        if task.last_micro_batch:
            for name, (optimizer, clip) in self._optimizers().items():
                precision.step(name, optimizer, clip=clip)
            precision.update()
            self.steps += 1
        task.notify("model", {})

    def state_dict(self) -> dict[str, Any]:
        """All that the method adds to a checkpoint: tensors, numbers and strings only.

        The segmentation network and its optimiser are the host's to save; its auxiliary norm groups are in here.
        """
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
