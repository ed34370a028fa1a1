# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a user sets without editing a trainer: from the plans' configuration key ``autoaug`` or from one YAML file.

Three layers, the later one wins: the trainer's defaults (`with_autoaug`), the configuration's key ``autoaug`` in the
plans, the YAML file that the environment variable ``MONAI_AUTOAUG_CONFIG`` names. What changes the network or the
patches (``features``, ``width``, ``batch_size``) is written into the plans that nnU-Net saves beside the model, so that
prediction needs neither the variable nor this package to build the same network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import METHODS
from monai_autoaug.methods import options as method_options
from monai_autoaug.precision import DTYPES

__all__ = [
    "BASE_AUGMENTATIONS",
    "CONFIG_VARIABLE",
    "LOADERS",
    "OPTIMIZERS",
    "Options",
    "apply_to_plans",
    "exponent_hint",
    "read_options",
]

CONFIG_VARIABLE = "MONAI_AUTOAUG_CONFIG"
LOADERS = ("seeded", "stock")
BASE_AUGMENTATIONS = ("stock", "mirror", "none")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Options:
    """The options of an nnU-Net trainer with learned augmentation; None keeps what the trainer or the plans say.

    Args:
        method: one of `monai_autoaug.methods.METHODS`; "none" switches learned augmentation off.
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
            that has learned nothing leaves plain nnU-Net), "mirror" (mirroring only) or "none".
        margin: voxels by which each end of each axis of a patch is enlarged, one number or one an axis, so that a
            learned deformation draws real voxels into the patch instead of its border; the step crops it off again.
            None: an eighth of the patch as far as images are larger than it, nothing with method "none". nnU-Net's
            workers augment the enlarged patches, which takes them up to twice the time.
        save_every: epochs between two checkpoints ``checkpoint_latest.pth``.

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
    base_augmentation: str = "stock"
    margin: int | tuple[int, ...] | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("features", "margin"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        _check_types(self)
        _check_combinations(self)

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
                raise ConfigError(f"{source}: there is no option {key!r}; the options are {', '.join(known)}")
        return cls(**dict(given))

    def as_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: what plans and checkpoints hold.

        >>> Options(features=[8, 16]).as_dict()["features"]
        [8, 16]
        """
        plain = asdict(self)
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
            wanted = [0 if self.method == "none" else math.ceil(p / 8) for p in patch_size]
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


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda v: v in METHODS, f"one of {', '.join(sorted(METHODS))}"),
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
}
_REQUIRED = ("method", "method_options", "loader", "base_augmentation")


def _check_types(options: Options) -> None:
    for name, (holds, what) in _RULES.items():
        value = getattr(options, name)
        if value is None and name not in _REQUIRED:
            continue
        if not holds(value):
            raise ConfigError(f"autoaug option {name} must be {what}; got {value!r}{exponent_hint(value)}")


def exponent_hint(value: Any) -> str:
    """What to write instead where YAML has read a number as text, otherwise nothing.

    >>> exponent_hint("1e-4"), exponent_hint("fast")
    (' (YAML takes that for text: an exponent needs a point before it and a sign, as in 1.0e-4)', '')
    """
    if not isinstance(value, str) or "e" not in value.lower():
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return " (YAML takes that for text: an exponent needs a point before it and a sign, as in 1.0e-4)"


def _check_combinations(options: Options) -> None:
    if options.features is not None and options.width is not None:
        raise ConfigError("autoaug options features and width both set the network's channels; give one of them")
    if options.momentum is not None and options.optimizer != "sgd":
        raise ConfigError("autoaug option momentum belongs to optimizer sgd; set optimizer: sgd beside it")
    known = method_options(options.method) if options.method_options else {}
    for key in options.method_options:
        if key not in known:
            raise ConfigError(f"method {options.method!r} has no option {key!r}; it has {', '.join(sorted(known))}")
    if "seed" in options.method_options:
        raise ConfigError("the method's seed is the autoaug option seed; take it out of method_options")
    if "image_channels" in options.method_options:
        raise ConfigError(
            "the trainer knows the image's channels from the plans; take image_channels out of method_options"
        )


