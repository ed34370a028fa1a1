# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The test-time policy: which views of an image to predict from, and how much each prediction counts.

Source: paper 002, section III-E. Its official code averages logits, and so does the default here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies.gumbel import conditional_gumbel, gumbel, straight_through
from monai_autoaug.policies.laterality import Laterality
from monai_autoaug.policies.presets import view_logits
from monai_autoaug.transforms.catalogue import operations_at_test_time
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.registry import Operation
from monai_autoaug.transforms.views import ViewGrids, apply_view, canvas, coverage, revert_view

__all__ = ["TestTimePolicy"]

Level = Literal["volume", "patch"]
Average = Literal["logits", "probabilities"]


class TestTimePolicy(nn.Module):
    """Probabilities of the views at test time; the most probable ones are averaged.

    Args:
        operations: of `operations_at_test_time`.
        logits: (operations,) at the start; None: uniform.
        spatial_dims: 2 or 3.
        level: what the policy is learned and applied on: whole "volume"s, as in the paper, or network-sized "patch"es,
            which views of another size don't fit.
        average: "logits" or "probabilities" of the views.
        regions: the network's channels are regions (sigmoid), not classes (softmax).
        laterality: labels that are each other's mirror image, see `Laterality`; views that reverse left and right
            exchange their channels, or are left out.
        z: how many views `apply` averages when it isn't told; None: 8, or all if there are fewer.

    Attributes:
        logits: (operations,), the only parameter.
        operations: the views, without those that laterality leaves out.
        grids: what is kept of the views of volumes of one size for the next one; None: nothing.

    Raises:
        ConfigError: an argument is out of range.

    >>> policy = TestTimePolicy.preset("nnunet")
    >>> len(policy.operations), [o.name for o in policy.top(4)[0]]
    (84, ['identity', 'flip_d', 'flip_h', 'flip_w'])
    >>> policy.apply(nn.Conv3d(1, 2, 1), torch.rand(1, 1, 8, 9, 10), z=8).shape
    torch.Size([1, 2, 8, 9, 10])
    """

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(
        self,
        operations: Sequence[Operation],
        logits: Tensor | None = None,
        *,
        spatial_dims: int = 3,
        level: Level = "volume",
        average: Average = "logits",
        regions: bool = False,
        laterality: Laterality | Sequence[Sequence[int]] | None = None,
        z: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (("level", level, get_args(Level)), ("average", average, get_args(Average))):
            if value not in choices:
                raise ConfigError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if spatial_dims not in (2, 3):
            raise ConfigError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        names = [o.name for o in operations]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a test-time policy needs views with names of their own, got {names}")
        if logits is not None and logits.shape != (len(names),):
            raise ConfigError(f"logits must be ({len(names)},), one a view, got {tuple(logits.shape)}")
        self.laterality = Laterality.of(laterality, spatial_dims)
        kept = [k for k, o in enumerate(operations) if self.laterality is None or self.laterality.allows(o)]
        self.operations = tuple(operations[k] for k in kept)
        self.spatial_dims, self.level, self.average, self.regions = spatial_dims, level, average, regions
        self.logits = nn.Parameter(torch.zeros(len(kept)) if logits is None else logits.detach()[kept].clone())
        self.z = self._checked(min(8, len(kept)) if z is None else z)
        self.grids: ViewGrids | None = None

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        spatial_dims: int = 3,
        patch_size: Sequence[int] | None = None,
        level: Level = "volume",
        average: Average = "logits",
        regions: bool = False,
        laterality: Laterality | Sequence[Sequence[int]] | None = None,
        z: int | None = None,
    ) -> TestTimePolicy:
        """The paper's 84 views (64 in 2D) with one of its starts.

        Args:
            name: "nnunet" (its mirrorings share four fifths), "deepmedic", "uniform", or "none": the image as it is.
            spatial_dims: 2 or 3.
            patch_size: with level "patch", leaves out quarter turns that change this size.
            level: see the class.
            average: see the class.
            regions: see the class.
            laterality: see the class.
            z: see the class; with "none" 1 unless it is given.

        Raises:
            ConfigError: the name is unknown, or see the class.

        >>> len(TestTimePolicy.preset("uniform", level="patch", patch_size=(16, 32, 32)).operations)
        80
        """
        known = Laterality.of(laterality, spatial_dims)
        rows = [o for o in operations_at_test_time(spatial_dims) if known is None or known.allows(o)]
        if level == "patch" and patch_size is not None:
            rows = [o for o in rows if o.acts != "permutation" or canvas(o, tuple(patch_size)) == tuple(patch_size)]
        alone = z is None and name == "none"  # views of weight 0 would be predicted for nothing
        return cls(
            rows, view_logits(rows, name), spatial_dims=spatial_dims, level=level, average=average, regions=regions,
            laterality=known, z=1 if alone else z,
        )  # fmt: skip

    def _checked(self, z: int) -> int:
        if isinstance(z, bool) or not isinstance(z, int) or not 1 <= z <= len(self.operations):
            raise ConfigError(f"z must be a number of views from 1 to {len(self.operations)}, got {z!r}")
        return z

    def probabilities(self) -> Tensor:
        """Probability of every view, (operations,), with gradient.

        >>> bool(TestTimePolicy.preset("uniform").probabilities().allclose(torch.tensor(1 / 84)))
        True
        """
        return self.logits.softmax(0)

    def top(self, z: int) -> tuple[tuple[Operation, ...], Tensor]:
        """The ``z`` most probable views, the earlier of equals first, and their weights.

        Args:
            z: between 1 and the number of views.

        Returns:
            Views, and weights (z,) that sum to 1, with gradient: their probabilities over the sum of them.

        Raises:
            ConfigError: there are fewer views.

        >>> TestTimePolicy.preset("nnunet").top(8)[1].detach()
        tensor([0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250])
        """
        chosen = self.logits.detach().argsort(descending=True, stable=True)[: self._checked(z)]
        return tuple(self.operations[k] for k in chosen.tolist()), self.logits[chosen].softmax(0)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw views, independently of each other.

        Args:
            count: how many.
            generator: random numbers come from it; None: torch's global one.

        Returns:
            Indices (count,) int64 and weights (count,) of value 1 that carry the gradient of the logits.

        >>> TestTimePolicy.preset("uniform").sample(3)[1].detach()
        tensor([1., 1., 1.])
        """
        logits = self.logits.expand(count, -1)
        return straight_through(logits, gumbel(tuple(logits.shape), generator, device=logits.device))

    def weights(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Weights of views that were drawn earlier, as if this policy had drawn them now.

        Args:
            indices: (n,) int64.
            generator: random numbers come from it; None: torch's global one.

        >>> TestTimePolicy.preset("uniform").weights(torch.tensor([3, 70])).detach()
        tensor([1., 1.])
        """
        logits, indices = self.logits.expand(len(indices), -1), indices.to(self.logits.device)
        return straight_through(logits, conditional_gumbel(logits, indices, generator), indices)[1]

    def view(
        self,
        operation: Operation,
        image: Tensor,
        *,
        still: int = 0,
        generator: torch.Generator | None = None,
        reference: Reference | None = None,
    ) -> Tensor:
        """What a network shall see.

        Args:
            operation: one of ``operations``.
            image: (B, C, D, H, W).
            still: how many of the last channels are a cascade's, one for each foreground label: they move with the
                image, but no operation on values touches them.
            generator: for the views that add noise; None: a fixed seed, so that predictions are reproducible.
            reference: intensities of the whole volume, at level "patch"; None: the image's own.

        Raises:
            ConfigError: at level "patch", the view has another size.
        """
        if generator is None:
            generator = torch.Generator().manual_seed(operation.index)
        values, labels = image[:, : image.shape[1] - still], image[:, image.shape[1] - still :]
        enlarge = self.level == "volume"
        seen = apply_view(
            operation, values, enlarge=enlarge, generator=generator, reference=reference, grids=self.grids
        )
        if still:
            if operation.moves_label:
                labels = apply_view(operation, labels, enlarge=enlarge, padding="zero", grids=self.grids)
            if self.laterality is not None and self.laterality.reverses(operation):
                labels = self.laterality.swapped(labels, first=1)
            seen = torch.cat([seen, labels], 1)
        if self.level == "patch" and seen.shape != image.shape:
            raise ConfigError(
                f"view {operation.name} turns a patch of {tuple(image.shape[2:])} into {tuple(seen.shape[2:])}, which a"
                " network may not take. To do: give the patch_size when the policy is made, or use level 'volume'"
            )
        return seen

    def revert(self, operation: Operation, output: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What a network gave for a view, where it belongs.

        Args:
            operation: the view.
            output: (B, K, ...) logits or probabilities of the view.
            shape: size of the image.

        Returns:
            (B, K, D, H, W), 0 where the view has seen nothing; and how much of each voxel it has seen, (1, 1, D, H, W),
            or (1, 1, 1, 1, 1) if all.
        """
        if self.laterality is not None and self.laterality.reverses(operation):
            output = self.laterality.swapped(output)
        back = revert_view(operation, output, shape, grids=self.grids)
        return back, coverage(operation, output, shape, grids=self.grids)

    def apply(  # type: ignore[override]  # Module.apply is for modules with children, which a policy has not
        self,
        network: Callable[[Tensor], Any],
        image: Tensor,
        z: int | None = None,
        *,
        still: int = 0,
        generator: torch.Generator | None = None,
        reference: Reference | None = None,
        at_once: int = 1,
    ) -> Tensor:
        """The weighted average of a network's predictions of the ``z`` most probable views.

        Args:
            network: from (B, C, ...) to logits (B, K, ...) of the same size, or several of them, of which the first
                counts; at level "volume" for example a sliding window.
            image: (B, C, D, H, W).
            z: number of views; None: the policy's own.
            still: see `view`.
            generator: see `view`.
            reference: see `view`.
            at_once: views of equal size that the network gets as one batch, which takes as many times the memory.

        Returns:
            (B, K, D, H, W) logits, or probabilities where ``average`` says so, in at least float32.

        Raises:
            ConfigError: there are fewer views; a view doesn't fit a patch; a pair of labels doesn't fit the output.
        """
        operations, weights = self.top(self.z if z is None else z)
        image = image.as_subclass(Tensor)
        shape = tuple(image.shape[2:])
        total, seen = image.new_zeros(()), image.new_zeros(())
        views = (
            (o, w, self.view(o, image, still=still, generator=generator, reference=reference))
            for o, w in zip(operations, weights.detach().to(image.device), strict=True)
        )
        for group in _of_equal_size(views, at_once):
            output = self._predict(network, torch.cat([g[2] for g in group]) if len(group) > 1 else group[0][2])
            for (operation, weight, _), part in zip(group, output.split(len(image)), strict=True):
                back, covered = self.revert(operation, part, shape)
                total, seen = total + weight * back, seen + weight * covered
        if bool((seen < 1e-3).any()):
            # enlarging views, and others of next to no weight: what lies outside of all of them is predicted as it is
            blind = (seen < 1e-3).to(seen)
            total, seen = total + blind * self._predict(network, image), seen + blind
        return total / seen

    def _predict(self, network: Callable[[Tensor], Any], image: Tensor) -> Tensor:
        """What is averaged: logits or probabilities."""
        output = network(image)
        first: Tensor = output[0] if isinstance(output, list | tuple) else output
        first = first.as_subclass(Tensor)
        logits = first if first.dtype == torch.float64 else first.float()
        if self.average == "logits":
            return logits
        return logits.sigmoid() if self.regions else logits.softmax(1)


def _of_equal_size(
    views: Iterable[tuple[Operation, Tensor, Tensor]], at_once: int
) -> Iterator[list[tuple[Operation, Tensor, Tensor]]]:
    """Groups of so many views of one size, as soon as each is there; what is left over at the end."""
    waiting: dict[tuple[int, ...], list[tuple[Operation, Tensor, Tensor]]] = {}
    for view in views:
        size = tuple(view[2].shape)
        waiting.setdefault(size, []).append(view)
        if len(waiting[size]) == at_once:
            yield waiting.pop(size)
    yield from waiting.values()
