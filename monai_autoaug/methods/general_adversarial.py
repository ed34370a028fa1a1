# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Adversarial learning of general transformations: one generator, two discriminators, the segmentation network.

Mounsaveng et al. 2019, "Adversarial Learning of General Transformations for Data Augmentation". Each step minimises,
one after the other and each for its own player, the four losses of Eq. 6 on one mini-batch: the generator's (Eq. 2),
the class discriminator's (Eq. 3), the dissimilarity discriminator's (Eq. 4) and the segmentation network's (Eq. 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters import GeneralAugmenter, Transformation
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.base import Batches, Method, Player, Task
from monai_autoaug.methods.fixed_affine import LEVELS, fixed_affine
from monai_autoaug.methods.general_checks import check_general
from monai_autoaug.methods.general_figures import general_figures, general_warnings
from monai_autoaug.methods.general_looks import Looks
from monai_autoaug.methods.general_players import make_discriminators, make_generator
from monai_autoaug.methods.general_terms import TERMS, GeneratorTerms
from monai_autoaug.methods.label_channels import label_channels
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.pairs import label_maps
from monai_autoaug.methods.parts import concatenate, transform
from monai_autoaug.methods.phases import Phase
from monai_autoaug.networks import add_spatial_transformer, frozen
from monai_autoaug.networks.discriminators import adversarial_loss

__all__ = ["GeneralAdversarial"]

Augmentation = Literal["learned", "decoder", "none", "light", "strong", "stn"]
_SETTLED = 200  # updates after which a generator that does nothing has collapsed


