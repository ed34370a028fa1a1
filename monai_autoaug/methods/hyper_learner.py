# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How an augmenter learns by what it did to the last K updates of the network: the loss on validation patches after.

Source: paper 003, Eqs. 3-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Task
from monai_autoaug.methods.replay import detached, moving, parameter_names, replayed_loss
from monai_autoaug.networks import with_parameters
from monai_autoaug.optim import Update, mixed_gradient, next_parameters, unrolled_hypergradient
from monai_autoaug.precision import average_over_ranks

__all__ = ["HyperLearner", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A micro-batch as the network saw it.

    Args:
        batch: after augmentation, with the graph that leads to ``parameters``.
        parameters: of the augmenter as they were then, by name.
    """

    batch: Batch
    parameters: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Shared:
    """What the training step itself leaves for the derivative.

    Args:
        inputs: those tensors that the network saw and that carry a gradient, as leaves.
        gradients: of the network's parameters by name, with the graph that leads to ``inputs``.
    """

    inputs: list[Tensor]
    gradients: dict[str, Tensor]


@dataclass
class _Step:
    """An update of the network: its micro-batches, and, when it comes, what the optimiser makes of them."""

    seen: list[Seen] = field(default_factory=list)
    update: Update | None = None
    shared: list[_Shared] = field(default_factory=list)  # one a micro-batch, or none


class HyperLearner:
    """Keeps the last K updates of a network and says how the augmenter should have been for a lower validation loss.

    Args:
        task: what the host owns.
        augmenter: whose parameters learn.
        unroll: K.
        derivative: "double_backward", "jvp" or "finite_difference", see `optim.mixed_gradient`.
    """

    def __init__(self, task: Task, augmenter: nn.Module, *, unroll: int, derivative: str) -> None:
        self.task, self.augmenter = task, augmenter
        self.unroll, self.derivative = unroll, derivative
        self.steps: list[_Step] = []

    def shares(self) -> bool:
        """Whether the training step's own forward and backward can serve the derivative, too.

        With a K of 1 it is taken where the network stands, so nothing has to be done twice; in half precision or
        compiled the step has no graph that could be differentiated again.
        """
        task = self.task
        compiled = any(hasattr(f, "_orig_mod") for f in (task.call, getattr(task, "runs", None)))
        plain = task.precision.dtype == torch.float32 and task.precision.scaler is None and not compiled
        return plain and self.unroll == 1 and self.derivative == "double_backward"

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """The backward of a training step that is to be differentiated again; adds to the parameters' gradients.

        Args:
            loss: with all of its derivatives, see `replay.whole_loss`.
            batch: what the network was given, from `see` with ``share``.
        """
        own = {n: p for n, p in self.task.network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(own.values()), create_graph=True, allow_unused=True)
        gradients = {n: g for n, g in zip(own, found, strict=True) if g is not None}
        for name, g in gradients.items():
            part, before = g.detach() / self.task.accumulation_steps, own[name].grad
            own[name].grad = part if before is None else before + part
        if self.steps:
            self.steps[-1].shared.append(_Shared(list(moving(batch).values()), gradients))

    def forget(self) -> None:
        """Drop all that was kept; what comes next begins a new window."""
        self.steps.clear()

    def copies(self) -> dict[str, Tensor]:
        """The augmenter's parameters as they are now, as leaves of their own.

        Its next update moves the originals, which the graph of an earlier step must not see.
        """
        return {name: p.detach().clone().requires_grad_() for name, p in self.augmenter.named_parameters()}

    def see(self, batch: Batch, parameters: Mapping[str, Tensor], *, share: bool = False) -> Batch:
        """Keep a micro-batch of the coming update; returns it cut off from the augmenter, for training.

        Args:
            batch: augmented by ``parameters``, without margin.
            parameters: from `copies`.
            share: the training step's backward is going to be `backward`.
        """
        if self.task.first_micro_batch:
            self.steps.append(_Step())
        if self.steps:  # else the window was dropped within an update
            self.steps[-1].seen.append(Seen(batch, parameters))
        cut = detached(batch)
        if share:
            leaves: dict[str, Any] = {n: getattr(cut, n).requires_grad_() for n in moving(batch)}
            cut = replace(cut, **leaves)
        return cut

    def coming(self) -> bool:
        """Tell it that the gradients of the coming update are there; False where this update has no derivative.

        Raises:
            ConfigError: no closed form of this optimiser's update is known.
        """
        task = self.task
        complete = bool(self.steps) and len(self.steps[-1].seen) > 0
        gradients = task.gradients()
        checks = [torch.isfinite(g).all() for g in gradients if g is not None]
        finite = not checks or bool(torch.stack(checks).all())  # all at once: a GPU is waited for once
        adam = isinstance(task.optimizer, torch.optim.Adam | torch.optim.AdamW)
        if not complete or not finite or (adam and not task.optimizer.state):
            self.forget()  # an update that will be skipped, or Adam's first one, which is the gradient's sign
            return False
        self.steps[-1].update = Update.coming(task.optimizer, gradients, clip=task.clip)
        self.steps = self.steps[-self.unroll :]
        return True

    def gradient(self, validation: Batch, *, again: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on validation patches after the coming update, and its gradient with respect to the augmenter.

        Args:
            validation: patches that nothing has augmented, without margin.
            again: whether some of the updates will be gone through again, when more have followed.

        Returns:
            The loss, and the gradient by the names of the augmenter's parameters, averaged over ranks.
        """
        names, task = parameter_names(self.task), self.task
        kept = [s for s in self.steps if s.update is not None]
        updates = [s.update for s in kept if s.update is not None]
        gradients = task.gradients()
        after = dict(zip(names, next_parameters(task.optimizer, gradients, clip=task.clip), strict=True))
        loss, direction = self._validation(validation, after)
        total = {name: torch.zeros_like(p) for name, p in self.augmenter.named_parameters()}

        def visit(place: int, u: list[Tensor], goes_on: bool) -> Sequence[Tensor]:
            here = dict(zip(names, updates[place].parameters, strict=True))
            along, curved = dict(zip(names, u, strict=True)), [torch.zeros_like(x) for x in u]
            for number, seen in enumerate(kept[place].seen):
                share = 1 / len(kept[place].seen)
                if kept[place].shared:
                    self._spread(seen, _slopes(kept[place].shared[number], along), share, total, again=again)
                    continue
                hessian = self._through(seen, here, along, share, total, goes_on=goes_on, again=again)
                if goes_on:
                    curved = [c + share * hessian[n] for c, n in zip(curved, names, strict=True)]
            return [average_over_ranks(c) for c in curved] if goes_on else curved

        unrolled_hypergradient(updates, direction, visit)
        return loss, {name: average_over_ranks(g) for name, g in total.items()}

    def _validation(self, batch: Batch, after: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss at parameters, and its gradient there, averaged over ranks."""
        leaves = {name: p.requires_grad_() for name, p in after.items()}
        with torch.enable_grad():
            loss = replayed_loss(self.task, batch, leaves)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        full = [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves.values(), strict=True)]
        return loss.detach(), [average_over_ranks(g) for g in full]

    def _through(
        self,
        seen: Seen,
        here: Mapping[str, Tensor],
        along: Mapping[str, Tensor],
        share: float,
        total: dict[str, Tensor],
        *,
        goes_on: bool,
        again: bool,
    ) -> dict[str, Tensor]:
        """Add what one micro-batch tells of the augmenter; returns the Hessian times ``along``, if wanted."""
        ways = moving(seen.batch)

        def loss(parameters: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
            given: dict[str, Any] = dict(zip(ways, inputs, strict=True))
            return replayed_loss(self.task, replace(seen.batch, **given), parameters)

        slopes, hessian = mixed_gradient(
            loss, here, list(ways.values()), along, mode=self.derivative, curvature=goes_on
        )  # fmt: skip
        self._spread(seen, slopes, share, total, again=again)
        return hessian

    def _spread(
        self, seen: Seen, slopes: Sequence[Tensor], share: float, total: dict[str, Tensor], *, again: bool
    ) -> None:
        """Add to ``total`` what ``slopes``, of what the network saw, mean for the augmenter's parameters."""
        ways, names = moving(seen.batch), list(seen.parameters)
        if not ways:
            return
        found = torch.autograd.grad(
            list(ways.values()), [seen.parameters[n] for n in names], slopes, retain_graph=again, allow_unused=True
        )
        for name, g in zip(names, found, strict=True):
            if g is not None:
                total[name] += share * g

    def augment(self, parameters: Mapping[str, Tensor]) -> Any:
        """A context in which the augmenter works with ``parameters``."""
        return with_parameters(self.augmenter, parameters)


def _slopes(shared: _Shared, along: Mapping[str, Tensor]) -> list[Tensor]:
    """Derivatives of ``<along, gradients>`` with respect to what the network saw; frees the training step's graph."""
    inner = [(g * along[n]).sum() for n, g in shared.gradients.items() if n in along]
    total = torch.stack(inner).sum() if inner else torch.zeros(())
    if not shared.inputs or not total.requires_grad:
        return [torch.zeros_like(x) for x in shared.inputs]
    found = torch.autograd.grad(total, shared.inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(shared.inputs, found, strict=True)]
