# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a training policy learns: what each sample of a step does to the loss on meta-validation patches.

Source: paper 002, Eqs. 5-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Player, Task
from monai_autoaug.methods.meta_gradient import meta_gradient
from monai_autoaug.methods.meta_losses import MetaLoss
from monai_autoaug.optim import look_ahead, next_parameters, per_sample_hypergradient
from monai_autoaug.policies import Pool, Sampled, TrainingPolicy
from monai_autoaug.policies.baseline import Baseline
from monai_autoaug.policies.evidence import Evidence
from monai_autoaug.policies.updates import training_gradient
from monai_autoaug.precision import gather_over_ranks, world_size

__all__ = ["LookAhead", "TrainingLearner"]

LookAhead = Literal["real", "virtual"]


class TrainingLearner:
    """Judges the samples of a step and moves the policy's logits.

    Args:
        task: what the host owns.
        player: the policy and the optimiser of its logits.
        shared: random numbers that are the same on all ranks.
        pool: samples of a class that are compared with each other (Eq. 10), gathered over several updates if need be.
        meta_loss: what meta-validation patches are judged by.
        ahead: one update of the "real" optimiser, or a "virtual" one of plain gradient descent (the paper).
        derivative: see `optim.per_sample_hypergradient`.
    """

    def __init__(
        self,
        task: Task,
        player: Player,
        shared: torch.Generator,
        *,
        pool: int,
        meta_loss: MetaLoss,
        ahead: LookAhead,
        derivative: str,
    ) -> None:
        assert isinstance(player.module, TrainingPolicy)  # noqa: S101  # for the type checker
        self.task, self.player, self.policy, self.shared = task, player, player.module, shared
        self.pool, self.evidence = Pool(pool), Evidence(self.policy)
        self.baseline = Baseline(len(self.policy.classes))
        self.dropped = 0  # samples whose worth was not finite
        self.meta_loss, self.ahead, self.derivative = meta_loss, ahead, derivative

    def judge(
        self, batch: Batch, drawn: Sampled, gradients: list[Tensor | None], meta: Batch
    ) -> tuple[Tensor, Sampled] | None:
        """Eqs. 5-9, between the backward and the update of the network.

        Args:
            batch: what the network was trained on in this step, augmented; if it has ``plain``, samples are compared
                with that.
            drawn: what was drawn for its samples; the values are not used.
            gradients: of the network's parameters in the optimiser's order.
            meta: what the updated network is judged on, without margin.

        Returns:
            The loss on ``meta`` after the update, and what each sample's weight changes about it; None where the
            optimiser's update has no derivative that says anything.

        Raises:
            ConfigError: the optimiser has parameters that are not the network's.
        """
        task, optimizer = self.task, self.task.optimizer
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and not optimizer.state:
            return None  # its first step is the gradient's sign, whose derivative says nothing
        if self.ahead == "virtual":
            groups = [{"params": g["params"], "lr": float(g["lr"])} for g in optimizer.param_groups]
            optimizer = torch.optim.SGD(groups, lr=0.0)
        clip = task.clip if self.ahead == "real" else None
        names = self._names()
        after = dict(zip(names, next_parameters(optimizer, gradients, clip=clip), strict=True))
        loss, direction = meta_gradient(task, after, meta, self.meta_loss, at_once=self._at_once(batch))
        u = look_ahead(optimizer, gradients, direction, clip=clip)

        own = dict(task.network.named_parameters())
        here, along = {name: own[name].detach() for name in names}, dict(zip(names, u, strict=True))
        count = len(batch.image) * task.accumulation_steps * world_size()

        def worth(patches: Batch) -> Tensor:
            values = per_sample_hypergradient(
                lambda predicted: task.losses(predicted, patches.label, patches.valid), here, along,
                network=lambda parameters: task.forward(patches.image, patches.extra, parameters=parameters),
                mode=self.derivative,
            )  # fmt: skip
            return values / count

        judged = Sampled(worth(batch), drawn.classes, drawn.operations)
        if batch.plain is None:
            return loss, judged
        compared = worth(batch.plain)
        # where that isn't finite the sample can't be used: among others that are compared it would drown them
        values = torch.where(torch.isfinite(compared), judged.values, torch.nan)
        return loss, replace(judged, values=values, plain=compared)

    def _at_once(self, batch: Batch) -> int:
        """Samples whose graph fits where that of a training batch does, though it is in float32 here."""
        return max(len(batch.image) // (1 if self.task.precision.dtype == torch.float32 else 2), 1)

    def _names(self) -> list[str]:
        """Names of the optimiser's parameters in its order."""
        names = {id(p): name for name, p in self.task.network.named_parameters()}
        parameters = [p for g in self.task.optimizer.param_groups for p in g["params"]]
        if not all(id(p) in names for p in parameters):
            raise ConfigError(
                "the optimiser has parameters that are not the network's, so that its step can't be looked ahead;"
                " give them an optimiser of their own"
            )
        return [names[id(p)] for p in parameters]

    def improve(self, drawn: Sampled) -> None:
        """Eqs. 9-11 over the samples of all ranks, as soon as a class has enough of them.

        Args:
            drawn: this rank's samples, with their values.
        """
        everything = gather_over_ranks(tuple(t.cpu() for t in drawn.parts()))
        samples = Sampled.joined([Sampled(*parts) for parts in everything])
        finite = torch.isfinite(samples.values)  # one that isn't would spoil all of its class, for ever
        self.dropped += int((~finite).sum())
        ready = self.pool.add(samples.rows(finite))
        if ready is None:
            return
        ready = self.baseline.remove(ready)
        gradient, centred = training_gradient(self.policy, ready, self.shared)
        self.evidence.add(replace(ready, values=centred))
        if self.task.precision.descend("training_policy", self.player.optimizer, self.policy.logits, gradient):
            self.policy.constrain()

    def enough(self) -> float:
        """How many samples of this rank a step must have, so that its classes have enough of them."""
        return self.pool.least * len(self.policy.classes) / world_size()

    def share(self, samples: int) -> float:
        """The share of the updates for which a class has enough samples.

        Args:
            samples: of this rank in a step.
        """
        return min(1.0, samples / self.enough())

    def state_dict(self) -> dict[str, Any]:
        """What waits, and what is known of each operation."""
        return {
            "pool": self.pool.state_dict(),
            "baseline": self.baseline.state_dict(),
            "evidence": self.evidence.moments.clone(),
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.pool.load_state_dict(state["pool"])
        self.baseline.load_state_dict(state["baseline"])
        self.evidence.moments.copy_(state["evidence"])
        self.dropped = state["dropped"]
