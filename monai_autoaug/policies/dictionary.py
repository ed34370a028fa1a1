# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A learned, frozen training-time policy as a MONAI dictionary transform, for any data pipeline."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends, convert_to_tensor, ensure_tuple_rep
from torch import Tensor

from monai_autoaug.errors import ConfigError, DataError, PolicyError
from monai_autoaug.policies.classes import policy_index
from monai_autoaug.policies.policy_file import load
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.transforms import on_cpu

__all__ = ["LearnedPolicyd"]


class LearnedPolicyd(RandomizableTransform, MapTransform):
    """Augment channel-first images and integer label maps of one patch as a policy has learned to.

    Operations are drawn from the policy of the patch's class. Spatial ones move all keys through one resampling on the
    voxel grid, so the MetaTensor's affine is unchanged; the others touch images alone. Use it behind the cropping.

    Args:
        keys: image key first, then whatever moves with it.
        policy: file written by `policies.save`, or a policy.
        prob: probability that the sample is transformed.
        mode: for each key "image" (resampled linearly, all operations apply), "label" (integer map (1, D, H, W), moved
            one-hot and decided by the largest share) or "soft" (channels resampled linearly, background first). One
            value for all but the first key, which is an image; or one a key.
        class_key: key of the patch's label value, an integer; None: read at the centre of the first key of mode
            "label", which a policy of one class does without.
        allow_missing_keys: don't complain about missing keys.

    Raises:
        ConfigError: a mode is unknown, or the first key is no image.
        PolicyError: the file can't be read, or holds no training-time policy.

    >>> augment = LearnedPolicyd(["image", "label"], TrainingPolicy.preset("nnunet")).set_random_state(0)
    >>> out = augment({"image": torch.rand(1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8, dtype=torch.uint8)})
    >>> out["label"].dtype, tuple(out["image"].shape)
    (torch.uint8, (1, 8, 8, 8))
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        policy: str | os.PathLike[str] | TrainingPolicy,
        *,
        prob: float = 1.0,
        mode: str | Sequence[str] = "label",
        class_key: Hashable | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        given = policy if isinstance(policy, TrainingPolicy) else load(policy).training
        if given is None:
            raise PolicyError(f"{policy}: holds no training-time policy; expected one that a training has written")
        self.policy = _copied(given)
        rest = len(self.keys) - 1
        self.mode = (
            ("image", *ensure_tuple_rep(mode, rest)) if isinstance(mode, str) else ensure_tuple_rep(mode, rest + 1)
        )
        unknown = set(self.mode) - {"image", "label", "soft"}
        if unknown or self.mode[0] != "image":
            raise ConfigError(f"mode must be 'image', 'label' or 'soft', the first key's 'image', got {self.mode}")
        self.class_key = class_key
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether, and the seed of all that is drawn: the only place that touches ``self.R``."""
        super().randomize(None)
        self._seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Augment one patch; the input is not changed.

        Raises:
            DataError: sizes of the keys differ, or there is nothing to read the class of the patch from.
            ConfigError: the patch's label value has no class in the policy.
        """
        d = dict(data)
        self.randomize(d)
        modes = dict(self.key_iterator(d, self.mode))
        for key in modes:
            d[key] = convert_to_tensor(d[key], track_meta=get_track_meta())
        if not self._do_transform or "image" not in modes.values():
            return d
        sizes = {str(key): tuple(d[key].shape[1:]) for key in modes}
        if len(set(sizes.values())) > 1:
            raise DataError("keys differ in size", expected="one size", came=sizes, remedy="crop all keys alike")
        kind = policy_index(torch.tensor([self._class(d, modes)]), self.policy.classes)
        return self._augmented(d, modes, kind)

    def _class(self, d: Mapping[Hashable, Any], modes: Mapping[Hashable, str]) -> int:
        """The patch's label value."""
        if len(self.policy.classes) == 1:
            return 0
        if self.class_key is not None:
            if self.class_key not in d:
                raise DataError(f"has no key {self.class_key!r}", expected="the patch's label value", came=list(d))
            return int(d[self.class_key])
        for key, mode in modes.items():
            if mode == "label":
                x = d[key].as_subclass(Tensor)
                centre = (0, *(n // 2 for n in x.shape[1:]))
                return int(x[centre])
        raise DataError(
            "the class of the patch can't be read", expected="a key of mode 'label', or class_key", came=list(modes),
            remedy="give the label among the keys",
        )  # fmt: skip

    def _augmented(self, d: dict[Hashable, Any], modes: Mapping[Hashable, str], kind: Tensor) -> dict[Hashable, Any]:
        """Images as channels of one, everything else as channels that move along."""
        plain = {key: d[key].as_subclass(Tensor) for key in modes}
        images = [key for key, mode in modes.items() if mode == "image"]
        riders = {key: _channels(plain[key], mode) for key, mode in modes.items() if mode != "image"}
        self._refuse_several(riders)
        generator = torch.Generator().manual_seed(self._seed)
        with torch.no_grad():
            indices, _ = self.policy.sample(kind, generator)
            image = torch.cat([plain[key].float() for key in images])[None]
            stack = torch.cat([hot.to(image) for hot, _ in riders.values()])[None] if riders else None
            outside = tuple(v for hot, _ in riders.values() for v in (1.0, *[0.0] * (len(hot) - 1)))
            moved, soft = on_cpu.apply(
                image, stack, indices, self.policy.cascades, generator=generator, outside=outside or None
            )
        sizes = [len(plain[key]) for key in images]
        for key, part in zip(images, moved[0].split(sizes), strict=True):
            dtype = plain[key].dtype
            d[key] = _like(d[key], part.to(dtype if dtype.is_floating_point else torch.float32))
        turned = bool(self.policy.mirrored(indices)[0])
        if soft is not None:
            parts = soft[0].split([len(hot) for hot, _ in riders.values()])
            for (key, (_, values)), part in zip(riders.items(), parts, strict=True):
                d[key] = _like(d[key], self._decided(part, values, turned).to(plain[key].dtype))
        return d

    def _decided(self, soft: Tensor, values: Tensor | None, turned: bool) -> Tensor:
        """A label map again, or soft channels; the sides exchanged where left and right have changed places."""
        sides = self.policy.laterality if turned else None
        if values is None:
            return soft if sides is None else sides.swapped(soft[None])[0]
        label = values[soft.argmax(0, keepdim=True)]
        return label if sides is None else sides.swapped_values(label)

    def _refuse_several(self, riders: Mapping[Hashable, Any]) -> None:
        foreign = [o.name for c in self.policy.cascades for o in c.operations if o.acts == "pair" and o.moves_label]
        if len(riders) > 1 and foreign:
            raise ConfigError(
                f"operation {foreign[0]} moves images and one label alone, got {', '.join(map(str, riders))}. To do: "
                "give one label key, or a policy without it"
            )


def _copied(policy: TrainingPolicy) -> TrainingPolicy:
    """The same policy, frozen and on the CPU, without touching the one that may go on learning."""
    copy = TrainingPolicy(
        policy.cascades, policy.classes, spatial_dims=policy.spatial_dims, temperature=policy.temperature,
        floor=policy.floor, laterality=policy.laterality,
    )  # fmt: skip
    copy.load_state_dict({"logits": policy.logits.detach().cpu()})
    return copy.eval().requires_grad_(False)


def _channels(x: Tensor, mode: str) -> tuple[Tensor, Tensor | None]:
    """Channels that can be resampled, and the label values that they stand for, background first."""
    if mode == "soft":
        return x, None
    values = torch.unique(x)
    values = torch.cat([values.new_zeros(1), values[values != 0]])
    return (x == values.view(-1, *[1] * (x.ndim - 1))), values


def _like(source: Tensor, moved: Tensor) -> Tensor:
    """With the metadata of what it was."""
    if isinstance(source, MetaTensor):
        return MetaTensor(moved, meta=source.meta, applied_operations=source.applied_operations)
    return moved
