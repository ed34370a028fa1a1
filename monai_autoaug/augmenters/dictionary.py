# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Trained, frozen augmenters as a MONAI dictionary transform, for any data pipeline."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TransformBackends, convert_to_tensor, ensure_tuple_rep
from torch import Tensor

from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.files import load
from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.transforms.geometry import integrate

__all__ = ["LearnedAugmentd"]


class LearnedAugmentd(RandomizableTransform, MapTransform, InvertibleTransform):
    """Apply a trained augmenter to channel-first images and integer label maps of one sample.

    The transformation is predicted from the first key's image and noise; all keys share its geometry. It stays on the
    voxel grid, so the MetaTensor's affine is unchanged. ``inverse`` undoes it: affine maps exactly up to resampling,
    deformations to about 0.1 voxel; the coarse parameters alone travel in the applied operations.

    The image must be what the augmenters saw in training: the same orientation, voxel size and normalisation of
    intensities, cut to patches of about the same size. For a run of ``monai-autoaug train`` its ``preprocessing.json``
    says which (axes to the right, front and head; ``spacing`` in mm; ``zscore``: mean 0 and standard deviation 1 of
    each image, ``ct``: clipped and scaled by the training cases' foreground), and makes it::

        prepare = Preprocessing.load("run/preprocessing.json").transforms()  # monai_autoaug.data.preprocess
        Compose([prepare, LearnedAugmentd(["image", "label"], "run/augmenters.pt")])

    Of nnU-Net's trainers it is nnU-Net's preprocessing of the same plans; of a MONAI pipeline, whatever stood before.
    Other intensities or voxel sizes raise no error, but what the generators predict for them means nothing: bounds of
    ``appearance`` are in standard deviations of the normalised image, those of ``deformation`` in voxels; an
    ``affine`` map turns in mm, by the MetaTensor's voxel size (without one, voxels count as cubes).

    Args:
        keys: image key first, then whatever follows its geometry.
        augmenters: file written by `augmenters.save`, or augmenters by name; with several, one is drawn each time.
        prob: probability that the sample is transformed.
        mode: for each key "image" (resampled linearly, appearance applies), "label" (integer map (1, D, H, W):
            resampled one-hot and decided by the largest share) or "soft" (resampled linearly, background first, no
            appearance). One value for all but the first key, which is an image; or one a key.
        strength: factor between 0 (identity) and 1 (as trained) on what the augmenter predicts.
        allow_missing_keys: don't complain about missing keys.

    Raises:
        ConfigError: a mode is unknown or the strength is outside [0, 1].

    >>> from monai_autoaug.augmenters import AffineAugmenter
    >>> augment = LearnedAugmentd(["image", "label"], {"affine": AffineAugmenter(3, 1)})
    >>> out = augment({"image": torch.rand(1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8, dtype=torch.uint8)})
    >>> out["label"].dtype, tuple(out["image"].shape)
    (torch.uint8, (1, 8, 8, 8))
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        augmenters: str | os.PathLike[str] | Mapping[str, Augmenter],
        *,
        prob: float = 1.0,
        mode: str | Sequence[str] = "label",
        strength: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        loaded = load(augmenters) if isinstance(augmenters, str | os.PathLike) else dict(augmenters)
        if not loaded:
            raise ConfigError("LearnedAugmentd needs at least one augmenter")
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength must be between 0 and 1, got {strength}")
        self.augmenters = {n: a.eval().requires_grad_(False) for n, a in loaded.items()}
        self.strength = strength
        rest = len(self.keys) - 1
        one_for_all = isinstance(mode, str)
        self.mode = ("image", *ensure_tuple_rep(mode, rest)) if one_for_all else ensure_tuple_rep(mode, rest + 1)
        unknown = set(self.mode) - {"image", "label", "soft"}
        if unknown:
            raise ConfigError(f"mode must be 'image', 'label' or 'soft', got {', '.join(sorted(unknown))}")
        self._noise: Tensor | None = None
        self._name = ""

    def randomize(self, data: Any = None) -> None:
        """Draw whether, which augmenter, and the noise: the only place that touches ``self.R``."""
        super().randomize(None)
        names = sorted(self.augmenters)
        self._name = names[int(self.R.randint(len(names)))]
        augmenter = self.augmenters[self._name]
        size = augmenter.noise_size + augmenter.draws
        self._noise = torch.from_numpy(self.R.standard_normal((1, size)).astype(np.float32))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform one sample; the input is not changed."""
        d = dict(data)
        self.randomize(d)
        first = self.first_key(d)
        move: Transformation | None = None
        if self._do_transform and first in d:
            move = self._predict(convert_to_tensor(d[first], track_meta=get_track_meta()))
        for key, mode in self.key_iterator(d, self.mode):
            x = convert_to_tensor(d[key], track_meta=get_track_meta())
            out = x if move is None else _apply(x, move, mode)
            if isinstance(out, MetaTensor):
                self.push_transform(out, extra_info=_describe(move, x))
            d[key] = out
        return d

    def _predict(self, image: Tensor) -> Transformation:
        augmenter = self.augmenters[self._name].to(image.device)
        spacing = None
        if isinstance(image, MetaTensor):
            spacing = torch.as_tensor(np.asarray(image.pixdim), dtype=torch.float32)[None, : image.ndim - 1]
            spacing = spacing.to(image.device)
        plain = image.as_subclass(Tensor).float()[None]
        assert self._noise is not None  # noqa: S101  # for the type checker: randomize has drawn it
        noise = self._noise.to(image.device)
        with torch.no_grad():
            before = augmenter.strength.clone()
            augmenter.strength.fill_(self.strength)
            try:
                return augmenter(plain, noise, spacing=spacing)
            finally:
                augmenter.strength.copy_(before)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the transformation of every key that went through it.

        Raises:
            PolicyError: the augmenter deforms freely (``fidelity="paper"``), which has no inverse; or it has changed an
                image's contrast, gamma or noise, which can't be undone (give its labels alone, allowing missing keys).
        """
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            if not isinstance(d[key], MetaTensor):
                continue
            record = self.pop_transform(d[key])
            if not record["do_transforms"]:
                continue
            if mode == "image" and int(record["extra_info"].get("toned", 0)):
                raise PolicyError(
                    "what was done to the image's intensities can't be undone; invert its labels alone"
                    " (allow_missing_keys)"
                )
            move = _read(record["extra_info"])
            undo = move.inverse()
            if undo is None:
                raise PolicyError("a free deformation field has no inverse; train with the default fidelity to get one")
            d[key] = _apply(d[key], undo.to(d[key].device), mode)
        return d


def _apply(x: Tensor, move: Transformation, mode: str) -> Tensor:
    """Transform one channel-first array and keep its type, dtype and geometry."""
    plain = x.as_subclass(Tensor)
    with torch.no_grad():
        if mode == "image":
            out = move.apply(plain.float()[None])[0].to(plain.dtype if plain.is_floating_point() else torch.float32)
        elif mode == "soft":
            out = move.apply_label(plain.float()[None])[0].to(plain.dtype)
        else:
            values = torch.unique(torch.cat([plain.new_zeros(1), plain.flatten()]))  # background first
            values = torch.cat([values[values == 0], values[values != 0]])
            one_hot = (plain == values.view(-1, *[1] * (plain.ndim - 1))).float()
            out = values[move.apply_label(one_hot[None])[0].argmax(dim=0, keepdim=True)]
    return MetaTensor(out, meta=x.meta, applied_operations=x.applied_operations) if isinstance(x, MetaTensor) else out


def _describe(move: Transformation | None, x: Tensor) -> dict[str, Any]:
    """Coarse parameters under the same names and shapes for every sample, so that samples can be collated."""
    d = x.ndim - 1
    coarse = tuple(-(-n // 4) for n in x.shape[1:])
    if move is None:
        move = Transformation(tuple(x.shape[1:]))
    matrix = torch.eye(d, d + 1) if move.matrix is None else move.matrix[0].cpu()
    free = move.displacement is not None and move.velocity is None
    velocity = torch.zeros(d, *coarse) if move.velocity is None else move.velocity[0].cpu()
    channels = x.shape[0] if move.additive is None else move.additive.shape[1]
    additive = torch.zeros(channels, *coarse) if move.additive is None else move.additive[0].cpu()
    return {"shape": list(x.shape[1:]), "matrix": matrix, "velocity": velocity, "additive": additive, "free": int(free),
            "toned": int(move.tone is not None)}  # fmt: skip


def _read(info: Mapping[str, Any]) -> Transformation:
    shape = tuple(int(n) for n in info["shape"])
    velocity = torch.as_tensor(info["velocity"])[None]
    displacement = integrate(velocity, shape, steps=7)
    free = bool(int(info["free"]))
    return Transformation(
        shape, matrix=torch.as_tensor(info["matrix"])[None], velocity=None if free else velocity,
        displacement=displacement, additive=torch.as_tensor(info["additive"])[None],
    )  # fmt: skip
