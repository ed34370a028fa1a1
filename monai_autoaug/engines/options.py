# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The options of a training run: checked before the first image is opened, written into the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from monai_autoaug import methods
from monai_autoaug.data.schemes import NORMALISATIONS
from monai_autoaug.engines.segmentation import check_network
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import DTYPES

__all__ = ["TrainOptions", "find_device", "find_precision"]


def find_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} can't be used ({reason}); use auto, cpu or cuda") from error
    return device


def find_precision(name: str, device: torch.device) -> str:
    """The precision of a name; "auto" is float32 on the CPU and the best half precision of a GPU.

    Raises:
        ConfigError: it is unknown, or float16 on the CPU.

    >>> find_precision("auto", torch.device("cpu"))
    'float32'
    """
    if name == "auto":
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if name not in DTYPES:
        raise ConfigError(f"precision must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("float16 needs a GPU; use precision float32 or bfloat16 on the CPU")
    return name


@dataclass(frozen=True)
class TrainOptions:
    """What `engines.train` needs to know.

    Args:
        data: a data set in any of the layouts of `data.read_datalist`.
        output: the run folder, made by the run.
        method: a name in `methods.METHODS`.
        method_options: its options.
        network: "unet", "segresnet" or "dynunet" (MONAI's).
        network_options: see `engines.segmentation.build_network`.
        epochs: epochs.
        iterations: iterations an epoch.
        batch_size: patches a batch; in the combined mode of a learned augmentation a quarter of them stays clean.
        patch_size: voxels D, H, W; None: the training cases' median shape, capped.
        learning_rate: of AdamW at the start; it falls to 0 polynomially.
        weight_decay: of AdamW.
        train_cases: cases to learn from; None: all but the validation cases.
        validation_cases: a number of cases, or their share of all.
        validation_interval: epochs between validations; the last epoch is always validated.
        spacing: voxel size in mm that volumes are resampled to; None: the training cases' median.
        normalisation: of intensities, for all channels or one a channel: "ct" (clipped and scaled by the foreground of
            the training cases), "zscore" (each image by itself), or "auto": "ct" where a channel's name is CT.
        seed: of everything random but the split.
        split_seed: of the split into training and validation cases.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto", "float32", "bfloat16" or "float16".
        workers: processes that cut patches; batches are the same whatever their number.
        cache: a folder for preprocessed volumes; None: they are kept in memory.

    Raises:
        ConfigError: an option is unknown or out of range.

    >>> TrainOptions("data", "run", epochs=3).to_dict()["epochs"]
    3
    """

    data: Path
    output: Path
    method: str = "adversarial"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 40
    iterations: int = 50
    batch_size: int = 4
    patch_size: tuple[int, int, int] | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    train_cases: int | None = None
    validation_cases: int | float = 0.2
    validation_interval: int = 5
    spacing: tuple[float, float, float] | None = None
    normalisation: str | tuple[str, ...] = "auto"
    seed: int = 0
    split_seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("data", "output", "cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name, kind in (("patch_size", int), ("spacing", float)):
            _three(self, name, kind)
        _words(self, "normalisation", NORMALISATIONS)
        for name in ("method_options", "network_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name} must be a table of names and values, got {getattr(self, name)!r}")
            object.__setattr__(self, name, dict(getattr(self, name)))
        for name in ("epochs", "iterations", "batch_size", "validation_interval"):
            _number(self, name, int, lambda v: v >= 1, "at least 1")
        for name in ("seed", "split_seed", "workers"):
            _number(self, name, int, lambda v: v >= 0, "0 or more")
        _number(self, "learning_rate", float, lambda v: 0 < v < 1, "between 0 and 1")
        _number(self, "weight_decay", float, lambda v: v >= 0, "0 or more")
        if self.train_cases is not None:
            _number(self, "train_cases", int, lambda v: v >= 1, "at least 1")
        if isinstance(self.validation_cases, int):
            _number(self, "validation_cases", int, lambda v: v >= 1, "at least 1")
        else:
            _number(self, "validation_cases", float, lambda v: 0 < v < 1, "a number of cases, or a share below 1")
        methods.check(self.method, self.method_options)
        check_network(self.network, self.network_options)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainOptions:
        """Options by name, as they stand in a YAML or JSON file.

        Raises:
            ConfigError: a name is unknown, or data or output is missing.

        >>> TrainOptions.from_mapping({"data": "d", "output": "o", "patch": [8, 8, 8]})
        Traceback (most recent call last):
        monai_autoaug.errors.ConfigError: unknown training options: patch; there are ...
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"unknown training options: {', '.join(unknown)}; there are {', '.join(known)}")
        if missing := sorted({"data", "output"} - set(values)):
            raise ConfigError(f"training needs {' and '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as `from_mapping` takes them."""
        return {name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
                for name, v in asdict(self).items()}  # fmt: skip


def _number(options: TrainOptions, name: str, kind: type, good: Callable[[Any], bool], expected: str) -> None:
    """Check one number."""
    value = getattr(options, name)
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not fits or not good(value):
        raise ConfigError(f"{name} must be {expected}, got {value!r}")


def _words(options: TrainOptions, name: str, known: Sequence[str]) -> None:
    """Check a word, or check and freeze a list of them."""
    value = getattr(options, name)
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, tuple | list) or not several or not all(word in known for word in several):
        raise ConfigError(f"{name} must be one of {', '.join(known)}, or a list of these, got {value!r}")
    if not isinstance(value, str):
        object.__setattr__(options, name, tuple(several))


def _three(options: TrainOptions, name: str, kind: type) -> None:
    """Check and freeze three positive numbers, or None."""
    value = getattr(options, name)
    if value is None:
        return
    numbers = isinstance(value, tuple | list) and len(value) == 3
    if not numbers or not all(isinstance(v, int if kind is int else (int, float)) and v > 0 for v in value):
        raise ConfigError(f"{name} must be three positive numbers, got {value!r}")
    object.__setattr__(options, name, tuple(kind(v) for v in value))
