# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""When a policy is updated and how far it can move: what counts is the number of its updates, not of iterations."""

from __future__ import annotations

from monai_autoaug.errors import ConfigError

__all__ = ["PolicySchedule"]

_MOVEMENT = 10.0  # learning rate times updates; about 4 bring one of six operations from 1/6 to 0.9
_SMALLEST, _LARGEST = 5e-4, 0.2  # the paper's, and what locks in a random operation beyond
_POWER = 0.9
_EVALUATIONS = 500  # of the meta-gradient that are left in a training, by default
_RAREST = 100  # steps between two of them, at most: with nnU-Net's batch of two an update takes 9 plain steps
_WARM_UP = 50  # steps, at most
_ENOUGH = 50  # updates below which a policy over six operations was never learned


class PolicySchedule:
    """Updates every so many steps, after a warm-up and until a freeze, with a learning rate that falls to 0.

    Args:
        steps: that the host plans; None: it doesn't know.
        update_every: steps between two updates; None: as many as leave 500 updates, but at most 100.
        warm_up: steps before the first; None: 50, but at most a twentieth of the training.
        freeze: share of the planned steps after which there are no more.

    Raises:
        ConfigError: a number is out of range, or nothing is left of the training.

    >>> [PolicySchedule(n).update_every for n in (100, 2000, 250_000)]
    [1, 4, 100]
    >>> schedule = PolicySchedule(1000, update_every=5, warm_up=100, freeze=0.5)
    >>> schedule.updates, schedule.learning_rate(), schedule.due(100), schedule.due(101), schedule.due(500)
    (80, 0.125, True, False, False)
    """

    def __init__(
        self, steps: int | None, *, update_every: int | None = None, warm_up: int | None = None, freeze: float = 1.0
    ) -> None:
        if update_every is None:
            update_every = _RAREST if steps is None else min(max(steps // _EVALUATIONS, 1), _RAREST)
        if warm_up is None:
            warm_up = _WARM_UP if steps is None else min(_WARM_UP, steps // 20)
        if update_every < 1 or warm_up < 0 or not 0 < freeze <= 1:
            raise ConfigError(
                "update_every must be at least 1, warm_up at least 0 and freeze in (0, 1], got"
                f" {update_every}, {warm_up} and {freeze}"
            )
        self.steps, self.update_every, self.warm_up = steps, update_every, warm_up
        self.end = None if steps is None else round(steps * freeze)
        if self.end is not None and self.end <= warm_up:
            raise ConfigError(
                f"the policy would never be updated: training has {steps} steps, updates begin after {warm_up} and end"
                f" after {self.end}; lower warm_up or train longer"
            )

    @property
    def updates(self) -> int | None:
        """How many there will be, or None."""
        return None if self.end is None else -(-(self.end - self.warm_up) // self.update_every)

    def due(self, step: int) -> bool:
        """Whether the policy is updated in a step, counted from 0."""
        return (
            step >= self.warm_up
            and (step - self.warm_up) % self.update_every == 0
            and (self.end is None or step < self.end)
        )

    def learning_rate(self, share: float = 1.0) -> float:
        """Of Adam on the logits, at the start: about 10 over the number of updates.

        Args:
            share: of the updates for which there are enough samples.

        Raises:
            ConfigError: the host doesn't know how long it trains.
        """
        if self.updates is None:
            raise ConfigError(
                "how far a policy may move follows from the planned number of steps, which this host doesn't tell; set"
                " learning_rate and learning_rate_test_time (about 10 over the number of the policy's updates)"
            )
        return min(max(_MOVEMENT / (self.updates * share), _SMALLEST), _LARGEST)

    def decay(self, step: int) -> float:
        """By what the learning rate has fallen; 1 where the end is unknown.

        >>> PolicySchedule(None).decay(10), PolicySchedule(10).decay(0)
        (1.0, 1.0)
        """
        if self.end is None:
            return 1.0
        done = (step - self.warm_up) / (self.end - self.warm_up)
        return float((1 - min(max(done, 0.0), 1.0)) ** _POWER)

    def warnings(self, share: float = 1.0) -> list[str]:
        """That there are too few updates.

        Args:
            share: see `learning_rate`.

        >>> PolicySchedule(100, update_every=10).warnings()[0][:47]
        'the policy is updated 10 times only, which says'
        """
        if self.updates is None or self.updates * share >= _ENOUGH:
            return []
        pooled = "" if share == 1 else f" (of {self.updates}, because samples are pooled until a class has enough)"
        return [
            f"the policy is updated {round(self.updates * share)} times only{pooled}, which says little: at least"
            f" {_ENOUGH} are needed for a few operations; train longer or lower update_every"
        ]