class GeneralAdversarial(Method):
    """A generator of general transformations against a class and a dissimilarity discriminator and the network.

    The generator minimises ``- alpha log D_C(G(x, z), y) - beta log D_D(x, G(x, z)) - gamma log(1 - C_y(G(x, z)))``,
    each logarithm in a form that can't overflow. In segmentation y is the label map, which follows the spatial
    transformer: D_C sees it as channels beside the image, C_y is the probability of each voxel's label, and of a pair
    both patches were cut for the same class, from two subjects, where a batch holds such (see `partners`). In
    classification y is the class of the whole image.

    The players are updated one after the other, in the order of Eq. 6: generator, class discriminator, dissimilarity
    discriminator, segmentation network. Those that follow the generator see what it makes of the same noise after its
    update. The network's loss is the mean over patches, not Eq. 5's sum of two means, so that the host's learning rate
    means the same as without augmentation.

    ``fidelity="paper"`` is the paper's form: an unbounded generator at full resolution, plain weights, every patch both
    as it is and transformed, discriminators with weight normalisation that see whole patches as they are. By default
    the generator is bounded and starts as the identity, half of each batch is transformed, and the weights are ratios
    of the gradients that the three terms have at the transformed patch.

    Args:
        task: what the host owns; with ``augmentation="stn"`` its network has been through `prepare`.
        seed: of noise, pairs and initial weights.
        image_channels: channels of the image.
        num_classes: channels of the label; None: as many as the network gives.
        augmentation: "learned", or what the paper compares with: "decoder" (images made from noise and label), "none",
            "light" or "strong" (see `fixed_affine`), "stn" (a spatial transformer in front of the network, which
            learns what the network learns; see `add_spatial_transformer`).
        spatial: False leaves the generator's spatial transformer out.
        appearance: False leaves its U-Net out.
        weight_class: alpha; 0: no class discriminator.
        weight_dissimilarity: beta; 0: no dissimilarity discriminator.
        weight_adversarial: gamma; 0: the generator doesn't know of the network. The paper tunes the three and doesn't
            say what came out.
        separate: share of the epochs in which generator and discriminators train alone; then a fresh network trains on
            what they have become (the paper's control, Fig. 4). 0: all train together. It needs gamma 0.
        fidelity: "default" or "paper".
        noise_size: length of the noise vector.
        width: channels of the generator's first level.
        bounds: options of `GeneralAugmenter` by name, for example ``{"rotation": 30.0}``.
        width_discriminator: channels of the discriminators' first layers; None: 8, or 96 with ``fidelity="paper"``.
        discriminator_resamples: what is real passes a resampling by less than a voxel, and of all patches only the
            interior is looked at, so that neither blur nor corners give the transformed ones away; None: False with
            ``fidelity="paper"``.
        balance: weights are gradient ratios as said above; None: False with ``fidelity="paper"``.
        doubled: the network trains on every patch as it is and transformed (Eq. 5), a batch twice as large; False: half
            of each batch is transformed. None: True with ``fidelity="paper"``.
        mirror_axes: of ``augmentation="strong"``.
        learning_rate_generator: of Adam with betas 0.5 and 0.999.
        learning_rate_discriminator: likewise.

    Raises:
        ConfigError: an option has no such value or no use together with others.

    Source: Mounsaveng et al. 2019, section 3; 4.3 and Table 3 for the options.

    >>> GeneralAdversarial.name, GeneralAdversarial.needs
    ('general_adversarial', ('train',))
    """

    name: ClassVar[str] = "general_adversarial"

    def __init__(
        self,
        task: Task,
        *,
        seed: int = 0,
        image_channels: int = 1,
        num_classes: int | None = None,
        augmentation: Augmentation = "learned",
        spatial: bool = True,
        appearance: bool = True,
        weight_class: float = 1.0,
        weight_dissimilarity: float = 1.0,
        weight_adversarial: float = 0.5,
        separate: float = 0.0,
        fidelity: str = "default",
        noise_size: int = 100,
        width: int = 16,
        bounds: Mapping[str, float] | None = None,
        width_discriminator: int | None = None,
        discriminator_resamples: bool | None = None,
        balance: bool | None = None,
        doubled: bool | None = None,
        mirror_axes: Sequence[int] = (),
        learning_rate_generator: float = 2e-4,
        learning_rate_discriminator: float = 2e-4,
    ) -> None:
        super().__init__(task, seed=seed)
        paper = fidelity == "paper"
        self.augmentation, self.fidelity, self.image_channels = augmentation, fidelity, image_channels
        self.weights = dict(zip(TERMS, (weight_class, weight_dissimilarity, weight_adversarial), strict=True))
        self.spatial, self.appearance, self.bounds = spatial, appearance, dict(bounds or {})
        self.noise_size, self.width = noise_size, width
        self.width_discriminator = (96 if paper else 8) if width_discriminator is None else width_discriminator
        self.resamples = not paper if discriminator_resamples is None else discriminator_resamples
        self.balance = not paper if balance is None else balance
        self.doubled = paper if doubled is None else doubled
        self.mirror_axes = tuple(mirror_axes)
        check_general(
            self.weights, augmentation=augmentation, separate=separate, spatial_dims=task.spatial_dims,
            parts=(spatial, appearance), bounds=self.bounds, mirror_axes=self.mirror_axes,
            sizes={"noise_size": noise_size, "width": width, "width_discriminator": self.width_discriminator},
            prepared=hasattr(task.network, "spatial_transformer"),
        )  # fmt: skip
        if separate:
            self.phases = (Phase("generator", separate, rests=True), Phase("network", 1 - separate, fresh=True))
        self.discriminators: dict[str, nn.Module] = {}
        self.generators = nn.ModuleDict()
        if self.learns:
            self._make_players(num_classes, learning_rate_generator, learning_rate_discriminator)
        if "dissimilarity" in self.discriminators:
            self.needs = ("train", "real")
        self.looks = Looks(
            task, self.generator, resamples=self.resamples, resampled=augmentation == "learned" and spatial
        )
        self.judged = GeneratorTerms(
            task, self.looks, self.discriminators, self.weights if self.learns else {}, balance=self.balance
        )
        self._turn = 0  # which of an odd number of samples is transformed
        self._means = Means()
        self._probe: Tensor | None = None
        self._warnings: list[str] = []

    @property
    def learns(self) -> bool:
        """Whether there is a generator."""
        return self.augmentation in ("learned", "decoder")

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that the generator's loss has."""
        return self.judged.names

    @classmethod
    def prepare(cls, network: nn.Module, **options: Any) -> nn.Module:
        """Put a spatial transformer in front of the network where that is the augmentation."""
        if options.get("augmentation") == "stn":
            add_spatial_transformer(network, bounded=options.get("fidelity", "default") != "paper")
        return network

    @classmethod
    def streams(cls, **options: Any) -> tuple[str, ...]:
        """See `Method.streams`: pairs come of a second batch."""
        learns = options.get("augmentation", "learned") in ("learned", "decoder")
        return ("train", "real") if learns and options.get("weight_dissimilarity", 1.0) else ("train",)

    def _make_players(self, num_classes: int | None, rate_generator: float, rate_discriminator: float) -> None:
        """Generator and discriminators, initialised from the seed alike on every rank."""
        channels = self.image_channels
        decoder, by_class = self.augmentation == "decoder", self.weights["class"] > 0
        labels = label_channels(self.task, channels, num_classes) if decoder or by_class else 0
        self.generators["general"] = make_generator(
            self.task, channels, labels, decoder=decoder, seed=self.seed, noise_size=self.noise_size, width=self.width,
            fidelity=self.fidelity, spatial=self.spatial, appearance=self.appearance, **self.bounds,
        )  # fmt: skip
        self.discriminators = make_discriminators(
            self.task, {"class": channels + labels, "dissimilarity": 2 * channels}, self.weights, seed=self.seed,
            fidelity=self.fidelity, width=self.width_discriminator,
        )  # fmt: skip
        betas = (0.5, 0.999)
        self.players["generator"] = Player(
            self.generators, torch.optim.Adam(self.generators.parameters(), rate_generator, betas=betas)
        )
        for name, module in self.discriminators.items():
            self.players[f"{name}_discriminator"] = Player(
                module, torch.optim.Adam(module.parameters(), rate_discriminator, betas=betas)
            )

    def on_phase(self) -> None:
        """Once the network trains, the generator stays as it is, statistics of batch norms included."""
        learning = self.phase_number == 0
        self.generators.requires_grad_(learning).train(learning)

    def step(self, batches: Batches) -> dict[str, float]:
        """One mini-batch of each loss, one after the other (Eq. 6)."""
        batch = batches.next("train")
        figures: dict[str, Tensor] = {}
        if not self.learns:
            figures = self._train_network({"affine" if self.augmentation in LEVELS else "clean": self._fixed(batch)})
        else:
            source, clean = self._divided(batch)
            noise = self._noise(len(source.image))
            learning = self.phase_number == 0  # in separate training the first of two phases
            if learning:
                figures |= self._train_generator(source, noise)
            with torch.no_grad():
                moved = self._transformed(source, noise)
            if learning:
                figures |= self._train_discriminators(source, moved, batches)
            if self.phase.name == "generator":
                self._show(clean.cropped(), figures["generator_loss"])
            else:
                figures |= self._train_network({"clean": clean.cropped(), "general": moved})
            self._probe = source.image[:1].detach()
        if self.task.last_micro_batch:
            self._end_step()
        self.task.notify("model", {})
        return self._means.add({"loss": figures["loss" if "loss" in figures else "generator_loss"]} | figures)

    def _divided(self, batch: Batch) -> tuple[Batch, Batch]:
        """The patches that are transformed, and those that are trained on as they are; of a single one both."""
        n = len(batch.image)
        if self.doubled or n == 1 or self.phase.name == "generator":
            return batch, batch
        count = (n + self._turn) // 2  # of an odd number the smaller half, then the larger one
        self._turn = 1 - self._turn
        order = torch.randperm(n, generator=self.generator, device=self.generator.device).cpu()
        return batch.rows(order[:count]), batch.rows(order[count:])

    def _noise(self, count: int) -> Tensor:
        noise = torch.randn(count, self.noise_size, generator=self.generator, device=self.generator.device)
        return noise.to(next(self.generators.parameters()))

    def _fixed(self, batch: Batch) -> Batch:
        """What the network trains on where nothing is learned."""
        if self.augmentation not in LEVELS:
            return batch.cropped()
        move = fixed_affine(
            batch.image, self.augmentation, self.generator, spacing=batch.spacing, mirror_axes=self.mirror_axes
        )
        return transform(batch, move, regions=self.task.regions)

    def _transformed(self, source: Batch, noise: Tensor) -> Batch:
        """G(x, z) with all that moves along (Eq. 1), or what the decoder makes of noise and label."""
        generator = self.generators["general"]
        if self.augmentation == "decoder":
            crop = source.cropped()
            with self.task.precision.autocast():
                image = generator(noise, label_maps(crop.label, crop.image)).to(crop.image.dtype)
            return replace(crop, image=image if crop.mask is None else image * crop.mask, target=None)
        with self.task.precision.autocast():
            move: Transformation = generator(source.image, noise, spacing=source.spacing)
        return transform(source, move, regions=self.task.regions)

    def _train_generator(self, source: Batch, noise: Tensor) -> dict[str, Tensor]:
        """Eq. 2: the other players are held as they are."""
        loss, figures = self.judged.loss(source, self._transformed(source, noise))
        scale = self.task.precision.scale
        self._descend("generator", loss)
        self.judged.balancer.update(scale)
        return figures

    def _train_discriminators(self, source: Batch, moved: Batch, batches: Batches) -> dict[str, Tensor]:
        """Eqs. 3 and 4, on what the generator makes after its update."""
        if not self.discriminators:
            return {}
        figures: dict[str, Tensor] = {}
        looks = self.looks.compared(self.discriminators, source, moved, batches)
        for name, (real, fake) in looks.items():
            with self.task.precision.autocast():
                scores = self.discriminators[name](torch.cat([real, fake]))
            score_real, score_fake = scores.split([len(real), len(fake)])
            loss = adversarial_loss(score_real, real=True) + adversarial_loss(score_fake, real=False)
            self._descend(f"{name}_discriminator", loss)
            right = torch.cat([(score_real > 0).float(), (score_fake < 0).float()]).mean()
            figures |= {f"{name}_discriminator_loss": loss, f"{name}_discriminator_accuracy": right}
        return figures

    def _train_network(self, parts: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Eq. 5: patches as they are and transformed, in one forward."""
        whole = concatenate(list(parts.values()))
        output = self.task.forward(whole.image, whole.extra)
        self.task.notify("forward", {"batch": whole, "output": output})
        losses = self.task.losses(output, whole.label, whole.valid)
        loss = losses.mean()
        self.tell_loss(loss)
        self._descend("network", loss)
        shares = losses.split([len(b.image) for b in parts.values()])
        return {"loss": loss} | {f"loss_{n}": x.mean() for n, x in zip(parts, shares, strict=True)}

    @torch.no_grad()
    def _show(self, batch: Batch, loss: Tensor) -> None:
        """Tell the host of a step in which its network has no part, because its handlers expect a prediction."""
        with frozen(self.task.network):
            output = self.task.forward(batch.image, batch.extra)
        self.task.notify("forward", {"batch": batch, "output": output})
        self.task.notify("loss", {"loss": loss})

    def _descend(self, name: str, loss: Tensor) -> None:
        """One backward and one update of one player."""
        task, (optimizer, _) = self.task, self._optimizers()[name]
        if task.first_micro_batch:
            optimizer.zero_grad(set_to_none=True)
        task.precision.backward(loss / task.accumulation_steps if task.accumulation_steps > 1 else loss)
        if name == "network":
            task.notify("backward", {})
        if task.last_micro_batch:
            self._step(name)

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """Mean figures of the epoch, and how strong the generator's two parts are (see `general_figures`)."""
        figures = self._means.take()
        generator = self.generators["general"] if self.augmentation == "learned" else None
        if isinstance(generator, GeneralAugmenter) and self._probe is not None:
            probe = torch.Generator(self.generator.device).manual_seed(epoch)  # looking changes nothing that follows
            figures |= general_figures(generator, self._probe, probe)
            # it starts as the identity, which is no collapse
            self._warnings = general_warnings(figures, generator.parts) if self.steps >= _SETTLED else []
        return figures

    def warnings(self) -> list[str]:
        """What the figures of the last epoch say of a collapse."""
        return self._warnings

    def augmenters(self) -> dict[str, nn.Module]:
        """The generator, where it transforms images."""
        return dict(self.generators.items()) if self.augmentation == "learned" else {}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds the gradient norms that balance the terms, and whose turn it is."""
        return super().state_dict() | {"balancer": self.judged.balancer.means.cpu().clone(), "turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self.judged.balancer.means.copy_(state["balancer"])
        self._turn = state["turn"]