def _read_file(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{CONFIG_VARIABLE} names {path}, which is no file; correct or unset it")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold a mapping of options, not {type(content).__name__}")
    return dict(content)


def read_options(defaults: Mapping[str, Any], plans: Mapping[str, Any], configuration: str) -> Options:
    """Merge a trainer's defaults, the plans' key ``autoaug`` and the file of ``MONAI_AUTOAUG_CONFIG``.

    A layer that chooses another method drops the ``method_options`` of the layers below it, which were not meant for
    it.

    Args:
        defaults: the trainer's defaults.
        plans: nnU-Net's plans; configurations inherit the key from the one they name in ``inherits_from``.
        configuration: name of the configuration.

    Raises:
        ConfigError: unknown option or wrong value; the message names the layer and the option.

    >>> plans = {"configurations": {"3d_fullres": {"autoaug": {"epochs": 3}}, "mine": {"inherits_from": "3d_fullres"}}}
    >>> read_options({"method": "none"}, plans, "mine").epochs
    3
    """
    layers: list[tuple[str, dict[str, Any]]] = [("trainer defaults", dict(defaults))]
    layers.append((f"plans, configuration {configuration}, key autoaug", _from_plans(plans, configuration)))
    path = os.environ.get(CONFIG_VARIABLE)
    if path:
        layers.append((f"{CONFIG_VARIABLE}={path}", _read_file(path)))
    merged: dict[str, Any] = {}
    for source, layer in layers:
        if layer.get("method", merged.get("method")) != merged.get("method"):
            merged.pop("method_options", None)
        for alternative in ("features", "width"):
            if layer.get(alternative) is not None:
                merged.pop("width", None)
                merged.pop("features", None)
        merged.update(layer)
        Options.from_mapping(merged, source)
    return Options.from_mapping(merged)


def _from_plans(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    chain: list[Mapping[str, Any]] = []
    name: str | None = configuration
    while name is not None and name in plans["configurations"] and len(chain) < len(plans["configurations"]):
        chain.append(plans["configurations"][name])
        name = chain[-1].get("inherits_from")
    for level in chain:
        if "autoaug" in level:
            if not isinstance(level["autoaug"], Mapping):
                raise ConfigError(
                    f"plans, configuration {configuration}: the key autoaug must hold a mapping of options"
                )
            return dict(level["autoaug"])
    return {}


def apply_to_plans(options: Options, plans: Mapping[str, Any], configuration: str) -> tuple[Options, dict[str, Any]]:
    """Plans in which batch size, channels and the options themselves are written down, and the options to go with them.

    ``width`` becomes ``features``, so that applying the result again changes nothing.

    Args:
        options: what the user wants.
        plans: nnU-Net's plans; not changed.
        configuration: name of the configuration.

    Raises:
        ConfigError: the network has no stages to set channels of, or another number of them.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    result = deepcopy(dict(plans))
    here = result["configurations"][configuration]
    if options.batch_size is not None:
        here["batch_size"] = options.batch_size
    if options.features is not None or options.width is not None:
        resolved = PlansManager(deepcopy(dict(plans))).get_configuration(configuration).configuration
        architecture = deepcopy(resolved["architecture"])
        planned = architecture["arch_kwargs"].get("features_per_stage")
        if not isinstance(planned, Sequence) or isinstance(planned, str):
            raise ConfigError(
                f"the plans' network {architecture['network_class_name']} has no features_per_stage;"
                " features and width can't change its channels: leave them out"
            )
        features = options.features or tuple(max(1, round(f * options.width)) for f in planned)
        if len(features) != len(planned):
            raise ConfigError(f"autoaug option features has {len(features)} numbers, the network {len(planned)} stages")
        architecture["arch_kwargs"]["features_per_stage"] = list(features)
        here["architecture"] = architecture
        options = replace(options, features=tuple(features), width=None)
    here["autoaug"] = options.as_dict()
    return options, result
