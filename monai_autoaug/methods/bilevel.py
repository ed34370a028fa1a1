# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Online bilevel optimisation: an augmenter that lowers the loss on validation patches after the network's next update.

Mounsaveng et al. 2021, "Learning Data Augmentation with Online Bilevel Optimization for Image Classification". A small
network makes transformations from noise. The segmentation network is trained on transformed patches as usual; every J
updates the augmenter gets the gradient, through the last K of these updates, of the loss that the updated network has
on patches of other training cases, which nothing has augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters import ParametricAugmenter
from monai_autoaug.augmenters.parametric import Size, Transformations
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Batches, Method, Player, Task
from monai_autoaug.methods.bilevel_arms import Predefined, flipped, invariant_bounds
from monai_autoaug.methods.bilevel_checks import Augmentation, check_bilevel
from monai_autoaug.methods.collapse import collapse_warnings
from monai_autoaug.methods.hyper_learner import HyperLearner
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.parametric_figures import parametric_figures
from monai_autoaug.methods.parts import transform
from monai_autoaug.methods.replay import detached, whole_loss
from monai_autoaug.networks import add_spatial_transformer, built

__all__ = ["Bilevel"]

_ENOUGH = 50  # updates below which an augmenter has hardly moved


class Bilevel(Method):
    """Learns a distribution of transformations by truncated hypergradients (see `ParametricAugmenter`).

    The gradient goes through the update that the network's own optimiser makes, with its momentum, weight decay and
    clipping, and through image and label alike. The pass over validation patches changes nothing: no statistics, random
    numbers, buffers or optimiser. In all passes norms take the batch's own statistics, as in training, and dropout is
    off; they run in float32. Where training does so, K is 1 and the derivative is "double_backward", the graph of
    the training step itself is differentiated again, with its dropout, which saves one pass.

    ``fidelity="paper"`` has J = 1 and the paper's augmenter, which SGD moves (0.2, momentum 0.9, weight decay 0.01). By
    default J = 10, and Adam moves it, since a hypergradient is as small as the network's learning rate. With J of 10
    and K of 1 a training takes about a third longer. The window of K > 1 begins anew with each epoch, in a resumed run
    as in one that never stopped; a checkpoint within an epoch doesn't hold it.

    Both hosts put it over whatever augmentation they have themselves. In nnU-Net that is its own, unless the option
    ``base_augmentation`` says "mirror", which is the paper's fixed flip, or "none".

    Validation patches are those of the host's stream "meta": by default of a fifth of the training cases, drawn anew
    each epoch (the hosts' options ``meta_cases`` and ``meta_split``, of which "fixed" is the hold-out).

    Args:
        task: what the host owns; with ``augmentation="invariant"`` its network has been through `prepare`.
        seed: of noise, flips and initial weights.
        image_channels: channels of the image.
        augmentation: "learned", or what the paper compares with: "predefined" (drawn uniformly within the bounds),
            "invariant" (a spatial transformer in front of the network, trained with it on the same patches and in
            place when it predicts, see `networks.add_spatial_transformer`) or "none".
        transformations: "full", "affine", "translation" or "intensity".
        size: of the augmenter, "small", "medium" or "large".
        fidelity: "default" or "paper".
        bounds: options of `ParametricAugmenter` by name, for example ``{"rotation": 30.0}``; of "predefined" with
            ``fidelity="paper"`` the defaults are the paper's: translations of an eighth of the size, 10 degree, factors
            of 0.5 to 2, no shear.
        start: see `ParametricAugmenter`.
        magnitude: of "predefined": factor on all bounds, above 0 and up to 1, for which the paper's "validated
            magnitude" tries several (see `bilevel_comparisons`).
        flip: axes, counted from 0, along which patches are mirrored half of the time each, before anything else; leave
            out the one between left and right where labels tell these apart.
        unroll: K, updates that the gradient goes back through.
        update_every: J, updates of the network between two of the augmenter; None: 10, or 1 with ``fidelity="paper"``.
        warm_up: updates of the network before the augmenter's first one.
        derivative: "double_backward", "jvp" or "finite_difference" (the least memory), see `optim.mixed_gradient`.
        meta_batch: validation patches an update of the augmenter.
        hold_out: the validation cases are set apart where nothing learns from them, too, so that trainings can be
            compared.
        learning_rate: of the augmenter; None: 0.01, or 0.2 with ``fidelity="paper"`` (0.1 for ImageNet there).
        weight_decay: likewise; None: 0, or 0.01 with ``fidelity="paper"`` (0.1 for ImageNet there).

    Raises:
        ConfigError: an option has no such value, or no use together with others.

    Source: Mounsaveng et al. 2021, sections 3 and 4.2; where it is silent, its released code, but for what that leaves
    out of the method: momentum and weight decay of the real optimiser, K and J, and the split drawn anew each epoch.

    >>> Bilevel.name, Bilevel.needs
    ('bilevel', ('train', 'meta'))
    """

    name: ClassVar[str] = "bilevel"
    needs: tuple[str, ...] = ("train", "meta")
    meta_share: ClassVar[float] = 0.2
    meta_split: ClassVar[str] = "resampled"

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        image_channels: int = 1,
        augmentation: Augmentation = "learned",
        transformations: Transformations = "full",
        size: Size = "small",
        fidelity: str = "default",
        bounds: Mapping[str, float] | None = None,
        start: float | None = None,
        magnitude: float = 1.0,
        flip: Sequence[int] = (),
        unroll: int = 1,
        update_every: int | None = None,
        warm_up: int = 0,
        derivative: str = "double_backward",
        meta_batch: int = 2,
        hold_out: bool = False,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        super().__init__(task, seed=seed)
        paper = fidelity == "paper"
        self.augmentation, self.transformations = augmentation, transformations
        self.size, self.fidelity = size, fidelity
        self.bounds, self.magnitude, self.flip = dict(bounds or {}), magnitude, tuple(flip)
        self.unroll, self.warm_up, self.derivative, self.meta_batch = unroll, warm_up, derivative, meta_batch
        self.update_every = (1 if paper else 10) if update_every is None else update_every
        self.learning_rate = (0.2 if paper else 0.01) if learning_rate is None else learning_rate
        self.weight_decay = (0.01 if paper else 0.0) if weight_decay is None else weight_decay
        check_bilevel(self, start=start)
        self.needs = self.streams(augmentation=augmentation, hold_out=hold_out)
        # its first update, in which Adam, of the network, has something to go by
        late = max(warm_up, 1)
        self.settled = late + (-late - 1) % self.update_every if augmentation == "learned" else 0
        self.augmenter: ParametricAugmenter | None = None
        self.learner: HyperLearner | None = None
        self.predefined: Predefined | None = None
        if augmentation == "learned":
            self.augmenter = self._make(image_channels, start, seed)
            self.learner = HyperLearner(task, self.augmenter, unroll=unroll, derivative=derivative)
            self.players["augmenter"] = Player(self.augmenter, self._optimizer())
        elif augmentation == "predefined":
            self.predefined = Predefined(
                task.spatial_dims, image_channels, transformations, self.bounds, magnitude, paper=paper
            ).to(task.device)
        self.updates = 0
        self._means, self._warnings = Means(), list[str]()
        self._shape: tuple[int, ...] | None = None

    @classmethod
    def streams(cls, **options: Any) -> tuple[str, ...]:
        """See `Method.streams`: what learns nothing from validation patches needs none, but for a comparison."""
        learns = options.get("augmentation", "learned") == "learned"
        return ("train", "meta") if learns or options.get("hold_out", False) else ("train",)

    @classmethod
    def prepare(cls, network: nn.Module, **options: Any) -> nn.Module:
        """Put the spatial transformer of ``augmentation="invariant"`` in front of the network."""
        if options.get("augmentation", "learned") != "invariant":
            return network
        paper = options.get("fidelity", "default") == "paper"
        bounds = invariant_bounds(options.get("transformations", "full"), options.get("bounds") or {}, paper=paper)
        add_spatial_transformer(network, bounded=bounds is not None)
        if bounds is not None:
            transformer: Any = network.get_submodule("spatial_transformer")
            transformer.bounds.copy_(torch.tensor(bounds))
        return network

    def _make(self, channels: int, start: float | None, seed: int) -> ParametricAugmenter:
        """The augmenter, the same on every rank."""
        make = partial(
            ParametricAugmenter, self.task.spatial_dims, channels, transformations=self.transformations,
            size=self.size, fidelity=self.fidelity, start=start, **self.bounds,
        )  # fmt: skip
        return built(make, seed).to(self.task.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.augmenter is not None  # noqa: S101  # for the type checker: it is made before
        given, rate, decay = self.augmenter.parameters(), self.learning_rate, self.weight_decay
        if self.fidelity == "paper":
            return torch.optim.SGD(given, rate, momentum=0.9, weight_decay=decay)
        return torch.optim.AdamW(given, rate, weight_decay=decay, eps=1e-12)

    def due(self, step: int) -> bool:
        """Whether the augmenter is updated in a step, counted from 0."""
        return step >= self.warm_up and (step + 1) % self.update_every == 0

    def _counts(self, step: int) -> bool:
        """Whether an update of the network is among the last K before the augmenter's next one."""
        if self.unroll > self.update_every:
            return step + self.unroll > self.warm_up
        wait = -(step + 1) % self.update_every
        return wait < self.unroll and self.due(step + wait)

    def step(self, batches: Batches) -> dict[str, float]:
        """A training step on transformed patches; every J updates, before the network's own, the augmenter's."""
        task = self.task
        batch = flipped(batches.next("train"), self.flip, self.generator)
        learning = self.learner is not None and self._counts(self.steps)
        share = learning and self.learner is not None and self.learner.shares()
        seen = self._augmented(batch, learning=learning, share=share)
        output = task.forward(seen.image, seen.extra)
        task.notify("forward", {"batch": seen, "output": output})
        loss = task.losses(output, seen.label, seen.valid).mean()
        self.tell_loss(loss)
        figures = {"loss": loss}
        if share:
            self._shared_backward(whole_loss(task, output, seen), seen)
        else:
            del output
            self.backward(loss)
        if learning and task.last_micro_batch:
            figures |= self._learn(batches)
        self.update()
        return self._means.add(figures)

    def _shared_backward(self, loss: Tensor, seen: Batch) -> None:
        """`Method.backward` whose graph is differentiated again; the two give the network the same gradient."""
        assert self.learner is not None  # noqa: S101  # for the type checker
        if self.task.first_micro_batch:
            for optimizer, _ in self._optimizers().values():
                optimizer.zero_grad(set_to_none=True)
        self.learner.backward(loss, seen)
        self.task.notify("backward", {})

    def _augmented(self, batch: Batch, *, learning: bool, share: bool) -> Batch:
        """What the network sees; with ``learning`` it is kept, with its graph, for the augmenter's next update."""
        self._shape = tuple(batch.image.shape)
        if self.predefined is not None:
            move = self.predefined(batch, self.generator)
            return transform(batch, move, regions=self.task.regions)
        if self.augmenter is None or self.learner is None:
            return batch.cropped()
        noise = self.augmenter.sample_noise(len(batch.image), self.generator)
        parameters = self.learner.copies() if learning else {}
        with torch.set_grad_enabled(learning), self.learner.augment(parameters):
            move = self.augmenter(batch.image, noise, spacing=batch.spacing)
            moved = transform(batch, move, regions=self.task.regions)
        return self.learner.see(moved, parameters, share=share) if learning else detached(moved)

    def _learn(self, batches: Batches) -> dict[str, Tensor]:
        """Between the network's backward and its update: keep the update; where it is due, the augmenter's gradient."""
        assert self.learner is not None  # noqa: S101  # for the type checker
        assert self.augmenter is not None  # noqa: S101  # likewise
        if not self.learner.coming() or not self.due(self.steps):
            return {}
        again = self.unroll > self.update_every
        loss, gradient = self.learner.gradient(batches.next("meta").cropped(), again=again)
        if not again:
            self.learner.forget()
        scale = self.task.precision.scale  # the update divides by it
        for name, parameter in self.augmenter.named_parameters():
            parameter.grad = gradient[name].to(parameter) * scale
        self.updates += 1
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        return {"meta_loss": loss, "hypergradient": norm}

    def update(self) -> None:
        """See `Method.update`; the augmenter has a gradient in its own updates only, and rests in others."""
        super().update()
        if self.augmenter is not None:
            for parameter in self.augmenter.parameters():
                parameter.grad = None

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean figures of the epoch, and what the augmenter has become."""
        figures = self._means.take()
        if self.learner is None or self.augmenter is None:
            return figures
        self.learner.forget()  # the validation cases change with the epoch, and a resumed run begins here
        if self._shape is not None:
            probe = torch.Generator(self.generator.device).manual_seed(epoch)  # looking changes nothing
            figures |= parametric_figures(self.augmenter, self._shape, probe)
        self._warnings = collapse_warnings(figures, [self.augmenter.kind])
        return figures | {"augmenter_updates": float(self.updates)}

    def announcement(self) -> list[str]:
        """How often the augmenter will be updated."""
        if self.learner is None:
            return []
        often = f"every {self.update_every} updates of the network" if self.update_every > 1 else "with the network"
        planned = self._planned()
        times = "" if planned is None else f", {planned} times in all"
        return [f"The augmenter is updated {often}{times}, through the last {self.unroll} of them"]

    def _planned(self) -> int | None:
        return None if self.task.steps is None else self._updates(self.task.steps)

    def _updates(self, steps: int) -> int:
        return max(steps // self.update_every - self.warm_up // self.update_every, 0)

    def learning_steps(self, steps: int) -> int:
        """See `Method.learning_steps`: the augmenter is updated now and then."""
        return self._updates(steps) if self.learner is not None else 0

    def warnings(self) -> list[str]:
        """What the figures of the last epoch say of a collapse, and that there are too few updates."""
        planned = self._planned()
        if self.learner is None or planned is None or planned >= _ENOUGH:
            return self._warnings
        few = (
            f"the augmenter is updated {planned} times only, which hardly moves it: at least {_ENOUGH} are needed;"
            " train longer or lower update_every"
        )
        return [few, *self._warnings]

    def augmenters(self) -> dict[str, nn.Module]:
        """What was learned: "parametric"."""
        return {} if self.augmenter is None else {self.augmenter.kind: self.augmenter}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds the number of the augmenter's updates."""
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self.updates = state["updates"]
        if self.learner is not None:
            self.learner.forget()
