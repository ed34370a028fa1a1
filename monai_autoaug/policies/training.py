# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The training-time policy: for each class of patches and each cascade, how probable its operations are.

Source: paper 002, section III-B and Eqs. 1-2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies.cascades import check_cascades, raised, without_operations
from monai_autoaug.policies.gumbel import conditional_gumbel, gumbel, straight_through
from monai_autoaug.policies.laterality import Laterality
from monai_autoaug.policies.presets import identity_probabilities, training_logits
from monai_autoaug.transforms import on_cpu
from monai_autoaug.transforms.catalogue import extra_cascades, training_cascades
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.registry import Cascade

__all__ = ["TrainingPolicy"]


class TrainingPolicy(nn.Module):
    """Probabilities of operations, one row of logits for each class of patches.

    A sample gets one operation of every cascade. Over one's own operations, three lines make a policy::

        blur = from_monai(RandGaussianSmooth(prob=1.0), "monai_blur", kind="resolution")
        gamma = from_batchgenerators(GammaTransform(p_per_sample=1.0), "bg_gamma")
        policy = TrainingPolicy([Cascade("mine", (Operation("identity"), blur, gamma)), *training_cascades()])

    Args:
        cascades: of `training_cascades`, `extra_cascades` or one's own; the first operation of each is the identity.
        classes: what tells patches apart: ("background", "foreground"), a name for each label value, or one name for
            all patches.
        identity: probability of the identity at the start, for all cascades or by name; uniform where none is given.
        spatial_dims: 2 or 3.
        temperature: of the softmax through which the weights' gradients go, above 0.
        floor: smallest probability of an operation that `constrain` leaves, so that none is lost for good; 0: none.
        laterality: labels that are each other's mirror image: pairs such as ``[(1, 2)]``, or a `Laterality`.

    Attributes:
        logits: (classes, operations of all cascades in order), the only parameter.

    Raises:
        ConfigError: names are not unique, a cascade does not begin with the identity, a number is out of range, or
            laterality meets an operation of which nobody knows whether it mirrors.

    >>> policy = TrainingPolicy.preset("nnunet")
    >>> indices, weights = policy.sample(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    >>> indices.shape, weights.shape, policy.logits.shape
    (torch.Size([2, 15]), torch.Size([2, 15]), torch.Size([2, 62]))
    >>> policy.apply(torch.rand(2, 1, 8, 8, 8), None, indices)[0].shape
    torch.Size([2, 1, 8, 8, 8])
    """

    _place: Tensor
    _reverses: Tensor

    def __init__(
        self,
        cascades: Sequence[Cascade],
        classes: Sequence[str] = ("background", "foreground"),
        *,
        identity: float | Mapping[str, float] | None = None,
        spatial_dims: int = 3,
        temperature: float = 1.0,
        floor: float = 0.0,
        laterality: Laterality | Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.laterality = Laterality.of(laterality, spatial_dims)
        self.cascades = without_operations(cascades, lambda o: self.laterality is None or self.laterality.allows(o))
        self.classes = tuple(classes)
        self.spatial_dims, self.temperature, self.floor = spatial_dims, temperature, floor
        self._check()
        start = identity if isinstance(identity, Mapping) else dict.fromkeys([c.name for c in self.cascades], identity)
        rows = torch.cat([training_logits(c, start.get(c.name)) for c in self.cascades])
        self.logits = nn.Parameter(rows.expand(len(self.classes), -1).clone())
        longest, total = max(len(c) for c in self.cascades), len(rows)
        place = torch.full((len(self.cascades), longest), total)  # where there is no operation: an appended -inf
        for row, (cascade, end) in enumerate(zip(self.cascades, self._ends(), strict=True)):
            place[row, : len(cascade)] = torch.arange(end - len(cascade), end)
        self.register_buffer("_place", place, persistent=False)
        self.register_buffer("_reverses", self._reversing(place), persistent=False)
        self.constrain()

    @classmethod
    def preset(
        cls,
        name: str,
        classes: Sequence[str] = ("background", "foreground"),
        *,
        spatial_dims: int = 3,
        extra: Sequence[str] = (),
        without: Sequence[str] = (),
        temperature: float = 1.0,
        floor: float = 0.0,
        laterality: Laterality | Sequence[Sequence[int]] | None = None,
    ) -> TrainingPolicy:
        """The paper's 15 cascades with one of its starts.

        Args:
            name: "nnunet", "deepmedic", "uniform", or "none", which leaves every sample alone (as far as ``floor``
                lets it).
            classes: see the class.
            spatial_dims: 2 or 3; in 2D there are 12 cascades.
            extra: cascades beyond the paper, behind the others: "elastic", "bias_field", "gibbs", "channel_scale".
            without: cascades and operations to leave out, for example those that `no_ops` names.
            temperature: see the class.
            floor: see the class.
            laterality: see the class.

        Raises:
            ConfigError: a name is unknown, or see the class.

        >>> policy = TrainingPolicy.preset("deepmedic", ("all",), extra=["bias_field"], without=["bmul", "noise"])
        >>> len(policy.cascades), policy.cascades[-1].name
        (14, 'bias_field')
        """
        identity, beyond = identity_probabilities(name), extra_cascades()
        if set(extra) - set(beyond) or len(set(extra)) < len(extra):
            raise ConfigError(f"extra cascades are {', '.join(beyond)}, each at most once, got {list(extra)}")
        cascades = (*training_cascades(spatial_dims), *(beyond[n] for n in extra))
        known = {n for c in cascades for n in (c.name, *(o.name for o in c.operations[1:]))}
        if set(without) - known:
            raise ConfigError(f"no cascade or operation is called {', '.join(sorted(set(without) - known))}")
        kept = without_operations(cascades, lambda o: o.name not in without and o.cascade not in without)
        return cls(
            kept, classes, identity=identity, spatial_dims=spatial_dims, temperature=temperature, floor=floor,
            laterality=laterality,
        )  # fmt: skip

    def _check(self) -> None:
        """Refuse what can't work."""
        check_cascades(self.cascades)
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ConfigError(f"classes must be names, none twice, got {self.classes}")
        if self.spatial_dims not in (2, 3):
            raise ConfigError(f"spatial_dims must be 2 or 3, got {self.spatial_dims}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")
        most = 1 / max(len(c) for c in self.cascades)
        if not 0 <= self.floor < most:
            raise ConfigError(f"floor must be in [0, {most:.3f}), 1 over the longest cascade, got {self.floor}")

    def _ends(self) -> list[int]:
        """Where each cascade ends in a row of the logits."""
        return list(accumulate(len(c) for c in self.cascades))

    def _reversing(self, like: Tensor) -> Tensor:
        """1 where an operation exchanges left and right, (cascades, operations of the longest)."""
        table = torch.zeros_like(like)
        if self.laterality is not None:
            for row, cascade in enumerate(self.cascades):
                for column, operation in enumerate(cascade.operations):
                    table[row, column] = self.laterality.reverses(operation)
        return table

    def _table(self) -> Tensor:
        """Logits (classes, cascades, operations of the longest), -inf where there is no operation."""
        none = self.logits.new_full((len(self.classes), 1), -torch.inf)
        return torch.cat([self.logits, none], 1)[:, self._place]

    def probabilities(self, class_name: str) -> list[Tensor]:
        """Probabilities of every cascade's operations, with gradient.

        Raises:
            ConfigError: the policy has no such class.

        >>> [round(float(p[0].detach()), 2) for p in TrainingPolicy.preset("nnunet").probabilities("foreground")][:5]
        [0.8, 0.9, 0.9, 0.9, 0.5]
        """
        if class_name not in self.classes:
            raise ConfigError(f"the policy has the classes {', '.join(self.classes)}, got {class_name!r}")
        row = self.logits[self.classes.index(class_name)]
        return [part.softmax(0) for part in row.split([len(c) for c in self.cascades])]

    def entropy(self) -> Tensor:
        """Entropy of each class and cascade over that of a uniform choice, (classes, cascades), with gradient.

        >>> TrainingPolicy.preset("uniform").entropy().min().isclose(torch.tensor(1.0))
        tensor(True)
        """
        table = self._table()
        logarithm = table.log_softmax(-1)
        terms = torch.where(table.isinf(), 0.0, logarithm.exp() * logarithm.masked_fill(table.isinf(), 0.0))
        sizes = torch.tensor([len(c) for c in self.cascades]).to(table)
        return -terms.sum(-1) / sizes.log()

    def sample(self, class_index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw an operation of every cascade for every sample.

        Args:
            class_index: (B,) int64, places in ``classes`` (see `policy_index`).
            generator: random numbers come from it; None: torch's global one.

        Returns:
            Indices (B, cascades) int64, and weights (B, cascades) of value 1 that carry the gradient of the logits.
        """
        logits = self._table()[class_index.to(self.logits.device)]
        noise = gumbel(tuple(logits.shape), generator, device=logits.device)
        return straight_through(logits, noise, temperature=self.temperature)

    def weights(self, class_index: Tensor, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Weights of operations that were drawn elsewhere or earlier, as if this policy had drawn them now.

        Args:
            class_index: (B,) int64.
            indices: (B, cascades) int64.
            generator: random numbers come from it; None: torch's global one.

        Returns:
            (B, cascades), as from `sample`.

        >>> policy = TrainingPolicy.preset("uniform")
        >>> policy.weights(torch.tensor([1]), torch.zeros(1, 15, dtype=torch.long)).sum().item()
        15.0
        """
        logits, indices = self._table()[class_index.to(self.logits.device)], indices.to(self.logits.device)
        noise = conditional_gumbel(logits, indices, generator)
        return straight_through(logits, noise, indices, temperature=self.temperature)[1]

    @torch.no_grad()
    def constrain(self) -> None:
        """Raise what fell below ``floor`` to it, at the cost of the others in its cascade; call it after an update.

        >>> policy = TrainingPolicy.preset("nnunet", floor=0.02)
        >>> bool(torch.cat(policy.probabilities("background")).min() > 0.0199)
        True
        """
        if self.floor == 0:
            return
        table = self._table()
        self.logits.copy_(raised(table, self.floor)[:, ~table[0].isinf()])

    def mirrored(self, indices: Tensor) -> Tensor:
        """Whether each sample's left and right change places, (B,) bool; never without ``laterality``."""
        return self._reverses.to(indices.device).gather(1, indices.t()).sum(0) % 2 == 1

    def apply(  # type: ignore[override]  # Module.apply is for modules with children, which a policy has not
        self,
        image: Tensor,
        label: Tensor | None,
        indices: Tensor,
        generator: torch.Generator | None = None,
        *,
        margin: tuple[int, ...] | None = None,
        outside: tuple[float, ...] | None = None,
        reference: Reference | None = None,
        compat: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the operations that were drawn; all spatial ones of a sample in one resampling.

        Args:
            image: (B, C, D, H, W).
            label: (B, K, D, H, W) one-hot or soft, background first; or None.
            indices: (B, cascades) int64.
            generator: random numbers come from it; None: torch's global one.
            margin: voxels at each end of each axis that are cut off afterwards.
            outside: value of each label channel outside the volume; None: 1 for the first and 0 for the others.
            reference: intensities of the whole volumes; None: each sample's own.
            compat: as the paper's code, see `transforms.apply`.

        Returns:
            The image in its own dtype and the soft label in at least float32, of which the argmax is a label again.

        Raises:
            ConfigError: ``indices`` do not fit the batch or the cascades.
        """
        moved, soft = on_cpu.apply(
            image, label, indices, self.cascades, generator=generator, margin=margin, outside=outside,
            reference=reference, compat=compat,
        )  # fmt: skip
        return moved, None if soft is None else self.exchange(soft, indices)

    def exchange(self, label: Tensor, indices: Tensor, *, first: int = 0) -> Tensor:
        """A label (B, K, ...) with its pairs exchanged in samples whose left and right have changed places.

        Args:
            label: one-hot or soft.
            indices: (B, cascades) int64.
            first: label of the first channel; 1 where there is none for the background.

        Raises:
            ConfigError: a pair names a channel that isn't there.
        """
        if self.laterality is None:
            return label
        turned = self.mirrored(indices).to(label.device).view(-1, *[1] * (label.ndim - 1))
        return torch.where(turned, self.laterality.swapped(label, first=first), label)
