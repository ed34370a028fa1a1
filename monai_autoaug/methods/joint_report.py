# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What `JointPolicy` says of itself: figures and warnings of an epoch, what it announces, what it has learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_autoaug.methods.base import Method, Player
from monai_autoaug.methods.late_views import LateViews
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.policy_schedule import PolicySchedule
from monai_autoaug.methods.training_learner import TrainingLearner
from monai_autoaug.methods.view_learner import ViewLearner
from monai_autoaug.policies import Seen, TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.classes import Shares
from monai_autoaug.policies.evidence import COLLAPSED

__all__ = ["JointReport"]


class JointReport(Method):
    """The part of `JointPolicy` that hosts print, log and keep."""

    training: TrainingPolicy
    test_time: TestTimePolicy | None
    learning: TrainingLearner | None
    viewing: ViewLearner | None
    late: LateViews | None
    schedule: PolicySchedule
    learners: dict[str, Player]
    along: dict[str, Player]
    views_help: bool
    updates: int
    _rates: dict[str, float | None]
    _share: float
    _means: Means
    _shares: Shares
    _start: Tensor
    _start_of_views: Tensor

    def _rate(self, name: str, share: float) -> float:
        given = self._rates[name]
        return self.schedule.learning_rate(share) if given is None else given

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean figures of the epoch, and what has become of the policies.

        From the next epoch on the training policy is judged on views, if averaging them has helped in this one.
        """
        figures = self._means.take()
        gain = None if self.viewing is None else self.viewing.gain()
        if gain is not None:
            figures["views_gain"] = float(gain)
            self.views_help = figures["views_gain"] > 0
        with torch.no_grad():
            entropy = self.training.entropy()
            for name, row in zip(self.training.classes, entropy.tolist(), strict=True):
                figures[f"entropy_{name}"] = sum(row) / len(row)
                names = [f"entropy_{name}_{c.name}" for c in self.training.cascades]
                figures |= dict(zip(names, row, strict=True))
            figures["policy_moved"] = float((self.training.logits - self._start).abs().mean())
            if self.test_time is not None:
                p = self.test_time.probabilities()
                figures["entropy_views"] = float(-(p * p.clamp(min=1e-12).log()).sum() / torch.tensor(len(p)).log())
        figures["policy_updates"] = float(self.updates)
        return figures | self._shares.take()

    def announcement(self) -> list[str]:
        """How often the policies will be updated, and how far they can move."""
        schedule, updates = self.schedule, self.schedule.updates
        late = [f"The test-time policy learns after the last step, in {self.finishing} updates"] if self.late else []
        if not self.along:
            return late
        often = f"every {schedule.update_every} steps from step {schedule.warm_up} on"
        if updates is None:
            return [f"Policies are updated {often}", *late]
        found = [f"Policies are updated {often}, U = {updates} times in all"]
        for name in self.along:
            rate = self._rate(name, self._share)
            found.append(
                f"Expected movement of the {name.replace('_', '-')} policy's logits: learning rate x U = {rate:.3g} x"
                f" {updates} = {rate * updates:.3g}; about 4 brings one of six operations from 1/6 to 0.9"
            )
        return found + late

    def warnings(self) -> list[str]:
        """What there is too little of to learn anything from, and views that do harm."""
        if not self.learners:
            return []
        found = self.schedule.warnings(self._share) if self.along else []
        found += self.late.warnings() if self.late else []
        found += [] if self.learning is None else self._shares.warnings()
        if self.learning is not None and self.learning.dropped:
            found.append("the worth of some samples was not finite; they were left out of the policy's updates")
        found += self._collapsed()
        return found + ([] if self.viewing is None else self.viewing.warnings())

    @torch.no_grad()
    def _collapsed(self) -> list[str]:
        """Cascades and views of which hardly any but one is drawn any more, though nothing shows it to be best."""
        found, seen = [], self.seen()
        sizes = [len(c) for c in self.training.cascades]
        for k, name in enumerate(self.training.classes if seen is not None else ()):
            assert seen is not None  # noqa: S101  # for the type checker
            rows = zip(
                self.training.cascades, self.training.probabilities(name), seen.start[k].split(sizes),
                seen.decided()[k].split(sizes), strict=True,
            )  # fmt: skip
            stuck = [c.name for c, p, start, sure in rows if _certain(p, start) and not sure[p.argmax()]]
            if stuck:
                found.append(
                    f"the policy of class {name} has collapsed onto one operation of {', '.join(stuck)}, which nothing"
                    " shows to be better than the others; lower learning_rate, or raise floor"
                )
        if self.test_time is not None and self.views_learn:
            p = self.test_time.probabilities()
            if _certain(p, self._start_of_views):
                view = self.test_time.operations[int(p.argmax())].name
                found.append(f"the test-time policy has collapsed onto one view, {view}")
        return found

    def policies(self) -> dict[str, nn.Module]:
        """What was learned: "training" and, if there is one, "test_time"."""
        both = {"training": self.training, "test_time": self.test_time}
        return {name: policy for name, policy in both.items() if policy is not None}

    def seen(self) -> Seen | None:
        """What is known of the training policy's operations, if it learns."""
        return None if self.learning is None else self.learning.evidence.seen(self._start)


def _certain(p: Tensor, start: Tensor) -> bool:
    """Whether one of several operations is drawn nearly always, and the others at most half as often as at the start.

    Args:
        p: probabilities of a cascade's operations.
        start: the same, before anything was learned.
    """
    top = int(p.argmax())
    return len(p) > 1 and float(p[top]) >= COLLAPSED and float(1 - p[top]) <= float(1 - start[top]) / 2
