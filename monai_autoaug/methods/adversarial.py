# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Regularised adversarial augmentation: generators against the segmentation network and a discriminator, one backward.

Gao et al. 2021, "Enabling Data Diversity: Efficient Automatic Augmentation via Regularized Adversarial Training". What
each player minimises (Eqs. 2-5): the segmentation network its loss on transformed patches; the generators minus that
loss, plus ``lambda`` times the realism game, plus ``gamma`` times their magnitude; the discriminator the binary
cross-entropy of real and transformed patches. Gradient reversal makes one loss and one backward of it (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_autoaug.augmenters import Transformation
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.augmented import AugmentedMethod
from monai_autoaug.methods.balancer import Balancer
from monai_autoaug.methods.base import Batches, Player, Task
from monai_autoaug.methods.collapse import collapse_figures, collapse_warnings
from monai_autoaug.methods.parts import Part, interior, jitter, transform
from monai_autoaug.networks.discriminators import Discriminator, adversarial_loss, discriminate_frozen
from monai_autoaug.networks.gradient_reversal import reverse_gradient

__all__ = ["Adversarial"]


class Adversarial(AugmentedMethod):
    """Regularised adversarial training of affine, deformation and appearance augmenters (see `AugmentedMethod` too).

    ``fidelity="paper"`` is the paper's form: full-resolution generators, ``bound * tanh(G(x, z))``, the saturating
    loss, fixed weights lambda = 1 and gamma = 0.1 on penalties in [-1, 1] coordinates. On small data it drifts to the
    identity or to its bounds. The default learns a shift of a random policy instead, with weights that are ratios:

    - the generators' gradient is scaled to unit root mean square at each head's output, so that ``weight_prior`` alone
      sets how far from the random policy a direction that is always harder can pull: ``1 / weight_prior`` before tanh;
    - the realism game's gradient at the transformed image is ``weight_discriminator`` times the segmentation network's;
    - the magnitude penalty's gradient at each transformation is ``weight_magnitude`` times that of the two games.

    Args:
        task: what the host owns; in combined mode its network has been through `prepare`.
        seed: seed of partition, noise and initial weights.
        image_channels: channels of the image.
        mode: "combined", "affine", "deformation" or "appearance".
        auxiliary_norms: norm groups for the augmented parts in combined mode.
        fidelity: "default" or "paper".
        base: "random" or "identity"; None: as ``fidelity`` has it.
        noise_size: length of the noise vector.
        width: channels of the generators.
        image_condition: False is the paper's ablation without image condition.
        bounds: options of single augmenters by kind.
        warm_up: steps over which the augmentation grows from the identity; the discriminator rests meanwhile. None:
            25, or 0 with ``fidelity="paper"``.
        discriminator: False is the paper's ablation without discriminator.
        discriminator_resamples: real patches pass a resampling by less than a voxel, and of all patches only the
            interior is looked at, so that neither blur nor corners give the transformed ones away. False is the
            paper's form.
        saturating: the generators' realism loss is log(1 - D) (Eq. 4) or, False, -log D with D held fixed.
            None: True with ``fidelity="paper"``.
        weight_discriminator: lambda.
        weight_magnitude: gamma.
        weight_prior: pull towards the random policy (not in the paper, where it is 0).
        balance: weights are gradient ratios as said above; None: False with ``fidelity="paper"``.
        learning_rate_generator: of Adam with betas 0.5 and 0.999.
        learning_rate_discriminator: likewise.

    Raises:
        ConfigError: as `AugmentedMethod`; or a negative weight.

    >>> Adversarial.name, Adversarial.needs
    ('adversarial', ('train',))
    """

    name: ClassVar[str] = "adversarial"

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        image_channels: int = 1,
        mode: str = "combined",
        auxiliary_norms: bool = True,
        fidelity: str = "default",
        base: str | None = None,
        noise_size: int = 128,
        width: int = 16,
        image_condition: bool = True,
        bounds: Mapping[str, Mapping[str, Any]] | None = None,
        warm_up: int | None = None,
        discriminator: bool = True,
        discriminator_resamples: bool = True,
        saturating: bool | None = None,
        weight_discriminator: float = 1.0,
        weight_magnitude: float = 0.1,
        weight_prior: float | None = None,
        balance: bool | None = None,
        learning_rate_generator: float = 2e-4,
        learning_rate_discriminator: float = 2e-4,
    ) -> None:
        super().__init__(
            task, seed=seed, image_channels=image_channels, mode=mode, auxiliary_norms=auxiliary_norms,
            fidelity=fidelity, base=base, noise_size=noise_size, width=width, image_condition=image_condition,
            bounds=bounds, warm_up=(0 if fidelity == "paper" else 25) if warm_up is None else warm_up,
        )  # fmt: skip
        paper = fidelity == "paper"
        weights = {"weight_discriminator": weight_discriminator, "weight_magnitude": weight_magnitude,
                   "weight_prior": weight_prior}  # fmt: skip
        for name, weight in weights.items():
            if weight is not None and weight < 0:
                raise ConfigError(f"{name} must be at least 0, got {weight}")
        self.saturating = paper if saturating is None else saturating
        self.balance = not paper if balance is None else balance
        self.weight_discriminator, self.weight_magnitude = weight_discriminator, weight_magnitude
        self.weight_prior = (0.0 if paper else 1.0) if weight_prior is None else weight_prior
        self.discriminator_resamples = discriminator_resamples
        self.players["generators"] = Player(
            self.generators, torch.optim.Adam(self.generators.parameters(), learning_rate_generator, betas=(0.5, 0.999))
        )
        self.discriminator: Discriminator | None = None
        if discriminator:
            self.discriminator = self._make_discriminator(image_channels, paper, seed)
            self.players["discriminator"] = Player(
                self.discriminator,
                torch.optim.Adam(self.discriminator.parameters(), learning_rate_discriminator, betas=(0.5, 0.999)),
            )
            self.needs = ("train", "real")
        places = [f"{kind}_{what}" for kind in self.kinds for what in ("games", "penalty")]
        self.balancer = Balancer((*self.kinds, "task", "realism", *places), task.device)
        self._latest: Part | None = None
        self._warnings: list[str] = []

    def _make_discriminator(self, channels: int, paper: bool, seed: int) -> Discriminator:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + 1)
            network = Discriminator(
                self.task.spatial_dims, channels, width=16 if paper else 8, norm="batch" if paper else "instance",
                halve=not paper,
            )  # fmt: skip
        return network.to(self.task.device)

    def step(self, batches: Batches) -> dict[str, float]:
        """One backward for segmentation network, generators and discriminator (Algorithm 1)."""
        ramp = self.ramp
        with ExitStack() as taps:
            if self.balance:
                for kind in self.kinds:
                    tap = self.balancer.unit(kind, 1 / self.task.accumulation_steps, ramp)
                    taps.enter_context(self.augmenter(kind).tapped(tap))
            parts = self.generate(batches.next("train"))
            moved = [p for p in parts if p.transformation is not None]
            loss, losses = self._task_game(parts)
            total, figures = loss, dict[str, Tensor]()
            if moved:
                if self.discriminator is not None and ramp >= 1:  # before, all patches are nearly real
                    realism, figures = self._realism_game(moved, batches)
                    total = total + realism
                penalties, sizes = self._penalties(moved)
                total, figures = total + penalties, figures | sizes
            scale = self.task.precision.scale  # of this backward; the update may change it
            self.descend(total)
        # these grow with the augmentation: the gradient at a head, and that of a quadratic penalty
        growing = [*self.kinds, *(f"{kind}_penalty" for kind in self.kinds)]
        self.balancer.update(scale, dict.fromkeys(growing, ramp))
        self._latest = moved[-1] if moved and self.mode != "combined" else None
        return self.figures(parts, losses, **figures)

    def watched(self, kind: str, move: Transformation) -> Transformation:
        """``move`` with a meter of what the two games make of it."""
        if not self.balance:
            return move
        return _through(self.balancer.metered(f"{kind}_games"), move, "matrix", "displacement", "additive")

    def _task_game(self, parts: list[Part]) -> tuple[Tensor, Tensor]:
        """The segmentation network descends, the generators ascend (Eq. 2), through image and label alike."""
        if self.balance:
            tapped = self.balancer.metered("task")
            parts = [
                p if p.transformation is None else replace(p, batch=replace(p.batch, image=tapped(p.batch.image)))
                for p in parts
            ]
        return self.segment(parts, reverse=1.0)

    def _realism_game(self, moved: list[Part], batches: Batches) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator tells real from transformed; the generators make that hard (Eq. 4)."""
        assert self.discriminator is not None  # noqa: S101  # for the type checker: the caller has asked
        fake = torch.cat([self._resampled(p) for p in moved])
        real = self._real(batches, len(fake))
        fake = self._interior(fake)
        weight = self.weight_discriminator
        if self.balance:
            fake, weight = self.balancer.ratio("realism", "task", self.weight_discriminator)(fake), 1.0
        with self.task.precision.autocast():
            score_real = self.discriminator(real)
            if self.saturating:
                score_fake = self.discriminator(reverse_gradient(fake, weight))
                game = adversarial_loss(score_fake, real=False)
            else:
                score_fake = self.discriminator(fake.detach())
                deceived = discriminate_frozen(self.discriminator, fake)
                game = adversarial_loss(score_fake, real=False) + weight * adversarial_loss(deceived, real=True)
        right = torch.cat([(score_real > 0).float(), (score_fake < 0).float()]).mean()
        game = game + adversarial_loss(score_real, real=True)
        return game, {"realism": game, "discriminator_accuracy": right}

    def _real(self, batches: Batches, count: int) -> Tensor:
        """``count`` untransformed patches of a second batch, resampled and cropped as the transformed ones are."""
        batch = batches.next("real")
        # drawn, because hosts put the patches that are centred on foreground last in a batch
        order = torch.randperm(len(batch.image), generator=self.generator, device=self.generator.device)
        batch = batch.rows(order[:count])
        if not self.discriminator_resamples:
            return batch.cropped().image
        with torch.no_grad():
            shifted = transform(batch, jitter(batch.image, self.generator), regions=self.task.regions)
            return self._interior(shifted.image)

    def _resampled(self, part: Part) -> Tensor:
        """A part's patches as the discriminator sees them: once resampled, as the real ones are."""
        assert part.transformation is not None  # noqa: S101  # for the type checker: these parts have one
        if part.transformation.moves_geometry or not self.discriminator_resamples:
            return part.batch.image
        return jitter(part.batch.image, self.generator).apply(part.batch.image)

    def _interior(self, image: Tensor) -> Tensor:
        """The patch as the discriminator looks at it (see `interior`)."""
        return interior(image) if self.discriminator_resamples else image

    def _penalties(self, moved: list[Part]) -> tuple[Tensor, dict[str, Tensor]]:
        """Magnitude (Eqs. 6-8) and, in the default form, distance from the random policy; and the magnitudes."""
        total, sizes = moved[0].batch.image.new_zeros((), dtype=torch.float32), {}
        for part in moved:
            move, weight = part.transformation, self.weight_magnitude
            assert move is not None  # noqa: S101  # for the type checker: these parts have one
            if self.balance:
                places = f"{part.kind}_penalty", f"{part.kind}_games"
                tap = self.balancer.ratio(*places, self.weight_magnitude, strength=self.ramp)
                field = "displacement" if move.velocity is None else "velocity"  # what the penalty acts on
                move, weight = _through(tap, move, "matrix", field, "additive"), 1.0
            sizes[f"{part.kind}_penalty"] = move.regularization()
            total = total + weight * sizes[f"{part.kind}_penalty"]
            if self.weight_prior and move.deviation is not None:
                total = total + self.weight_prior / 2 * move.deviation.float().square().mean()
        return total, sizes

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean figures of the epoch and what tells a collapse (see `methods.collapse`)."""
        figures = self.epoch_means()
        probe = torch.Generator(self.generator.device).manual_seed(epoch)  # looking must not change what comes next
        for kind in self.kinds:
            if kind in self._probe:
                figures |= collapse_figures(self.augmenter(kind), self._probe[kind], probe)
        self._probe.clear()  # a resumed run knows nothing of former epochs' patches, nor which kind came first
        for kind in self.kinds:
            if f"loss_{kind}" in figures and figures.get("loss_clean"):
                figures[f"{kind}_loss_ratio"] = figures[f"loss_{kind}"] / figures["loss_clean"]
        if self._latest is not None:  # a single kind trains on no clean sample
            figures[f"{self._latest.kind}_loss_ratio"] = self._hardness(self._latest)
        # while it warms up, an augmentation is next to the identity by design
        self._warnings = collapse_warnings(figures, self.kinds) if self.ramp >= 1 else []
        return figures

    @torch.no_grad()
    def _hardness(self, part: Part) -> float:
        """Cross-entropy of transformed over that of untransformed samples, by the network as it would be deployed."""
        values = []
        for batch in (part.batch, part.source.cropped()):
            output = self.task.forward(batch.image, batch.extra, parameters={})  # its own, but frozen
            p = self.task.probabilities(output).clamp(1e-6, 1 - 1e-6)
            loss = -(batch.label * p.log())
            if self.task.regions:
                loss = loss - (1 - batch.label) * (1 - p).log()
            known = torch.ones_like(loss[:, :1]) if batch.valid is None else batch.valid
            values.append(float((loss * known).sum() / known.sum().clamp(min=1)))
        return values[0] / max(values[1], 1e-6)

    def warnings(self) -> list[str]:
        """What the figures of the last epoch say of a collapse."""
        return self._warnings

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds the gradient norms that balance the players."""
        return super().state_dict() | {"balancer": self.balancer.means.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self.balancer.means.copy_(state["balancer"])


def _through(tap: Callable[[Tensor], Tensor], move: Transformation, *names: str) -> Transformation:
    """``move`` with those of the named tensors that it has passed through ``tap``."""
    changed: dict[str, Any] = {n: tap(getattr(move, n)) for n in names if getattr(move, n) is not None}
    return replace(move, **changed)
