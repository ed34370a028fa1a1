# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Training on batches that augmenters transform: what the random control and the adversarial method share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters import (
    AffineAugmenter,
    AppearanceAugmenter,
    DeformationAugmenter,
    Transformation,
    TrunkAugmenter,
    find,
    kinds,
)
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.base import Method, Task
from monai_autoaug.methods.means import Means
from monai_autoaug.methods.parts import CLEAN, Part, concatenate, transform
from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm, add_auxiliary_norms
from monai_autoaug.networks.gradient_reversal import reverse_gradient

__all__ = ["KINDS", "AugmentedMethod"]

KINDS: dict[str, type[TrunkAugmenter]] = {
    "affine": AffineAugmenter,
    "deformation": DeformationAugmenter,
    "appearance": AppearanceAugmenter,
}
class AugmentedMethod(Method):
    """A method whose batches are transformed by augmenters, in the paper's single or combined arrangement.

    Args:
        task: what the host owns.
        seed: seed of partition, noise and initial weights.
        image_channels: channels of the image (without further channels such as a cascade's).
        mode: "combined": every batch in four parts, clean and one a kind, each with its own norm group, or a single
            kind, which then transforms the whole batch; also one that an entry point adds (`augmenters.find`).
        auxiliary_norms: norm groups for the augmented parts in combined mode; the clean part always uses the main one.
        fidelity: "default" or "paper" (see `TrunkAugmenter`).
        base: see `TrunkAugmenter`.
        noise_size: length of the noise vector.
        width: channels of the generators.
        image_condition: whether the generators look at the image.
        bounds: options of single augmenters by kind, for example ``{"affine": {"rotation": 30.0}}``.
        warm_up: updates over which the strength of the augmentation grows from 0 (identity) to 1.

    Raises:
        ConfigError: unknown mode or kind, or a number that can't be.

    Source: Gao et al. 2021, section 3.3.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        image_channels: int,
        mode: str,
        auxiliary_norms: bool,
        fidelity: str,
        base: str | None,
        noise_size: int,
        width: int,
        image_condition: bool,
        bounds: Mapping[str, Mapping[str, Any]] | None,
        warm_up: int,
    ) -> None:
        super().__init__(task, seed=seed)
        for name, number, least in (("warm_up", warm_up, 0), ("noise_size", noise_size, 1), ("width", width, 1)):
            if number < least:
                raise ConfigError(f"{name} must be at least {least}, got {number}")
        self.kinds = _kinds(mode)
        self.mode, self.warm_up = mode, warm_up
        if mode == "combined" and auxiliary_norms and not any(
            isinstance(m, AuxiliaryNorm) for m in task.network.modules()
        ):  # fmt: skip
            raise ConfigError(
                "combined mode gives each kind of augmentation a norm group of its own, but the network has none: call"
                " methods.prepare(name, network) before making the optimiser, or set auxiliary_norms to False"
            )
        self.auxiliary_norms = auxiliary_norms and mode == "combined"
        unknown = set(bounds or {}) - {*KINDS, *self.kinds}
        if unknown:
            raise ConfigError(f"bounds are by kind ({', '.join(KINDS)}), got {', '.join(sorted(unknown))}")
        idle = set(bounds or {}) - set(self.kinds)
        if idle:
            raise ConfigError(f"mode {mode!r} has no use for the bounds of {', '.join(sorted(idle))}; leave them out")
        self.generators = self._make_generators(
            {"fidelity": fidelity, "base": base, "noise_size": noise_size, "width": width,
             "image_condition": image_condition},
            image_channels, bounds or {}, seed,
        )  # fmt: skip
        self._turns: list[int] = []
        self._means = Means()
        self._probe: dict[str, Tensor] = {}

    @classmethod
    def prepare(cls, network: nn.Module, **options: Any) -> nn.Module:
        """Add the three auxiliary norm groups that combined mode needs."""
        if options.get("mode", "combined") == "combined" and options.get("auxiliary_norms", True):
            add_auxiliary_norms(network, groups=len(KINDS))
        return network

    def _make_generators(
        self, common: dict[str, Any], channels: int, bounds: Mapping[str, Mapping[str, Any]], seed: int
    ) -> nn.ModuleDict:
        """The augmenters, initialised from ``seed`` alike on every rank; in the default design they share one trunk."""
        generators = nn.ModuleDict()
        trunk: nn.Module | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds GPUs for good
            for kind in self.kinds:
                given = bounds.get(kind, {})
                augmenter_class = _class_of(kind)
                known = augmenter_class.limits
                if not isinstance(given, Mapping) or set(given) - set(known):
                    raise ConfigError(f"bounds of {kind} are {', '.join(known)}, got {given!r}")
                augmenter = augmenter_class(self.task.spatial_dims, channels, trunk=trunk, **common, **given)
                trunk = augmenter.trunk if common["fidelity"] == "default" else None
                generators[kind] = augmenter
        return generators.to(self.task.device)

    def partition(self, batch_size: int) -> Tensor:
        """Part of each sample, 0 clean and 1, 2, 3 the kinds, by seeded permutations.

        A batch of four or more always holds every part; what is left of it, or a smaller batch, goes through them over
        the iterations.
        """
        if self.mode != "combined":
            return torch.ones(batch_size, dtype=torch.long)
        whole = [part for _ in range(batch_size // 4) for part in self._permutation()]
        rest = batch_size % 4
        if len(self._turns) < rest:
            self._turns += self._permutation()
        turns, self._turns = self._turns[:rest], self._turns[rest:]
        return torch.tensor(whole + turns)

    def _permutation(self) -> list[int]:
        order: list[int] = torch.randperm(4, generator=self.generator, device=self.generator.device).tolist()
        return order

    @property
    def ramp(self) -> float:
        """Strength of the augmentation in the coming step, in (0, 1]; micro-batches of one update have the same."""
        return 1.0 if self.warm_up <= 0 else min(1.0, (self.steps + 1) / self.warm_up)

    def watched(self, kind: str, move: Transformation) -> Transformation:
        """What `generate` applies of ``move``; a method may put something in between that measures the gradient."""
        return move

    def augmenter(self, kind: str) -> TrunkAugmenter:
        """The augmenter of one kind."""
        return cast(TrunkAugmenter, self.generators[kind])

    def generate(self, batch: Batch) -> list[Part]:
        """Transform each part of ``batch`` by its augmenter."""
        for augmenter in map(self.augmenter, self.kinds):
            augmenter.strength.fill_(self.ramp)
        assigned = self.partition(len(batch.image))  # stays on the CPU: which rows there are must not wait for a GPU
        parts = []
        clean = torch.nonzero(assigned == 0)[:, 0]
        if len(clean):
            source = batch.rows(clean)
            parts.append(Part(CLEAN, 0, source, source.cropped(), None))
        rows = [torch.nonzero(assigned == k + 1)[:, 0] for k in range(len(self.kinds))]
        noises = [self.augmenter(k).sample_noise(len(r), self.generator) for k, r in zip(self.kinds, rows, strict=True)]
        for number, (kind, row, noise, features) in enumerate(
            zip(self.kinds, rows, noises, self._features(batch, rows, noises), strict=True)
        ):
            if len(row):
                source = batch.rows(row)
                shape = tuple(source.image.shape[2:])
                move = self.augmenter(kind).decode(features, noise, shape, spacing=source.spacing)
                moved = transform(source, self.watched(kind, move), regions=self.task.regions)
                parts.append(Part(kind, number + 1 if self.auxiliary_norms else 0, source, moved, move))
                self._probe[kind] = source.image[:1].detach()
        return parts

    def _features(self, batch: Batch, rows: list[Tensor], noises: list[Tensor]) -> list[Tensor]:
        """Trunk features of each kind's samples, in one pass where the trunk is shared."""
        augmenters = [self.augmenter(k) for k in self.kinds]
        with self.task.precision.autocast():
            if all(a.trunk is augmenters[0].trunk for a in augmenters):
                size = augmenters[0].noise_size
                image = batch.image[torch.cat(rows)]
                features = augmenters[0].trunk(image, torch.cat([z[:, :size] for z in noises]))
                return list(_full(features).split([len(r) for r in rows]))
            return [
                _full(a.trunk(batch.image[r], z[:, : a.noise_size])) if len(r) else z
                for a, r, z in zip(augmenters, rows, noises, strict=True)
            ]

    def segment(self, parts: list[Part], *, reverse: float | None = None) -> tuple[Tensor, Tensor]:
        """Losses of the segmentation network on all parts, in one forward.

        Args:
            parts: from `generate`.
            reverse: strength of the reversed gradient that goes on into image and label; None: none goes.

        Returns:
            The mean loss and the loss of each sample (B,).
        """
        task = self.task
        whole = concatenate([p.batch for p in parts])
        if reverse is not None:
            # everything that moves: the generators' gradient comes through a cascade's channels and through where the
            # label is known, too
            moving: dict[str, Any] = {name: getattr(whole, name) for name in ("image", "label", "valid", "extra")}
            given = {n: t for n, t in moving.items() if t is not None}
            reversed_: dict[str, Any] = {n: reverse_gradient(t, reverse) for n, t in given.items()}
            whole = replace(whole, **reversed_)
        group = None
        if self.auxiliary_norms:
            group = torch.cat([torch.full((len(p.batch.image),), p.group) for p in parts]).to(whole.image.device)
        output = task.forward(whole.image, whole.extra, group)
        task.notify("forward", {"batch": whole, "output": output})
        losses = task.losses(output, whole.label, whole.valid)
        mean = losses.mean()
        self.tell_loss(mean)
        return mean, losses

    def figures(self, parts: list[Part], losses: Tensor, **more: Tensor) -> dict[str, float]:
        """Loss of every part and further scalars as floats, fetched at once; they count in the epoch's means."""
        sizes = [len(p.batch.image) for p in parts]
        values = {"loss": losses.mean()}
        values |= {f"loss_{p.kind}": x.mean() for p, x in zip(parts, losses.split(sizes), strict=True)}
        values |= more
        return self._means.add(values)

    def epoch_means(self) -> dict[str, float]:
        """Mean of each figure since the last call."""
        return self._means.take()

    def augmenters(self) -> dict[str, nn.Module]:
        """The augmenters by kind."""
        return dict(self.generators.items())

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; adds the partition's remaining turns."""
        return super().state_dict() | {"turns": list(self._turns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self._turns = list(state["turns"])


def _full(x: Tensor) -> Tensor:
    """At least float32: what follows the trunk is geometry."""
    return x if x.dtype == torch.float64 else x.float()


def _kinds(mode: str) -> tuple[str, ...]:
    if mode == "combined":
        return tuple(KINDS)
    _class_of(mode)
    return (mode,)


def _class_of(kind: str) -> type[TrunkAugmenter]:
    """The augmenter of a kind: one of ``KINDS``, or one with a trunk that an entry point adds (`augmenters.find`)."""
    if kind in KINDS:
        return KINDS[kind]
    found = find(kind) if kind in kinds() else None
    if found is None or not issubclass(found, TrunkAugmenter):
        more = [k for k in kinds() if k not in KINDS and issubclass(find(k), TrunkAugmenter)]
        raise ConfigError(f"mode must be 'combined' or one of {', '.join([*KINDS, *more])}, got {kind!r}")
    return found
