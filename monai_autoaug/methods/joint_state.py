# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What `JointPolicy` keeps in a checkpoint: a run that goes on from it is the one that never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug.errors import CheckpointError
from monai_autoaug.methods.base import Method, Player
from monai_autoaug.methods.late_views import LateViews
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.training_learner import TrainingLearner
from monai_autoaug.methods.view_learner import ViewLearner
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.classes import Shares

__all__ = ["JointState"]


class JointState(Method):
    """The part of `JointPolicy` that is saved and restored."""

    training: TrainingPolicy
    test_time: TestTimePolicy | None
    learning: TrainingLearner | None
    viewing: ViewLearner | None
    late: LateViews | None
    learners: dict[str, Player]
    shared: torch.Generator
    views_help: bool
    updates: int
    _means: Means
    _shares: Shares
    _start: Tensor

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds policies, their optimisers, and the samples that wait."""
        own = {
            "learners": {
                n: {"module": p.module.state_dict(), "optimizer": p.optimizer.state_dict()}
                for n, p in self.learners.items()
            },
            "learning": {} if self.learning is None else self.learning.state_dict(),
            "shared": self.shared.get_state(),
            "start": self._start.cpu(),
            "updates": self.updates,
            "names": self._named(),
            "views_help": self.views_help,
            "viewing": {} if self.viewing is None else self.viewing.state_dict(),
            "epoch": {"means": self._means.state_dict(), "shares": self._shares.state_dict()},
            "finished": -1 if self.late is None else self.late.done_at,
        }
        return super().state_dict() | own

    def _learned(self) -> dict[str, torch.optim.Optimizer]:
        """See `Method._learned`; adds the policies."""
        return super()._learned() | {f"{name}_policy": player.optimizer for name, player in self.learners.items()}

    def _held(self) -> dict[str, nn.Module]:
        """See `Method._held`; adds the policies."""
        return super()._held() | {f"{name}_policy": player.module for name, player in self.learners.items()}

    def _named(self) -> list[str]:
        """Classes, operations and views, so that a checkpoint of others is known by them."""
        operations = [f"{c.name}: {o.name}" for c in self.training.cascades for o in c.operations]
        views = [] if self.test_time is None else [o.name for o in self.test_time.operations]
        return [*self.training.classes, *operations, *views]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        if set(state["learners"]) != set(self.learners) or state["names"] != self._named():
            raise CheckpointError(
                "this checkpoint is of other policies (classes, operations, or which of them learn); resume with the"
                " options it was started with"
            )
        super().load_state_dict(state)
        for name, player in self.learners.items():
            player.module.load_state_dict(state["learners"][name]["module"])
            player.optimizer.load_state_dict(state["learners"][name]["optimizer"])
        if self.learning is not None:
            self.learning.load_state_dict(state["learning"])
        self.shared.set_state(state["shared"].cpu())
        self._start = state["start"].to(self.task.device)
        self.updates, self.views_help = state["updates"], state["views_help"]
        if self.viewing is not None:  # older checkpoints, written where an epoch ends, have but the harm
            self.viewing.load_state_dict(state.get("viewing") or {"harm": state["harm"], "latest": None})
        if "epoch" in state:
            self._means.load_state_dict(state["epoch"]["means"])
            self._shares.load_state_dict(state["epoch"]["shares"])
        if self.late is not None:
            self.late.done_at = state["finished"]
