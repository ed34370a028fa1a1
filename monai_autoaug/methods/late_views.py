# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views that are learned when the network has been trained, as by methods that do nothing about its training.

Source: paper 002, section IV-B 4, "Learned TEA": "after training the model ... we refine TEA as described in Section
III-E".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Batches
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.policy_schedule import PolicySchedule
from monai_autoaug.methods.view_learner import ViewLearner

__all__ = ["LateViews", "tenths"]


def tenths(done: int, total: int) -> list[str]:
    """A sentence for a host's log after each tenth of the updates.

    >>> tenths(done=20, total=100), tenths(done=21, total=100)
    (['After training: 20 of 100 updates of the test-time policy'], [])
    """
    if 10 * done // total == 10 * (done - 1) // total:
        return []
    return [f"After training: {done} of {total} updates of the test-time policy"]


class LateViews:
    """Updates of a test-time policy after the last training step, for a network that stays as it is.

    Args:
        viewing: compares views and moves the policy's logits.
        updates: how many, at least 1.
        learning_rate: of Adam on the logits at the start; None: by the number of updates.

    Attributes:
        schedule: of the updates.
        done_at: steps of the network after which they were made; -1: never. Made once more when it has been trained on.

    Raises:
        ConfigError: the number is below 1.
    """

    def __init__(self, viewing: ViewLearner, updates: int, learning_rate: float | None = None) -> None:
        if updates < 1:
            raise ConfigError(f"views_after must be a number of updates, or 0 to learn views along; got {updates}")
        self.viewing, self.start = viewing, viewing.policy.logits.detach().clone()
        self.schedule = PolicySchedule(updates, update_every=1, warm_up=0)
        self.rate = self.schedule.learning_rate() if learning_rate is None else learning_rate
        self.done_at = -1

    def warnings(self) -> list[str]:
        """That there are too few updates."""
        if not self.schedule.warnings():
            return []
        return [f"views_after: the test-time policy is updated {self.schedule.steps} times only, which says little"]

    def learn(
        self, batches: Batches, steps: int, updates: int, tell: Callable[[str, Mapping[str, Any]], None]
    ) -> dict[str, float]:
        """Make the updates, unless this network has had them.

        Args:
            batches: the host's; each update takes one of the stream "meta".
            steps: that the network has been trained for.
            updates: how many of those that were planned are made: all of them, but when a host tries a method out.
            tell: hears of the event "finish" after each update, with how many are ``done`` of the ``total``.

        Returns:
            Mean figures of `ViewLearner.learn`, and the gain of the views that are deployed; empty where there was
            nothing to do.
        """
        if self.done_at == steps:
            return {}
        viewing, optimizer, means = self.viewing, self.viewing.player.optimizer, Means()
        # whatever was learned for this network when it was less far: training that goes on notices nothing of it
        optimizer.state.clear()
        with torch.no_grad():
            viewing.policy.logits.copy_(self.start)
        states = [generator.get_state() for generator in (viewing.generator, viewing.shared)]
        for done in range(updates):
            optimizer.param_groups[0]["lr"] = self.rate * self.schedule.decay(done)
            means.add(viewing.learn(batches.next("meta")))
            tell("finish", {"done": done + 1, "total": updates})
        for generator, state in zip((viewing.generator, viewing.shared), states, strict=True):
            generator.set_state(state)
        self.done_at = steps
        gain = viewing.gain()
        return means.take() | ({} if gain is None else {"views_gain": float(gain)})
