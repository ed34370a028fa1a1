# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a test-time policy learns: how good the network's prediction of each view of a meta-validation patch is.

Source: paper 002, Eqs. 12-15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Player, Task
from monai_autoaug.methods.meta_gradient import predict
from monai_autoaug.methods.meta_losses import view_losses
from monai_autoaug.policies import TestTimePolicy, class_at_centre
from monai_autoaug.policies.updates import view_gradient
from monai_autoaug.policies.viewing import predict_views
from monai_autoaug.precision import average_over_ranks, gather_over_ranks
from monai_autoaug.transforms import Operation

__all__ = ["ViewLearner"]

_AT_ONCE = 2  # views that are predicted together, in float32: no training batch is smaller than that
_CERTAIN = 5  # epochs with harm after which one is told
_JUDGED = 4  # patches that the deployed average is judged on: 9 forwards each with 8 views


class ViewLearner:
    """Compares views of a patch and moves the policy's logits.

    Args:
        task: what the host owns.
        player: the policy and the optimiser of its logits.
        shared: random numbers that are the same on all ranks.
        generator: random numbers that differ by rank.
        views: views of one patch that are compared in an update (the paper's Z).
    """

    def __init__(
        self, task: Task, player: Player, shared: torch.Generator, generator: torch.Generator, *, views: int
    ) -> None:
        assert isinstance(player.module, TestTimePolicy)  # noqa: S101  # for the type checker
        self.task, self.player, self.policy = task, player, player.module
        self.shared, self.generator, self.views = shared, generator, views
        self._latest: Batch | None = None
        self.harm = 0  # epochs in a row

    @torch.no_grad()
    def learn(self, meta: Batch) -> dict[str, Tensor]:
        """Eqs. 12-15: predictions of several views of one patch, brought back to where they belong.

        Args:
            meta: patches with their margin, of which one is taken.

        Returns:
            Mean loss of the views and loss of the patch as it is, 1 - soft Dice each.
        """
        self.watch(meta)
        row = self._interesting(meta)
        chosen, _ = self.policy.sample(self.views, self.generator)
        operations = [self.policy.operations[0], *(self.policy.operations[k] for k in chosen.tolist())]
        predicted, seen = self._views_of(row, operations, self.generator)
        label = row.cropped()
        valid = seen if label.valid is None else seen * label.valid
        losses = view_losses(
            predicted, label.label.expand(len(operations), *label.label.shape[1:]), valid, regions=self.task.regions
        )
        everything = gather_over_ranks((losses[1:].cpu(), chosen.cpu()))
        finite = [(loss, index) for loss, index in everything if bool(torch.isfinite(loss).all())]
        with torch.enable_grad():
            gradient = view_gradient(self.policy, [e[0] for e in finite], [e[1] for e in finite], self.shared)
        self.task.precision.descend("test_time_policy", self.player.optimizer, self.policy.logits, gradient)
        return {"view_loss": losses[1:].mean(), "identity_loss": losses[0]}

    def watch(self, meta: Batch) -> None:
        """Remember patches for `gain` without learning from them.

        Args:
            meta: patches with their margin.
        """
        # a few are enough, from all over the batch: hosts put foreground last
        rows = torch.linspace(0, len(meta.image) - 1, min(_JUDGED, len(meta.image))).round().long()
        self._latest = meta.rows(rows.to(meta.image.device))

    @torch.no_grad()
    def gain(self) -> Tensor | None:
        """By how much the deployed average of views beats the plain prediction on the latest meta-validation patches.

        Returns:
            Difference of soft Dice, a scalar, averaged over ranks, above 0 where views help; None before the first
            update of an epoch.
        """
        if self._latest is None:
            return None
        meta, self._latest = self._latest, None
        operations, weights = self.policy.top(self.policy.z)
        gains = [self._gain(meta.rows(slice(k, k + 1)), operations, weights) for k in range(len(meta.image))]
        result = average_over_ranks(torch.stack(gains).mean())
        self.harm = self.harm + 1 if bool(result < 0) else 0
        return result

    def warnings(self) -> list[str]:
        """That averaging views keeps doing harm."""
        if self.harm < _CERTAIN:
            return []
        return [
            "averaging the learned views has made the predictions of meta-validation patches worse in each of the last"
            f" {_CERTAIN} epochs; compare predictions without views, on cases that nothing was learned from"
        ]

    def state_dict(self) -> dict[str, Any]:
        """What was found out, and the patches that wait for `gain`: none at the end of an epoch."""
        latest: dict[str, Any] | None = None
        if self._latest is not None:
            parts = {f.name: getattr(self._latest, f.name) for f in fields(self._latest)}
            latest = {n: t.cpu() for n, t in parts.items() if isinstance(t, Tensor)}
            latest["margin"] = list(self._latest.margin)
        return {"harm": self.harm, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.harm, latest = state["harm"], state["latest"]
        self._latest = None
        if latest is not None:
            self._latest = Batch(**(dict(latest) | {"margin": tuple(latest["margin"])})).to(self.task.device)

    def _gain(self, row: Batch, operations: tuple[Operation, ...], weights: Tensor) -> Tensor:
        """Of one patch."""
        probabilities = self.policy.average == "probabilities"
        fixed = torch.Generator(device=self.generator.device).manual_seed(0)  # judging changes no random numbers
        predicted, seen = self._views_of(
            row, [self.policy.operations[0], *operations], fixed, logits=not probabilities
        )
        share = weights.view(-1, *[1] * (predicted.ndim - 1)) * seen[1:]
        average = (share * predicted[1:]).sum(0, keepdim=True) / share.sum(0, keepdim=True).clamp(min=1e-12)
        # what no view has seen is predicted as it is
        both = torch.cat([predicted[:1], torch.where(seen[1:].amax(0, keepdim=True) > 0, average, predicted[:1])])
        label = row.cropped()
        plain, together = view_losses(
            both if probabilities else self.task.activate(both), label.label.expand(2, *label.label.shape[1:]),
            label.valid, regions=self.task.regions,
        )  # fmt: skip
        return plain - together

    def _views_of(
        self, row: Batch, operations: list[Operation], generator: torch.Generator, *, logits: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predictions (n, K, ...) of views of one patch, and what they have seen of it."""
        predicted, seen = predict_views(self.policy, self._predict, row, operations, generator)
        return predicted if logits else self.task.activate(predicted), seen

    def _interesting(self, meta: Batch) -> Batch:
        """One patch, with foreground at its centre if there is one."""
        values = class_at_centre(meta.label, regions=self.task.regions, valid=meta.valid).cpu()
        found = torch.nonzero(values)[:, 0] if bool(values.any()) else torch.arange(len(values))
        row = int(found[int(torch.randint(len(found), (1,), generator=self.shared))])
        return meta.rows(slice(row, row + 1))

    def _predict(self, image: Tensor, extra: Tensor | None) -> Any:
        """Full-resolution logits of the network as it is, some samples at a time."""
        return predict(self.task, Batch(image, image, extra=extra), {}, at_once=_AT_ONCE)
