# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Paper 002: which operations to augment each class with, and which views to average at test time, learned jointly.

Training patches are augmented by a policy of their class. Now and then one looks one update ahead: how would the loss
on meta-validation patches change if this sample counted a little more? What makes it smaller becomes more probable.
The views' policy learns from how good the prediction of each view of a meta-validation patch is.

Source: Joint Optimization of Class-Specific Training- and Test-Time Data Augmentation in Segmentation, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Batches, Player, Task
from monai_autoaug.methods.joint_report import JointReport
from monai_autoaug.methods.joint_state import JointState
from monai_autoaug.methods.late_views import LateViews
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.meta_losses import MetaLoss, check_meta_loss
from monai_autoaug.methods.meta_use import MetaUse, learns, sets_apart
from monai_autoaug.methods.policy_schedule import PolicySchedule
from monai_autoaug.methods.policy_starts import Classes, Given, Sides, given_policies, training_start, views_start
from monai_autoaug.methods.training_learner import LookAhead, TrainingLearner
from monai_autoaug.methods.view_learner import ViewLearner
from monai_autoaug.optim import LazyAdam
from monai_autoaug.optim.hypergradient import MODES
from monai_autoaug.policies import Sampled, TestTimePolicy
from monai_autoaug.policies.classes import Shares
from monai_autoaug.policies.drawing import Compared, Drawing
from monai_autoaug.policies.rand_augment import Magnitude
from monai_autoaug.policies.viewing import view_batch

__all__ = ["JointPolicy"]


