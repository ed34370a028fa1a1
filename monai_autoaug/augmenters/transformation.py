# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an augmenter predicts: a batch of transformations that can be applied, inverted, measured and regularised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monai_autoaug.augmenters.tone import Tone
from monai_autoaug.data.batch import centre_crop
from monai_autoaug.transforms import geometry

__all__ = ["Transformation"]


@dataclass(frozen=True)
class Transformation:
    """B transformations of volumes of size ``shape``: affine map, then deformation, then appearance.

    Args:
        shape: (D, H, W) of the volumes it applies to.
        matrix: (B, 3, 4) centred output voxels -> centred input voxels (see `transforms.geometry`), or None.
        displacement: (B, 3, d, h, w) displacement on a coarse grid in voxels of ``shape``, or None.
        velocity: (B, 3, d, h, w) the stationary velocity field that ``displacement`` is the exponential of; it is what
            makes the inverse, and the regulariser acts on it. None for a free displacement field.
        additive: (B, C, d, h, w) mask in standard deviations on a coarse or full grid, or None.
        tone: changes of brightness, contrast, gamma and noise, after the mask; or None.
        inverted: the order is reversed (mask, deformation, affine map).
        padding: what the image is outside the volume, "minimum", "border" or "zero".
        normalised: regularisers in the paper's units, displacements in [-1, 1] coordinates (see `regularization`).
        deviation: (B, ...) the generator's raw output: how far it is from the policy it started as, or None.

    >>> t = Transformation.identity((8, 8, 8), batch_size=2)
    >>> t.apply(torch.ones(2, 1, 8, 8, 8)).shape
    torch.Size([2, 1, 8, 8, 8])
    """

    shape: tuple[int, ...]
    matrix: Tensor | None = None
    displacement: Tensor | None = None
    velocity: Tensor | None = None
    additive: Tensor | None = None
    tone: Tone | None = None
    inverted: bool = False
    padding: str = "minimum"
    normalised: bool = False
    deviation: Tensor | None = None

    @staticmethod
    def identity(shape: Sequence[int], *, batch_size: int = 1) -> Transformation:
        """The transformation that changes nothing.

        >>> float(Transformation.identity((4, 4, 4)).regularization())
        0.0
        """
        d = len(shape)
        return Transformation(tuple(shape), matrix=torch.eye(d, d + 1).repeat(batch_size, 1, 1))

    @property
    def moves_geometry(self) -> bool:
        """Whether the label has to follow."""
        return self.matrix is not None or self.displacement is not None

    def grid(self, margin: tuple[int, ...] | None = None, *, like: Tensor | None = None) -> Tensor:
        """The one sampling grid (B or 1, D, H, W, 3) in centred voxels, without ``margin`` voxels at each end."""
        known = next((t for t in (self.matrix, self.displacement, like) if t is not None), torch.zeros(1))
        return geometry.compose(
            self.matrix, self.displacement, self.shape, margin=margin, inverted=self.inverted, like=known
        )

    def apply(self, image: Tensor, *, margin: tuple[int, ...] | None = None) -> Tensor:
        """Transform ``image`` (B, C, D, H, W) and cut off ``margin``; differentiable in image and transformation."""
        return self.apply_pair(image, None, margin=margin)[0]

    def apply_label(self, one_hot: Tensor, *, margin: tuple[int, ...] | None = None, regions: bool = False) -> Tensor:
        """Transform a soft label (B, K, D, H, W) on the same grid; appearance does not touch it."""
        outside = (0.0,) * one_hot.shape[1] if regions else None
        moved = self._move(one_hot[:, :0].float(), one_hot, margin, outside)[1]
        return moved if moved is not None else one_hot

    def apply_pair(
        self,
        image: Tensor,
        label: Tensor | None,
        *,
        margin: tuple[int, ...] | None = None,
        outside: tuple[float, ...] | None = None,
        still: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Image and label in one resampling.

        Args:
            image: (B, C, D, H, W).
            label: (B, K, D, H, W) one-hot, background first, or regions; or None.
            margin: voxels to cut off at each end after warping.
            outside: value of each label channel outside the volume; None: background 1, others 0.
            still: how many of the image's last channels appearance does not touch (a cascade's previous segmentation).

        Returns:
            The transformed image and label, without the margin.
        """  # fmt: skip
        if self.inverted and self.additive is not None:
            image = self._add(image, None, still)
        image, moved = self._move(image, label, margin, outside)
        if not self.inverted and self.additive is not None:
            image = self._add(image, margin, still)
        if self.tone is not None:
            seen = image[:, : image.shape[1] - still]
            image = torch.cat([self.tone(seen), image[:, seen.shape[1] :]], dim=1) if still else self.tone(image)
        return image, moved

    def _move(
        self,
        image: Tensor,
        label: Tensor | None,
        margin: tuple[int, ...] | None,
        outside: tuple[float, ...] | None,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.moves_geometry:
            cut = tuple(margin or [0] * len(self.shape))
            return centre_crop(image, cut), None if label is None else centre_crop(label, cut)
        grid = self.grid(margin)
        return geometry.resample(image, grid, label=label, padding=self.padding, outside=outside)

    def _add(self, image: Tensor, margin: tuple[int, ...] | None, still: int) -> Tensor:
        assert self.additive is not None  # noqa: S101  # for the type checker: callers have asked
        mask = geometry.upsample_field(self.additive, self.shape)
        mask = centre_crop(mask, tuple(margin or [0] * len(self.shape))).to(image.dtype)
        if not still:
            return image + mask
        return torch.cat([image[:, :-still] + mask, image[:, -still:]], dim=1)

    def inverse(self) -> Transformation | None:
        """The inverse transformation, or None where there is none in closed form (a free displacement field, a tone).

        Affine exactly; a velocity field to about 0.1 voxel on average at an amplitude of 4 voxels; appearance exactly.
        """
        if self.tone is not None or (self.displacement is not None and self.velocity is None):
            return None
        velocity = None if self.velocity is None else -self.velocity
        return replace(
            self,
            matrix=None if self.matrix is None else geometry.invert_affine(self.matrix),
            velocity=velocity,
            displacement=None if velocity is None else geometry.integrate(velocity, self.shape, steps=7),
            additive=None if self.additive is None else -self.additive,
            inverted=not self.inverted,
        )

    def regularization(self) -> Tensor:
        """Sum of the magnitude penalties of its parts, averaged over the batch: a scalar, 0 for the identity.

        - affine (Eq. 6): mean over voxels and axes of the squared flow. In [-1, 1] coordinates when ``normalised``,
          otherwise relative to the volume's half extent along each axis, which is the same number up to (N - 1) / N.
        - deformation (Eq. 7): mean over voxels, axes and components of the squared difference of neighbours, in
          [-1, 1] coordinates when ``normalised``. Otherwise of the dimensionless slope in voxel per voxel, which does
          not depend on the size of the volume, plus the field's magnitude as the affine one's: a slope alone says
          nothing of a field that moves everything alike.
        - appearance (Eq. 8): mean of the squared mask, in squared standard deviations.
        - tone: mean of the squared amounts.

        Source: Gao et al. 2021, Eqs. 6-8; the reductions and units are not in the paper.
        """
        parts = [self._affine_penalty(), self._deformation_penalty()]
        parts.append(None if self.additive is None else _full(self.additive).square().mean())
        parts.append(None if self.tone is None else _full(self.tone.amount).square().mean())
        given = [p for p in parts if p is not None]
        return torch.stack(given).sum() if given else torch.zeros(())

    def _affine_penalty(self) -> Tensor | None:
        """Exact mean over the voxel grid, whose centred coordinates have mean 0 and mean square (N^2 - 1) / 12."""
        if self.matrix is None:
            return None
        d = len(self.shape)
        flow = self.matrix - torch.eye(d, d + 1).to(self.matrix)
        second_moment = torch.tensor([(n * n - 1) / 12 for n in self.shape]).to(flow)
        squared = (flow[:, :, :d].square() * second_moment).sum(dim=2) + flow[:, :, d].square()
        extent = [(n - 1 if self.normalised else n) / 2 for n in self.shape]
        half = torch.tensor([max(e, 0.5) for e in extent]).to(flow)
        return (squared / half.square()).mean()

    def _deformation_penalty(self) -> Tensor | None:
        field = self.displacement if self.velocity is None else self.velocity
        if field is None:
            return None
        field, d = _full(field), len(self.shape)
        coarse = tuple(field.shape[2:])
        if self.normalised:
            half = torch.tensor([max(n - 1, 1) / 2 for n in self.shape]).to(field)
            field = field / half.view(1, d, *[1] * d)
        total = field.new_zeros(())
        for axis, (c, f) in enumerate(zip(coarse, self.shape, strict=True)):
            if c > 1:
                step = 1.0 if self.normalised else (f - 1) / (c - 1)
                total = total + (field.diff(dim=2 + axis) / step).square().mean()
        if self.normalised:
            return total / d
        extent = torch.tensor([max(n / 2, 0.5) for n in self.shape]).to(field)
        return total / d + (field / extent.view(1, d, *[1] * d)).square().mean()

    def magnitude(self) -> dict[str, Tensor]:
        """How strong each transformation is: tensors of length B, detached.

        Keys, as far as the parts are there: ``displacement_mean`` and ``displacement_max`` in voxels, ``rotation`` in
        degree (of the linear part's nearest rotation), ``translation`` in voxels, ``log_volume`` (logarithm of the
        determinant), ``jacobian_minimum`` (at most 0: folded), ``translation_share`` (share of the field's mean square
        that is a uniform translation), ``additive_mean``, in standard deviations, and the size of each amount of a
        `Tone` by its name.
        """
        figures: dict[str, Tensor] = {}
        with torch.no_grad():
            if self.matrix is not None:
                figures |= _affine_figures(self.matrix)
            if self.moves_geometry:
                coarse = _coarse_positions(self)
                length = coarse[1].square().sum(dim=-1).sqrt().flatten(1)
                figures["displacement_mean"], figures["displacement_max"] = length.mean(1), length.amax(1)
                figures["jacobian_minimum"] = geometry.jacobian_determinant(coarse[0]).flatten(1).amin(1)
            if self.displacement is not None:
                field = self.displacement.flatten(2)
                uniform = field.mean(2).square().sum(1)
                figures["translation_share"] = uniform / field.square().sum(1).mean(1).clamp(min=1e-12)
            if self.additive is not None:
                figures["additive_mean"] = self.additive.float().abs().flatten(1).mean(1)
            if self.tone is not None:
                figures |= self.tone.magnitude()
        return figures

    def to(self, *args: torch.device | torch.dtype | str) -> Transformation:
        """Move its tensors."""
        moved = {n: getattr(self, n).to(*args) for n in _TENSORS if getattr(self, n) is not None}
        return replace(self, **moved)

    def rows(self, index: slice | Tensor) -> Transformation:
        """The transformations that ``index`` selects."""
        given = {n: getattr(self, n) for n in _TENSORS if getattr(self, n) is not None}
        chosen: dict[str, Any] = {n: t.rows(index) if isinstance(t, Tone) else t[index] for n, t in given.items()}
        return replace(self, **chosen)


_TENSORS = ("matrix", "displacement", "velocity", "additive", "tone", "deviation")


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _affine_figures(matrix: Tensor) -> dict[str, Tensor]:
    """Rotation, translation and volume change of the nearest rotation, by singular value decomposition."""
    matrix = matrix.float()
    d = matrix.shape[1]
    linear = matrix[:, :, :d]
    known = torch.isfinite(linear).all(2).all(1)  # others have no decomposition, and torch raises
    u, _, vh = torch.linalg.svd(torch.where(known[:, None, None], linear, torch.eye(d).to(linear)))
    trace = (u @ vh).diagonal(dim1=1, dim2=2).sum(1)
    cosine = (trace / 2 if d == 2 else (trace - 1) / 2).clamp(-1, 1)
    return {
        "rotation": torch.where(known, cosine.acos() * 180 / math.pi, torch.nan),
        "translation": matrix[:, :, d].norm(dim=1),
        "log_volume": torch.linalg.det(linear).clamp(min=1e-12).log(),
    }


def _coarse_positions(t: Transformation) -> tuple[Tensor, Tensor]:
    """Grid and displacement at full resolution, thinned to at most 24 positions an axis for the Jacobian's sake."""
    grid = t.grid()
    still = geometry.identity_grid(t.shape, dtype=grid.dtype, device=grid.device)
    stride = [max(1, n // 24) for n in t.shape]
    thin = (slice(None), *[slice(None, None, s) for s in stride])
    # differences over `stride` voxels are divided by it, so that the determinant stays that of one voxel
    scale = torch.tensor(stride, dtype=grid.dtype, device=grid.device)
    moved = (grid - still)[thin]
    base = geometry.identity_grid(tuple(moved.shape[1:-1]), dtype=grid.dtype, device=grid.device)
    return base + moved / scale, moved
