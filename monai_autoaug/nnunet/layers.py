# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where options come from: the trainer, the plans' configuration key ``autoaug``, one YAML file.

Three layers, the later one wins: the trainer's defaults (`with_autoaug`), the configuration's key ``autoaug`` in the
plans, the YAML file that the environment variable ``MONAI_AUTOAUG_CONFIG`` names. What changes the network or the
patches (``features``, ``width``, ``batch_size``) is written into the plans that nnU-Net saves beside the model, so that
prediction needs neither the variable nor this package to build the same network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.options import CONFIG_VARIABLE, Options
from monai_autoaug.reading import MEBIBYTE, read_text
from monai_autoaug.yaml_values import parse

__all__ = ["apply_to_plans", "read_options"]

_META = ("meta_cases", "meta_split")


def _read_file(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{CONFIG_VARIABLE} names {path}, which is no file; correct or unset it")
    try:
        content = parse(read_text(file, largest=MEBIBYTE))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold a mapping of options, not {type(content).__name__}")
    return dict(content)


def read_options(defaults: Mapping[str, Any], plans: Mapping[str, Any], configuration: str) -> Options:
    """Merge a trainer's defaults, the plans' key ``autoaug`` and the file of ``MONAI_AUTOAUG_CONFIG``.

    A layer that chooses another method drops ``method_options``, ``policy_place`` and the choice of meta-validation
    cases of the layers below it, which were not meant for it; one whose ``method_options`` leave nothing to learn from
    meta-validation drops that choice too.

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
            for name in ("method_options", "policy_place", *_META):
                merged.pop(name, None)
        for alternative in ("features", "width"):
            if layer.get(alternative) is not None:
                merged.pop("width", None)
                merged.pop("features", None)
        merged.update(layer)
        others = {name: value for name, value in merged.items() if name not in _META}
        if not Options.from_mapping(others, source).learns_from_meta:
            merged = others | {name: layer[name] for name in _META if name in layer}
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
        ConfigError: there is no such configuration; or the network has no stages to set channels of, or another number.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    result = deepcopy(dict(plans))
    if configuration not in result["configurations"]:
        raise ConfigError(
            f"the plans have no configuration {configuration!r}; they have {', '.join(result['configurations'])}"
        )
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