class JointPolicy(JointReport, JointState):
    """Class-specific training-time policy and test-time policy, learned while the network trains.

    Args:
        task: what the host owns.
        seed: of all that is drawn; equal on all ranks.
        preset: where the training policy starts: "nnunet", "deepmedic", "uniform", or "none": no augmentation.
        classes: "foreground": one policy for patches whose centre is background and one for all others, as in the
            paper; "labels": one for each label; "all": one for all patches.
        extra: cascades beyond the paper's that are switched on: "elastic", "bias_field", "gibbs", "channel_scale".
        without: cascades or operations that are left out.
        laterality: pairs of labels that are each other's mirror image, such as [[1, 2]]; a host that knows which axis
            runs between left and right gives it with them.
        floor: smallest probability of an operation, so that none is lost for good.
        policy: a training policy of one's own, or the file of one, in place of the options so far; the test-time policy
            starts with the file's, if it has one.
        magnitude: "small", "medium" or "large": its operations of this magnitude alone, see `policies.rand_augment`.
        class_of: the class of a patch is that of its "centre", or what it was "sampled" for.
        loss_region: for patches nearly as large as the image, which have no class: the side of a box over that of the
            patch; the training loss is taken in the box alone, around a voxel of a class, which is then the patch's.
            1: in the whole patch.
        learn_training: whether the training policy learns; False keeps its start.
        test_time: whether there is a test-time policy.
        test_time_preset: where it starts; None: as ``policy`` says, or else as ``preset``.
        learn_test_time: whether it learns; False keeps its start.
        views: views of one meta-validation patch that are compared in an update (the paper's Z).
        joint: the training policy is judged on views of the meta-validation patches (Eq. 16), as soon as averaging
            views has helped there; False: on the patches as they are.
        views_after: updates of the test-time policy that are made after the last training step, for the trained
            network, with no views before, whatever ``joint`` says; 0: it learns along.
        fine_tune: where no policy learns, the last share of the steps that trains on the cases that are set apart.
        hold_out: where no policy learns, cases are set apart all the same, so that trainings can be compared.
        update_every: steps between two updates of the policies; None: by the planned number of steps, at most 100, so
            that a long training takes at most a fifth longer, and a short one still has 500 updates.
        warm_up: steps before the first update; None: 50, but at most a twentieth of the planned number.
        freeze: share of the planned steps after which policies stay as they are.
        learning_rate: of Adam on the training policy's logits; None: by the number of planned updates.
        learning_rate_test_time: likewise.
        pool: samples of a class that are compared with each other (Eq. 10), gathered over several updates if need be.
        paired: compare each sample with its patch as it was before augmentation, too, for one more derivative; None:
            where samples are pooled from several updates, which have other things in common.
        meta_batch: meta-validation patches an update.
        meta_loss: what they are judged by: "ce", "dice" or "both".
        look_ahead: one update of the "real" optimiser, or a "virtual" one of plain gradient descent (the paper).
        derivative: "jvp", "double_backward" or "finite_difference", see `optim.per_sample_hypergradient`.

    Raises:
        ConfigError: a number is out of range, or a learning rate is needed because the host plans no number of steps.

    >>> JointPolicy.name, JointPolicy.needs
    ('joint_policy', ('train', 'meta'))
    """

    name: ClassVar[str] = "joint_policy"
    needs: tuple[str, ...] = ("train", "meta")
    replaces_augmentation: ClassVar[bool] = True
    draws_operations: ClassVar[bool] = True
    classifies: ClassVar[bool] = False

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        preset: str = "nnunet",
        classes: Classes = "foreground",
        extra: Sequence[str] = (),
        without: Sequence[str] = (),
        laterality: Sides = None,
        floor: float = 0.005,
        policy: Given = None,
        magnitude: Magnitude | None = None,
        class_of: Literal["centre", "sampled"] = "centre",
        loss_region: float = 1.0,
        learn_training: bool = True,
        test_time: bool = True,
        test_time_preset: str | None = None,
        learn_test_time: bool = True,
        views: int = 10,
        joint: bool = True,
        views_after: int = 0,
        fine_tune: float = 0.0,
        hold_out: bool = False,
        update_every: int | None = None,
        warm_up: int | None = None,
        freeze: float = 1.0,
        learning_rate: float | None = None,
        learning_rate_test_time: float | None = None,
        pool: int = 4,
        paired: bool | None = None,
        meta_batch: int = 8,
        meta_loss: MetaLoss = "both",
        look_ahead: LookAhead = "real",
        derivative: str = "jvp",
    ) -> None:
        super().__init__(task, seed=seed)
        self._check(views=views, pool=pool, meta_batch=meta_batch)
        check_meta_loss(meta_loss)
        choices = {"class_of": (class_of, ("centre", "sampled")), "look_ahead": (look_ahead, ("real", "virtual")),
                   "derivative": (derivative, tuple(MODES))}  # fmt: skip
        for name, (value, known) in choices.items():
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 < loss_region <= 1:
            raise ConfigError(f"loss_region must be in (0, 1], got {loss_region}")
        if loss_region < 1 and class_of != "centre":
            raise ConfigError("loss_region chooses a class for each patch itself; leave class_of out")
        self.joint, self.meta_batch, self.class_of, self.loss_region = joint, meta_batch, class_of, loss_region
        self.paired = paired
        uses = {"learn_training": learn_training, "test_time": test_time, "learn_test_time": learn_test_time,
                "fine_tune": fine_tune, "hold_out": hold_out}  # fmt: skip
        self.needs = self.streams(**uses)
        self.meta = MetaUse(task.steps, learns=learns(uses), fine_tune=fine_tune, hold_out=hold_out)
        if views_after and not (test_time and learn_test_time):
            raise ConfigError("views_after is for a test-time policy that learns; leave test_time and learn_test_time")
        given = given_policies(policy)
        self.training = training_start(
            task, preset=preset, classes=classes, extra=extra, without=without, laterality=laterality, floor=floor,
            policy=given.training, magnitude=magnitude, learns=learn_training,
        )  # fmt: skip
        self.test_time: TestTimePolicy | None = None
        if test_time:
            sides = self.training.laterality  # that of a given policy, too
            self.test_time = views_start(
                task, test_time_preset or preset, sides, learns=learn_test_time,
                given=None if test_time_preset else given.test_time,
            )  # fmt: skip
        along = learn_training or (test_time and learn_test_time and not views_after)
        self.schedule = PolicySchedule(
            task.steps, update_every=update_every, warm_up=warm_up if along else 0, freeze=freeze
        )
        self.settled = self.schedule.warm_up  # its first update
        # not among `players`: these are updated by gradients of their own, not by the one backward
        self.learners: dict[str, Player] = {}
        self.along: dict[str, Player] = {}  # those of them that learn while training runs
        self._rates = {"training": learning_rate, "test_time": learning_rate_test_time}
        # what is drawn for all ranks together
        self.shared = torch.Generator().manual_seed(seed * 1009 + 500_009)
        self.learning: TrainingLearner | None = None
        self.viewing: ViewLearner | None = None
        if learn_training:
            self.learners["training"] = self.along["training"] = self._learner("training", self.training)
            self.learning = TrainingLearner(
                task, self.learners["training"], self.shared, pool=pool, meta_loss=meta_loss, ahead=look_ahead,
                derivative=derivative,
            )  # fmt: skip
        self.late: LateViews | None = None
        self.views_learn = learn_test_time
        # fixed views are watched, whether they help, where the training policy could be judged on them
        if self.test_time is not None and (learn_test_time or (joint and learn_training)):
            player = Player(self.test_time, LazyAdam(self.test_time.parameters(), lr=1.0))
            if learn_test_time and not views_after:
                player = self.along["test_time"] = self._learner("test_time", self.test_time)
            self.viewing = ViewLearner(task, player, self.shared, self.generator, views=views)
            if learn_test_time:
                self.learners["test_time"] = player
            if views_after:
                self.late, self.finishing = LateViews(self.viewing, views_after, learning_rate_test_time), views_after
        self._share = 1.0  # of the updates for which there are enough samples
        self.views_help = False
        self._means, self._start = Means(), self.training.logits.detach().clone()
        drawn_views = torch.ones(0) if self.test_time is None else self.test_time.probabilities()
        self._start_of_views = drawn_views.detach().clone()
        self._shares = Shares(self.training.classes, task.device)
        self.updates = 0

    @classmethod
    def streams(cls, **options: Any) -> tuple[str, ...]:
        """See `Method.streams`: what learns nothing needs no meta-validation, but for a comparison."""
        return cls.needs if sets_apart(options) else ("train",)

    @classmethod
    def learns_views(cls, **options: Any) -> bool:
        """See `Method.learns_views`."""
        return bool(options.get("test_time", True))

    @staticmethod
    def _check(**numbers: int) -> None:
        for name, value in numbers.items():
            if value < 2:
                raise ConfigError(f"{name} must be at least 2, got {value}")

    def _learner(self, name: str, policy: nn.Module) -> Player:
        return Player(policy, LazyAdam(policy.parameters(), lr=self._rate(name, 1.0)))

    def step(self, batches: Batches) -> dict[str, float]:
        """A training step on patches that are augmented by the policy of their class; now and then, the policies'."""
        batch, drawing = self.meta.batch(batches, self.steps), self.drawing()
        if batch.operations is None:  # otherwise the host's workers have drawn and applied them
            # patches as they were are for the micro-batch whose samples are judged
            batch = drawing(batch, self.generator, self.steps if self.task.last_micro_batch else None)
        assert batch.operations is not None  # noqa: S101  # for the type checker
        chosen, classes = batch.operations, drawing.classes(batch)
        self._shares.add(classes)
        output = self.task.forward(batch.image, batch.extra)
        self.task.notify("forward", {"batch": batch, "output": output})
        losses = self.task.losses(output, batch.label, batch.valid)
        figures = {"loss": losses.mean()}
        self.tell_loss(figures["loss"])
        del output
        self.backward(figures["loss"])
        if self.along and self.task.last_micro_batch and self.schedule.due(self.steps):
            drawn = Sampled(losses.detach(), classes.to(chosen.device), chosen)
            figures |= self._learn(batch, drawn, batches)
        self.update()
        return self._means.add(figures)

    def learning_steps(self, steps: int) -> int:
        """See `Method.learning_steps`: the policies are updated now and then."""
        return (self.schedule.updates or 0) if self.along else 0

    def drawing(self) -> Drawing:
        """See `Method.drawing`."""
        compared = None
        if self.learning is not None and self.paired is not False:
            compared = Compared(self.schedule.due, math.inf if self.paired else self.learning.enough())
        return Drawing(self.training, self.class_of, self.loss_region, self.task.regions, compared)

    def _learn(self, batch: Batch, drawn: Sampled, batches: Batches) -> dict[str, Tensor]:
        """One update of the policies, between the backward and the update of the network."""
        gradients = self.task.gradients()
        if not all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
            return {}  # the network's update will be skipped, too
        meta = batches.next("meta")
        figures: dict[str, Tensor] = {}
        if self.learning is not None:
            self._share = self.learning.share(len(drawn.values))
        for name, player in self.along.items():
            rate = self._rate(name, self._share if name == "training" else 1.0)
            player.optimizer.param_groups[0]["lr"] = rate * self.schedule.decay(self.steps)
        if self.learning is not None:
            judged = self.learning.judge(batch, drawn, gradients, self._seen(meta))
            if judged is not None:
                figures["meta_loss"] = judged[0]
                self._improve(judged[1])
        if self.viewing is not None and self.late is None:
            if self.views_learn:
                figures |= self.viewing.learn(meta)
            else:
                self.viewing.watch(meta)
        self.updates += 1
        return figures

    @torch.no_grad()
    def _seen(self, meta: Batch) -> Batch:
        """What the training policy is judged on: meta-validation patches, or views of them (Eq. 16)."""
        if self.test_time is None or not self.joint or not self.views_help:
            return meta.cropped()
        views, _ = self.test_time.sample(len(meta.image), self.generator)
        return view_batch(self.test_time, meta, views, self.generator, regions=self.task.regions)

    def _improve(self, drawn: Sampled) -> None:
        """What is known of the samples reaches the training policy."""
        assert self.learning is not None  # noqa: S101  # for the type checker: something was judged
        self.learning.improve(drawn)

    def finish(self, batches: Batches) -> dict[str, float]:
        """See `Method.finish`: with ``views_after`` the test-time policy learns now."""
        if self.late is None:
            return {}
        return self.late.learn(batches, self.steps, self.finishing, self.task.notify)
