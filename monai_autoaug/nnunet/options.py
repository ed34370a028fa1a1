# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a user sets without editing a trainer (where it is read from: `monai_autoaug.nnunet.layers`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.methods import check, find, names, streams
from monai_autoaug.methods.montage import check_board
from monai_autoaug.nnunet.split import META_SPLITS
from monai_autoaug.precision import DTYPES

__all__ = [
    "BASE_AUGMENTATIONS",
    "CONFIG_VARIABLE",
    "LOADERS",
    "OPTIMIZERS",
    "POLICY_PLACES",
    "Options",
]

CONFIG_VARIABLE = "MONAI_AUTOAUG_CONFIG"
LOADERS = ("seeded", "stock")
BASE_AUGMENTATIONS = ("stock", "mirror", "none")
OPTIMIZERS = ("sgd", "adamw")
POLICY_PLACES = ("device", "workers")


@dataclass(frozen=True)
class Options:
    """The options of an nnU-Net trainer with learned augmentation; None keeps what the trainer or the plans say.

    Args:
        method: one of `monai_autoaug.methods.names`; "none" switches learned augmentation off.
        method_options: the method's own options, handed to `monai_autoaug.methods.build`.
        epochs: epochs of training.
        iterations_per_epoch: training iterations an epoch.
        val_iterations_per_epoch: iterations of the online validation an epoch.
        batch_size: patches a batch, over all ranks.
        optimizer: "sgd" (Nesterov) or "adamw", with a polynomial schedule; None: the trainer's own optimiser and
            schedule.
        lr: initial learning rate; with "adamw" the default is 1e-3.
        weight_decay: weight decay.
        momentum: momentum of "sgd"; default 0.99, as nnU-Net.
        features: channels of each stage of the network.
        width: factor on the plans' channels, instead of ``features``.
        seed: seed of the initial weights, of the method and, with the seeded loader, of every batch; None: as torch
            has it.
        loader: "seeded" (batches in order, each one seeded) or "stock" (nnU-Net's own, neither ordered nor seeded).
        precision: "float32", "bfloat16" or "float16"; None: as nnU-Net, float16 on a GPU and float32 elsewhere.
        base_augmentation: nnU-Net's own augmentation under the learned one: "stock" (all of it, so that an augmenter
            that has learned nothing leaves plain nnU-Net), "mirror" (mirroring only) or "none". None: "none" for a
            method that is meant instead of it ("joint_policy"), "stock" for others.
        margin: voxels by which each end of each axis of a patch is enlarged, one number or one an axis, so that a
            learned deformation draws real voxels into the patch instead of its border; the step crops it off again.
            None: an eighth of the patch as far as images are larger than it, a quarter where the method replaces
            nnU-Net's augmentation (enough for a rotation by 30 degrees or a scaling by 1.5), nothing with method
            "none". nnU-Net's workers augment the enlarged patches, which takes them up to twice the time.
        save_every: epochs between two checkpoints ``checkpoint_latest.pth``.
        meta_cases: where something is learned from meta-validation (by "joint_policy"): how many of the fold's training
            cases are set apart for it, or which share of them; default: as the method has it, 0.25 for "joint_policy".
            Or names of cases, for example of another site, that are not the fold's validation cases. Those never take
            part.
        meta_split: "fixed" or "resampled": set other cases apart in each epoch, so that all of them train. Default: as
            the method has it ("fixed" for "joint_policy", "resampled" for "bilevel"), "fixed" for cases that are named
            and for loader "stock".
        tensorboard: write scalars and pictures of samples for TensorBoard into the fold's folder.
        policy_place: for methods that augment by a training policy ("joint_policy"): on the "device" (default), by the
            policy as it is, in the training step; or in nnU-Net's "workers", on the CPU and by the policy as it was 32
            batches before, for a GPU that has no time to spare. With more than 12 workers some wait for it.

    >>> Options(method="none", epochs=2).epochs
    2
    >>> Options(loader="quick")
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: autoaug option loader must be one of seeded, stock; got 'quick'
    """

    method: str = "adversarial"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    val_iterations_per_epoch: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    features: tuple[int, ...] | None = None
    width: float | None = None
    seed: int | None = 0
    loader: str = "seeded"
    precision: str | None = None
    base_augmentation: str | None = None
    margin: int | tuple[int, ...] | None = None
    save_every: int | None = None
    meta_cases: int | float | tuple[str, ...] | None = None
    meta_split: str | None = None
    policy_place: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("features", "margin", "meta_cases"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        _check_types(self)
        _check_combinations(self)
        method = find(self.method)
        defaults: dict[str, Any] = {"base_augmentation": "none" if method.replaces_augmentation else "stock"}
        if self.learns_from_meta:
            still = isinstance(self.meta_cases, tuple) or self.loader == "stock"  # which no epoch can tell from another
            defaults |= {"meta_cases": method.meta_share, "meta_split": "fixed" if still else method.meta_split}
        if method.draws_operations:
            defaults["policy_place"] = "device"
        for name, value in defaults.items():
            if getattr(self, name) is None:  # frozen: no plain assignment
                object.__setattr__(self, name, value)

    @property
    def learns_from_meta(self) -> bool:
        """Whether the method, with its options, needs meta-validation cases.

        >>> Options(method="joint_policy", method_options={"learn_training": False, "test_time": False}).meta_cases
        """
        return "meta" in streams(self.method, **self.method_options)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], source: str = "autoaug") -> Options:
        """Options from a mapping.

        Raises:
            ConfigError: a key is unknown, or a value is of the wrong kind.

        >>> Options.from_mapping({"epoch": 3})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_autoaug.errors.ConfigError: autoaug: there is no option 'epoch'; the options are ...
        """
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                names = ", ".join(known)
                raise ConfigError(
                    f"{source}: there is no option {key!r}; the options are {names}{did_you_mean(key, known)}"
                )
        return cls(**dict(given))

    def as_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: what plans and checkpoints hold, of an absolute path the file's name.

        >>> Options(features=[8, 16]).as_dict()["features"]
        [8, 16]
        """
        plain = asdict(self)
        policy = plain["method_options"].get("policy")
        if isinstance(policy, str | Path):  # folders tell of the machine and its users
            path = Path(policy)
            plain["method_options"]["policy"] = path.name if path.is_absolute() else path.as_posix()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def margins(self, patch_size: Sequence[int], image_size: Sequence[float]) -> tuple[int, ...]:
        """The margin of each axis.

        Args:
            patch_size: of the network.
            image_size: median size of the images in voxels.

        Raises:
            ConfigError: another number of axes was given.

        >>> Options().margins((64, 64, 40), (80, 68, 40)), Options(margin=4).margins((64, 64), (80, 80))
        ((8, 2, 0), (4, 4))
        """
        if self.margin is None:
            beyond = [math.ceil((n - p) / 2) for p, n in zip(patch_size, image_size, strict=True)]
            share = 4 if find(self.method).replaces_augmentation else 8
            wanted = [0 if self.method == "none" else math.ceil(p / share) for p in patch_size]
            return tuple(max(0, min(w, b)) for w, b in zip(wanted, beyond, strict=True))
        if isinstance(self.margin, int):
            return (self.margin,) * len(patch_size)
        if len(self.margin) != len(patch_size):
            raise ConfigError(
                f"autoaug option margin has {len(self.margin)} numbers, patches have {len(patch_size)} axes"
            )
        return self.margin


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_meta(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)
    return _is_count(value) or (isinstance(value, float) and 0 < value < 1)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda v: v in names(), "the name of a method"),
    "method_options": (lambda v: isinstance(v, Mapping), "a mapping of the method's options"),
    "epochs": (_is_count, "a positive whole number"),
    "iterations_per_epoch": (_is_count, "a positive whole number"),
    "val_iterations_per_epoch": (_is_count, "a positive whole number"),
    "batch_size": (_is_count, "a positive whole number"),
    "optimizer": (lambda v: v in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    "lr": (_is_rate, "a number of at least 0"),
    "weight_decay": (_is_rate, "a number of at least 0"),
    "momentum": (lambda v: _is_rate(v) and v < 1, "a number of at least 0 and less than 1"),
    "features": (
        lambda v: isinstance(v, tuple) and bool(v) and all(map(_is_count, v)),
        "a list of positive whole numbers",
    ),
    "width": (lambda v: _is_rate(v) and v > 0, "a number above 0"),
    "seed": (_is_natural, "a whole number of at least 0"),
    "loader": (lambda v: v in LOADERS, f"one of {', '.join(LOADERS)}"),
    "precision": (lambda v: v in DTYPES, f"one of {', '.join(DTYPES)}"),
    "base_augmentation": (lambda v: v in BASE_AUGMENTATIONS, f"one of {', '.join(BASE_AUGMENTATIONS)}"),
    "margin": (
        lambda v: _is_natural(v) or (isinstance(v, tuple) and all(map(_is_natural, v))),
        "a whole number of at least 0, or one an axis",
    ),
    "save_every": (_is_count, "a positive whole number"),
    "meta_cases": (_is_meta, "a positive whole number, a share between 0 and 1, or a list of different names of cases"),
    "meta_split": (lambda v: v in META_SPLITS, f"one of {', '.join(META_SPLITS)}"),
    "policy_place": (lambda v: v in POLICY_PLACES, f"one of {', '.join(POLICY_PLACES)}"),
    "tensorboard": (lambda v: isinstance(v, bool), "true or false"),
}
_REQUIRED = ("method", "method_options", "loader", "tensorboard")


def _check_types(options: Options) -> None:
    for name, (holds, what) in _RULES.items():
        value = getattr(options, name)
        if value is None and name not in _REQUIRED:
            continue
        if not holds(value):
            what = f"one of {', '.join(sorted(names()))}" if name == "method" else what
            raise ConfigError(f"autoaug option {name} must be {what}; got {value!r}")


def _check_combinations(options: Options) -> None:
    if options.features is not None and options.width is not None:
        raise ConfigError("autoaug options features and width both set the network's channels; give one of them")
    if options.momentum is not None and options.optimizer != "sgd":
        raise ConfigError("autoaug option momentum belongs to optimizer sgd; set optimizer: sgd beside it")
    if options.policy_place is not None and not find(options.method).draws_operations:
        raise ConfigError(f"method {options.method!r} has no training policy; leave policy_place out")
    if options.policy_place == "workers" and options.loader != "seeded":
        raise ConfigError("policy_place: workers needs loader: seeded, by which a batch knows its policy")
    if options.tensorboard:
        check_board()
    check(options.method, options.method_options)
    if "seed" in options.method_options:
        raise ConfigError("the method's seed is the autoaug option seed; take it out of method_options")
    if "image_channels" in options.method_options:
        raise ConfigError(
            "the trainer knows the image's channels from the plans; take image_channels out of method_options"
        )
    _check_meta(options)


def _check_meta(options: Options) -> None:
    meta = {n: getattr(options, n) for n in ("meta_cases", "meta_split")}
    if not options.learns_from_meta:
        with_these = " with these method_options" if "meta" in find(options.method).needs else ""
        for name, value in meta.items():
            if value is not None:
                raise ConfigError(
                    f"method {options.method!r} learns nothing from meta-validation{with_these}; leave {name} out"
                )
    elif options.meta_split == "resampled":
        if isinstance(options.meta_cases, tuple):
            raise ConfigError("meta_split: resampled draws the cases that meta_cases names; give a number or a share")
        if options.loader != "seeded":
            raise ConfigError("meta_split: resampled needs loader: seeded, by which a batch knows its epoch")
