# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Task-driven, semi-supervised augmentation: generators learn from the task and from unlabelled images, then freeze.

Chaitanya et al. 2019, "Semi-Supervised and Task-Driven Data Augmentation". A generator of deformations and one of
intensity changes are learned one after the other, each with a segmentation network and a discriminator of its own
(Eqs. 4-6). Then both are fixed, the segmentation network begins anew and trains on what they make (Eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters import Augmenter
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.affine_baseline import AFFINE_PARTS, check_affine
from monai_autoaug.methods.base import Batches, Method, Player, Task
from monai_autoaug.methods.collapse import collapse_warnings
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.mixup import mixup as mixed_up
from monai_autoaug.methods.parts import CLEAN, concatenate, transform
from monai_autoaug.methods.phases import Phase
from monai_autoaug.methods.task_driven_checks import check_task_driven
from monai_autoaug.methods.task_driven_figures import cost_of_phases, generator_figures
from monai_autoaug.methods.task_driven_patches import PatchMaker, field_size, for_task
from monai_autoaug.methods.task_driven_players import make_discriminator, make_generators
from monai_autoaug.methods.task_driven_realism import Realism
from monai_autoaug.methods.weighted_cross_entropy import weighted_cross_entropy

__all__ = ["TaskDriven"]

Augmentation = Literal["both", "deformation", "appearance", "elastic", "contrast", "none"]
NETWORK = "network"  # the last phase
_KINDS: dict[str, tuple[str, ...]] = {
    "both": ("deformation", "appearance"), "deformation": ("deformation",), "appearance": ("appearance",),
}  # fmt: skip


class TaskDriven(Method):
    """Deformation and intensity generators that help the task and look like the unlabelled images; then frozen.

    While a generator G learns, each batch is half as it is and half transformed, and in one backward

    - the segmentation network minimises its loss on both halves;
    - G minimises that loss too, through image and label (the task), ``weight_adversarial`` times the loss of being
      found out by the discriminator D, and ``weight_big`` times minus the mean size of its field (in voxels, or in
      standard deviations), without which it tends to the identity;
    - D tells transformed patches from real ones: untransformed labelled patches and unlabelled ones.

    In the last phase the generators are fixed and a fresh network trains on half a batch of originals and half of what
    they make: deformed patches, patches of other intensities, and deformed ones with other intensities. Everything,
    unlabelled images included, passes the affine augmentation of the paper first, in the same resampling. Of the last
    phase the network of the best validation Dice is kept.

    ``fidelity="paper"`` is the paper's form of the networks: generators at full resolution with batch norm, free fields
    and a linear last layer (they run in evaluation mode once they are fixed, as in the released code), the five-layer
    discriminator that sees whole patches as they are, the saturating loss (Eq. 5). The default form is bounded,
    diffeomorphic, four times as coarse, begins as a random policy that it learns to shift and spread, and compares
    patches after equally many resamplings and without their border.

    Where the paper is silent or can't be meant for volumes: the norm of the "big" term is a mean, as in the released
    code; how many of D's real patches are labelled is ``labelled_share``; rotations are about one axis (see
    `affine_baseline`). The released code doesn't let the task's gradient into the generators and feeds them with their
    own output; here the paper's equations are followed.

    Args:
        task: what the host owns.
        seed: of noise, draws and initial weights.
        image_channels: channels of the image.
        augmentation: "both" generators, "deformation" or "appearance" (intensity) alone; or what the paper compares
            with: random "elastic" deformations, random "contrast" and brightness, "none".
        affine: the affine augmentation under all of these: of each patch nothing or one of "rotation", "scaling",
            "turn", "flip" (see `affine_baseline`); empty: none. nnU-Net's trainers leave it out where nnU-Net's own
            augmentation is under the learned one, unless it is asked for.
        flip_axis: of "flip", counted from 0 or from the end.
        mixup: half of each batch is made of pairs from the whole batch, originals and generated ones alike.
        mixup_alpha: of the Beta distribution of their shares.
        unlabelled: whether D's real patches come of unlabelled images, too.
        labelled_share: how many of them are labelled (0 in the released code); without ``unlabelled`` all are.
        weight_task: of the task's gradient in the generators; 0: they don't know of it.
        weight_adversarial: lambda_adv; 0: no discriminator.
        weight_big: lambda_big.
        weighted_loss: the paper's weighted cross-entropy instead of the host's loss.
        weight_background: its weight of background voxels while generators learn.
        weight_foreground: of all others.
        weight_background_later: of background voxels in the last phase: 0 in the paper, which then says nothing about
            what is predicted there; 0.1 in the released code.
        generator_length: length of a generator's phase, the last one's being 1.
        fidelity: "default" or "paper".
        base: of the default form: "random" or "identity" (see `TrunkAugmenter`); None: "random".
        noise_size: length of the noise vector.
        width: channels of the generators.
        bounds: options of the generators by kind, for example ``{"deformation": {"displacement": 4.0}}``.
        warm_up: updates at the beginning of a generator's phase in which the segmentation network trains alone (400 in
            the released code); None: 25, or 0 with ``fidelity="paper"``.
        discriminator_resamples: D compares patches after equally many resamplings and without their outer eighth; None:
            False with ``fidelity="paper"``.
        saturating: the generators' loss is log(1 - D) (Eq. 5) or, False, -log D; None: True with ``fidelity="paper"``.
        learning_rate_generator: of Adam with betas 0.9 and 0.999; None: 1e-4, the released code's own, or with
            ``fidelity="paper"`` the paper's 1e-3, by which a generator of the default form runs into its bounds, where
            fields are alike everywhere and move nothing.
        learning_rate_discriminator: likewise, 1e-3 in both forms.

    Raises:
        ConfigError: an option has no such value or no use together with others.

    Source: Chaitanya et al. 2019, sections 2 to 4.

    >>> TaskDriven.streams(), TaskDriven.streams(unlabelled=False)
    (('train', 'unlabelled'), ('train',))
    """

    name: ClassVar[str] = "task_driven"
    keeps_best = True
    over_augmentation: ClassVar[Mapping[str, Any]] = {"affine": ()}  # which rotates, scales and mirrors already
    classifies: ClassVar[bool] = False

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        image_channels: int = 1,
        augmentation: Augmentation = "both",
        affine: Sequence[str] = AFFINE_PARTS,
        flip_axis: int = -1,
        mixup: bool = False,
        mixup_alpha: float = 0.1,
        unlabelled: bool = True,
        labelled_share: float = 0.5,
        weight_task: float = 1.0,
        weight_adversarial: float = 1.0,
        weight_big: float = 1e-3,
        weighted_loss: bool = False,
        weight_background: float = 0.1,
        weight_foreground: float = 0.3,
        weight_background_later: float = 0.0,
        generator_length: float = 1.0,
        fidelity: str = "default",
        base: str | None = None,
        noise_size: int = 100,
        width: int = 16,
        bounds: Mapping[str, Mapping[str, float]] | None = None,
        warm_up: int | None = None,
        discriminator_resamples: bool | None = None,
        saturating: bool | None = None,
        learning_rate_generator: float | None = None,
        learning_rate_discriminator: float = 1e-3,
    ) -> None:
        super().__init__(task, seed=seed)
        paper = fidelity == "paper"
        self.kinds = _KINDS.get(augmentation, ())
        self.augmentation, self.fidelity, self.image_channels = augmentation, fidelity, image_channels
        self.affine, self.flip_axis = tuple(affine), flip_axis
        self.mixup, self.mixup_alpha = mixup, mixup_alpha
        self.unlabelled, self.labelled_share = unlabelled, labelled_share if unlabelled else 1.0
        self.weight_task, self.weight_adversarial, self.weight_big = weight_task, weight_adversarial, weight_big
        self.weighted_loss, self.weight_background, self.weight_foreground = (
            weighted_loss, weight_background, weight_foreground,
        )  # fmt: skip
        self.weight_background_later = weight_background_later
        self.noise_size, self.width = noise_size, width
        self.warm_up = (0 if paper else 25) if warm_up is None else warm_up
        self.resamples = not paper if discriminator_resamples is None else discriminator_resamples
        self.saturating = paper if saturating is None else saturating
        if learning_rate_generator is None:
            learning_rate_generator = 1e-3 if paper else 1e-4
        self.learning_rates = learning_rate_generator, learning_rate_discriminator
        check_affine(self.affine, flip_axis, task.spatial_dims)
        check_task_driven(
            weights={"weight_task": weight_task, "weight_adversarial": weight_adversarial, "weight_big": weight_big,
                     "weight_background": weight_background, "weight_foreground": weight_foreground,
                     "weight_background_later": weight_background_later, "warm_up": self.warm_up},
            sizes={"noise_size": noise_size, "width": width},
            positive={"mixup_alpha": mixup_alpha, "generator_length": generator_length},
            labelled_share=labelled_share, fidelity=fidelity, kinds=self.kinds, bounds=bounds or {}, base=base,
            regions=task.regions, weighted_loss=weighted_loss,
        )  # fmt: skip
        names = [*self.kinds, NETWORK]
        self.phases = tuple(
            Phase(name, 1.0 if name == NETWORK else generator_length, fresh=number > 0)
            for number, name in enumerate(names)
        )
        self.needs = self.streams(
            augmentation=augmentation, unlabelled=unlabelled, labelled_share=labelled_share,
            weight_adversarial=weight_adversarial,
        )  # fmt: skip
        self.generators = make_generators(
            task, self.kinds, image_channels, seed=seed, fidelity=fidelity, base=base, bounds=bounds or {},
            noise_size=noise_size, width=width,
        )  # fmt: skip
        self.discriminator: nn.Module | None = None
        self.patches = PatchMaker(
            task, self.generators, self.generator, augmentation=augmentation, affine=self.affine, flip_axis=flip_axis,
            noise_size=noise_size,
        )  # fmt: skip
        self.realism = Realism(
            self.patches, weight=weight_adversarial, labelled_share=self.labelled_share, saturating=self.saturating,
            resamples=self.resamples,
        )  # fmt: skip
        self._means = Means()
        self._probe: Tensor | None = None
        self._warnings: list[str] = []
        self.on_phase()

    @classmethod
    def streams(cls, **options: Any) -> tuple[str, ...]:
        """See `Method.streams`: unlabelled images are looked at by a discriminator, if there is one."""
        looks = options.get("weight_adversarial", 1.0) > 0 and options.get("augmentation", "both") in _KINDS
        wanted = options.get("unlabelled", True) and options.get("labelled_share", 0.5) < 1
        return ("train", "unlabelled") if looks and wanted else ("train",)

    def on_phase(self) -> None:
        """One generator learns, with a discriminator of its own; all others stay as they are."""
        now = self.phase.name
        for kind, generator in self.generators.items():
            generator.requires_grad_(kind == now).train(kind == now).zero_grad()
        self.players, self.discriminator, self._probe, self._warnings = {}, None, None, []
        if now == NETWORK:
            return
        rates = self.learning_rates
        generator = self.generators[now]
        self.players["generator"] = Player(generator, torch.optim.Adam(generator.parameters(), rates[0]))
        if self.weight_adversarial:
            network = make_discriminator(self.task, now, self.image_channels, seed=self.seed, fidelity=self.fidelity)
            self.discriminator = network
            self.players["discriminator"] = Player(network, torch.optim.Adam(network.parameters(), rates[1]))

    def step(self, batches: Batches) -> dict[str, float]:
        """One update of all players of this phase."""
        batch = batches.next("train")
        figures = self._train(batch) if self.phase.name == NETWORK else self._learn(batch, batches)
        return self._means.add(figures)

    # --- a generator learns -------------------------------------------------------------------------------------------

    def _learn(self, batch: Batch, batches: Batches) -> dict[str, Tensor]:
        """Eqs. 4 to 6 in one backward: network, generator and discriminator."""
        kind = self.phase.name
        source, other = self.patches.divided(batch)
        learning = self.phase_steps >= self.warm_up
        with torch.set_grad_enabled(learning):
            move = self.patches.move(source, (kind,))
            moved = transform(source, move, regions=self.task.regions)
        with torch.no_grad():
            clean = self.patches.original(other)
        loss, losses = self._segment({CLEAN: clean, kind: for_task(moved, self.weight_task)})
        total, figures = loss, {"loss": loss} | losses
        if learning:
            big = field_size(move)
            total = total - self.weight_big * big
            figures["field_size"] = big
            if self.discriminator is not None:
                realism, found = self.realism.game(
                    self.discriminator, moved, clean, other, batches, resampled=move.displacement is not None
                )
                total, figures = total + realism, figures | found
        self.descend(total)
        self._probe = source.image[:1].detach()
        return figures

    # --- the network trains -------------------------------------------------------------------------------------------

    def _train(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2: half a batch of originals, half of what is made of the other half."""
        with torch.no_grad():
            parts = self.patches.parts(batch)
        loss, losses = self._segment(parts, mix=self.mixup)
        self.descend(loss)
        return {"loss": loss} | losses

    # --- both ---------------------------------------------------------------------------------------------------------

    def _segment(self, parts: Mapping[str, Batch], *, mix: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The segmentation network's mean loss on all parts, in one forward, and that of each part."""
        task, whole = self.task, concatenate(list(parts.values()))
        names, sizes = list(parts), [len(b.image) for b in parts.values()]
        if mix and len(whole.image) > 1:
            count = len(whole.image) // 2 if len(names) == 1 else len(whole.image) - sizes[0]
            rows = torch.arange(len(whole.image) - count, len(whole.image))
            whole = mixed_up(whole, rows, self.mixup_alpha, self.generator)
            names, sizes = [CLEAN, "mixup"], [len(whole.image) - count, count]
        output = task.forward(whole.image, whole.extra)
        task.notify("forward", {"batch": whole, "output": output})
        losses = self._losses(output, whole)
        loss = losses.mean()
        self.tell_loss(loss)
        return loss, {f"loss_{n}": x.mean() for n, x in zip(names, losses.split(sizes), strict=True)}

    def _losses(self, output: Any, batch: Batch) -> Tensor:
        if not self.weighted_loss:
            return self.task.losses(output, batch.label, batch.valid)
        background = self.weight_background_later if self.phase.name == NETWORK else self.weight_background
        return weighted_cross_entropy(
            output, batch.label, batch.valid, background=background, foreground=self.weight_foreground
        )

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean figures of the epoch and, while a generator learns, what tells its collapse."""
        figures, kind = self._means.take(), self.phase.name
        if self._probe is None or kind not in self.generators:
            self._warnings = []
            return figures
        probe = torch.Generator(self.generator.device).manual_seed(epoch)  # looking must not change what comes next
        figures |= generator_figures(kind, cast(Augmenter, self.generators[kind]), self._probe, probe)
        if figures.get("loss_clean"):
            figures[f"{kind}_loss_ratio"] = figures[f"loss_{kind}"] / figures["loss_clean"]
        # a generator that rests is what it was at the start by design
        self._warnings = collapse_warnings(figures, [kind]) if self.phase_steps > self.warm_up else []
        return figures

    def warnings(self) -> list[str]:
        """What the figures of the last epoch say of a collapse."""
        return self._warnings

    def announcement(self) -> list[str]:
        """What the phases are, and what they cost."""
        return cost_of_phases(self.phases, self.task.steps)

    def augmenters(self) -> dict[str, nn.Module]:
        """The generators by kind."""
        return dict(self.generators.items())

    def _held(self) -> dict[str, nn.Module]:
        """See `Method._held`; adds the generators that don't learn now."""
        frozen = {kind: g for kind, g in self.generators.items() if kind != self.phase.name}
        return super()._held() | {f"the {kind} generator": g for kind, g in frozen.items()}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds all generators, of which one is a player at most, and whose turn it is."""
        return super().state_dict() | {
            "generators": self.generators.state_dict(), "turns": [*self.patches.turns, self.realism.count],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self.generators.load_state_dict(state["generators"])
        *turns, self.realism.count = state["turns"]
        self.patches.turns = turns
