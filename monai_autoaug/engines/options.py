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
from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.methods.montage import check_board
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
    """The precision of a name: "mixed" is the half precision that suits the device, "auto" that of a GPU only.

    Raises:
        ConfigError: it is unknown, or float16 on the CPU.

    >>> find_precision("auto", torch.device("cpu")), find_precision("mixed", torch.device("cpu"))
    ('float32', 'bfloat16')
    """
    if name == "auto" and device.type != "cuda":
        return "float32"
    if name in ("auto", "mixed"):
        return "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"
    if name not in DTYPES:
        raise ConfigError(f"precision must be auto, mixed or one of {', '.join(DTYPES)}, got {name!r}")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("float16 needs a GPU; use precision float32 or bfloat16 on the CPU")
    return name


@dataclass(frozen=True)
class TrainOptions:
    """What `engines.train` needs to know.

    Args:
        data: a data set in any of the layouts of `data.read_datalist`.
        output: the run folder, made by the run.
        method: one of `methods.names`.
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
        meta_cases: training cases that are set apart for meta-validation, from which policies are learned, or their
            share; None: as the method has it (a quarter for "joint_policy"), none for a method that needs none.
        meta_split: "fixed": the same all the time; "resampled": others in each epoch, so that every case is trained on;
            None: as the method has it ("fixed" for "joint_policy").
        meta_list: instead of ``meta_cases``: a file with the names of training cases (a JSON list, or one a line), or
            the folder of another labelled data set, for example of another site.
        split: instead of ``train_cases`` and ``validation_cases``: a file that names the cases of both, and perhaps
            cases whose images are taken as unlabelled (`data.SplitFile`); all others are left alone.
        unlabelled: a folder of images without labels, for a method that learns from these, in place of those that the
            data set lists itself (``unlabelled`` in dataset.json, or a folder of that name).
        validation_interval: epochs between validations; the last epoch is always validated.
        spacing: voxel size in mm that volumes are resampled to; None: the training cases' median.
        normalisation: of intensities, for all channels or one a channel: "ct" (clipped and scaled by the foreground of
            the training cases), "zscore" (each image by itself), "percentile" (each image's 2nd percentile to 0, its
            98th to 1), or "auto": "ct" where a channel's name is CT, else "zscore".
        bias_correction: N4 bias correction of MR images before they are normalised.
        seed: of everything random but the split.
        split_seed: of the split into training and validation cases.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto", "mixed", "float32", "bfloat16" or "float16", see `find_precision`.
        workers: processes that cut patches; batches are the same whatever their number.
        cache: a folder for preprocessed volumes; None: they are kept in memory.
        tensorboard: write scalars and pictures of samples for TensorBoard into the run's folder.

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
    meta_cases: int | float | None = None
    meta_split: str | None = None
    meta_list: Path | None = None
    split: Path | None = None
    unlabelled: Path | None = None
    validation_interval: int = 5
    spacing: tuple[float, float, float] | None = None
    normalisation: str | tuple[str, ...] = "auto"
    bias_correction: bool = False
    seed: int = 0
    split_seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    cache: Path | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "output", "meta_list", "split", "unlabelled", "cache"):
            _path(self, name)
        for name in ("method", "network", "device", "precision"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a word, got {getattr(self, name)!r}")
        for name, kind in (("patch_size", int), ("spacing", float)):
            _three(self, name, kind)
        _words(self, "normalisation", NORMALISATIONS)
        if not isinstance(self.bias_correction, bool):
            raise ConfigError(f"bias_correction must be true or false, got {self.bias_correction!r}")
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
        _cases(self, "validation_cases")
        if self.split is not None:
            for name in ("train_cases", "validation_cases"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(f"split names the cases; leave out {name}")
        methods.check(self.method, self.method_options)
        if self.tensorboard:
            check_board()
        self._check_meta()
        if self.unlabelled is not None and not self.learns_from_unlabelled:
            raise ConfigError(
                f"method {self.method!r} learns nothing from unlabelled images with these options; leave out unlabelled"
            )
        check_network(self.network, self.network_options)

    def _check_meta(self) -> None:
        """Refuse a choice of meta-validation cases that can't be, or that nothing would come of."""
        if self.meta_split is None:
            own = self.learns_from_meta and self.meta_list is None
            object.__setattr__(self, "meta_split", methods.find(self.method).meta_split if own else "fixed")
        if self.meta_split not in ("fixed", "resampled"):
            raise ConfigError(f"meta_split must be fixed or resampled, got {self.meta_split!r}")
        if self.meta_cases not in (None, 0):
            _cases(self, "meta_cases")
        if self.meta_list is not None and self.meta_cases is not None:
            raise ConfigError("meta_cases and meta_list both choose the meta-validation cases; give one of them")
        if self.meta_list is not None and self.meta_split == "resampled":
            raise ConfigError("meta_split resampled draws other cases each epoch, but meta_list names them; give one")
        if self.learns_from_meta and self.meta_cases == 0:
            raise ConfigError(f"method {self.method!r} learns from meta-validation cases; meta_cases can't be 0")
        if not self.learns_from_meta and self.meta_cases is None and self.meta_split == "resampled":
            raise ConfigError(
                f"method {self.method!r} has no meta-validation cases that could be resampled; give meta_cases too to"
                " set some apart all the same"
            )

    @property
    def learns_from_meta(self) -> bool:
        """Whether the method, with its options, needs meta-validation cases."""
        return "meta" in methods.streams(self.method, **self.method_options)

    @property
    def learns_from_unlabelled(self) -> bool:
        """Whether the method, with its options, needs unlabelled images."""
        return "unlabelled" in methods.streams(self.method, **self.method_options)

    @property
    def meta_share(self) -> int | float:
        """How many of the training cases are set apart for meta-validation, or their share, without ``meta_list``.

        >>> TrainOptions("data", "run", method="joint_policy").meta_share, TrainOptions("data", "run").meta_share
        (0.25, 0)
        """
        if self.meta_cases is None:
            return methods.find(self.method).meta_share if self.learns_from_meta and self.meta_list is None else 0
        return self.meta_cases

    @property
    def meta_batch(self) -> int:
        """Patches of a meta-validation batch, as the method wants it."""
        known = methods.options(self.method).get("meta_batch")
        default = methods.find(self.method).meta_batch if known is None else known.default
        return int(self.method_options.get("meta_batch", default))

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
            raise ConfigError(
                f"unknown training options: {', '.join(unknown)}; there are {', '.join(known)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        if missing := sorted({"data", "output"} - set(values)):
            raise ConfigError(f"training needs {' and '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as `from_mapping` takes them."""
        return {name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
                for name, v in asdict(self).items()}  # fmt: skip


def _path(options: TrainOptions, name: str) -> None:
    """Check and convert a path, or None where there need not be one."""
    value = getattr(options, name)
    if value is None and name not in ("data", "output"):
        return
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ConfigError(f"{name} must be a path, got {value!r}")
    object.__setattr__(options, name, Path(value))


def _number(options: TrainOptions, name: str, kind: type, good: Callable[[Any], bool], expected: str) -> None:
    """Check one number."""
    value = getattr(options, name)
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not fits or not good(value):
        raise ConfigError(f"{name} must be {expected}, got {value!r}")


def _cases(options: TrainOptions, name: str) -> None:
    """Check a number of cases, or a share of them."""
    if isinstance(getattr(options, name), int):
        _number(options, name, int, lambda v: v >= 1, "at least 1")
    else:
        _number(options, name, float, lambda v: 0 < v < 1, "a number of cases, or a share below 1")


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
