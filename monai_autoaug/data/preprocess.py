# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Preprocessing, decided on the training cases, saved as a small JSON file, and undone when a prediction is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms.compose import Compose
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from numpy.typing import NDArray
from torch import Tensor

from monai_autoaug.data.bias import CorrectBiasd
from monai_autoaug.data.datalist import Case, DataList
from monai_autoaug.data.restore import restore
from monai_autoaug.data.schemes import NORMALISATIONS, Scheme, choose_schemes
from monai_autoaug.data.statistics import IntensityStatistics, case_facts, pooled_statistics
from monai_autoaug.data.volume_transforms import (
    LabelIndexd,
    LoadNiftid,
    MatchGridd,
    NormalizeLikeNNUNetd,
    RecordGridd,
    ResampleLabeld,
    StrictCompose,
)
from monai_autoaug.errors import ConfigError
from monai_autoaug.reading import MEBIBYTE, read_json
from monai_autoaug.writing import write_text

__all__ = ["Clean", "Preprocessing", "patch_options"]

# label map, voxel size in mm, label values of each structure -> label map
Clean = Callable[[NDArray[Any], tuple[float, ...], Sequence[tuple[int, ...]]], NDArray[Any]]
VERSION = 1
_OPPOSITE = {"L": "R", "P": "A", "I": "S"}
_LARGEST_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Preprocessing:
    """How volumes become a network's input, and its output a label file: orientation, spacing, intensities, labels.

    Args:
        channels: the names of the image channels.
        spacing: mm a voxel, in the order of the target orientation's axes.
        normalisation: ``"ct"``, ``"zscore"`` or ``"percentile"``, one a channel.
        statistics: the training cases' foreground intensities, one a channel.
        label_values: the label values in ascending order, background (0) first; position = class of the network.
        label_names: their names (with regions: the regions' names).
        regions: with regions, the label values of each; else None.
        regions_class_order: with regions, the label value that each writes, later over earlier ones; else None.
        ignore_label: the value of voxels whose label is unknown, or None.
        orientation: the direction of the axes, as in nibabel: "RAS" means to the right, anterior and superior.
        median_shape: the training cases' median shape in voxels after resampling; a hint for the patch size.
        bias_correction: N4 bias correction before the normalisation (`correct_bias`).

    Raises:
        ConfigError: a field is not finite, not positive where it has to be, or does not fit the others.
    """

    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    normalisation: tuple[Scheme, ...]
    statistics: tuple[IntensityStatistics, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...] | None = None
    regions_class_order: tuple[int, ...] | None = None
    ignore_label: int | None = None
    orientation: str = "RAS"
    median_shape: tuple[int, int, int] = (0, 0, 0)
    bias_correction: bool = False

    def __post_init__(self) -> None:
        count = len(self.channels)
        checks = {
            "channels": count > 0 and all(isinstance(c, str) for c in self.channels),
            "spacing": len(self.spacing) == 3 and all(_number(s) and s > 0 for s in self.spacing),
            "normalisation": len(self.normalisation) == count and set(self.normalisation) <= set(NORMALISATIONS[1:]),
            "statistics": len(self.statistics) == count,
            "label_values": all(_whole(v) and v <= _LARGEST_LABEL for v in self.label_values)
            and self.label_values[:1] == (0,)
            and list(self.label_values) == sorted(set(self.label_values)),
            "label_names": len(self.label_names) == len(self.regions or self.label_values),
            "regions": self.regions is None or all(set(r) <= set(self.label_values) for r in self.regions),
            "regions_class_order": (self.regions is None) == (self.regions_class_order is None)
            and len(self.regions or ()) == len(self.regions_class_order or ())
            and all(_whole(v) and v <= _LARGEST_LABEL for v in self.regions_class_order or ()),
            "ignore_label": self.ignore_label is None
            or (_whole(self.ignore_label) and self.ignore_label > self.label_values[-1]),
            "orientation": sorted(_OPPOSITE.get(c, c) for c in self.orientation) == ["A", "R", "S"],
            "median_shape": len(self.median_shape) == 3 and all(_whole(n) for n in self.median_shape),
            "bias_correction": isinstance(self.bias_correction, bool),
        }
        for name, good in checks.items():
            if not good:
                raise ConfigError(f"preprocessing: {name} can't be {getattr(self, name)!r}")
        if self.bias_correction and "ct" in self.normalisation:
            raise ConfigError(
                "bias_correction is for MR images, but a channel is normalised as CT; leave it out, or choose another"
                " normalisation"
            )

    @property
    def num_classes(self) -> int:
        """Label values, the background included and the ignore label left out."""
        return len(self.label_values)

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output: one a region, or one a label value."""
        return self.num_classes if self.regions is None else len(self.regions)

    @property
    def patch_options(self) -> dict[str, Any]:
        """``num_classes``, ``regions`` and ``ignore_label`` of `PatchBatches` for volumes preprocessed so."""
        return patch_options(self.label_values, self.regions, self.ignore_label)

    @classmethod
    def fit(
        cls,
        datalist: DataList,
        cases: Sequence[Case],
        *,
        spacing: Sequence[float] | None = None,
        normalisation: str | Sequence[str] = "auto",
        orientation: str = "RAS",
        bias_correction: bool = False,
    ) -> Preprocessing:
        """Decide on the training cases; each is read once.

        Args:
            datalist: the data set.
            cases: the cases that are learned from, without validation cases.
            spacing: mm a voxel in the order of the orientation's axes; None: the median of the cases.
            normalisation: "auto", "ct", "zscore" or "percentile", one for all channels or one a channel (see
                `choose_schemes`).
            orientation: the direction of the axes.
            bias_correction: N4 bias correction of all channels; it takes seconds a volume.

        Raises:
            DataError: a file is broken, or no case has foreground.
            ConfigError: an argument is out of range, or there is no case.
        """
        if not cases:
            raise ConfigError("preprocessing needs at least one training case")
        schemes = choose_schemes(normalisation, datalist.channels)
        facts = case_facts(datalist, cases, orientation=orientation)
        target = np.median([f.spacing for f in facts], axis=0) if spacing is None else np.array(spacing, float)
        if target.shape != (3,):
            raise ConfigError(f"spacing must be three numbers in mm, got {spacing}")
        target = target.round(6)
        shapes = [f.shape * f.spacing / np.where(target > 0, target, 1) for f in facts]
        regions = datalist.regions
        names = datalist.foreground if regions is not None else {"background": 0, **datalist.foreground}
        by_value = {v: n for n, v in names.items()}
        values = datalist.label_values
        return cls(
            channels=datalist.channels,
            spacing=(float(target[0]), float(target[1]), float(target[2])),
            normalisation=schemes,
            statistics=pooled_statistics(facts, datalist.folder),
            label_values=values,
            label_names=tuple(names) if regions is not None else tuple(by_value[v] for v in values),
            regions=regions,
            regions_class_order=datalist.regions_class_order,
            ignore_label=datalist.ignore_label,
            orientation=orientation,
            median_shape=tuple(int(n) for n in np.median(shapes, axis=0).round()),  # type: ignore[arg-type]  # three
            bias_correction=bias_correction,
        )

    def transforms(self, keys: Sequence[str] = ("image", "label")) -> Compose:
        """Deterministic MONAI transforms: paths -> ``image`` (C, D, H, W) float32 and ``label`` (1, D, H, W) integer.

        Items also get ``affine`` (4, 4) and ``spacing`` (3,) of the preprocessed grid.
        As in nnU-Net the intensities are normalised before resampling. Volumes that have the target spacing already are
        not resampled. Nothing is random, so CacheDataset and PersistentDataset cache all of it.

        Args:
            keys: the key of the image, and that of the label if there is one.

        Raises:
            ConfigError: other than one or two keys.
            DataError: when called, on a file or label that can't be used.
        """
        if not 1 <= len(keys) <= 2:
            raise ConfigError(f"keys must name the image, and the label if there is one, got {keys}")
        image, label = keys[0], tuple(keys[1:])
        steps: list[Any] = [LoadNiftid(keys, channels=[len(self.channels), 1][: len(keys)])]
        if label:
            steps += [MatchGridd(label, reference=image), LabelIndexd(label, self.label_values, self.ignore_label)]
        if self.bias_correction:
            steps.append(CorrectBiasd(image))
        steps += [
            Orientationd(keys, axcodes=self.orientation, labels=None),
            NormalizeLikeNNUNetd(image, self.normalisation, self.statistics),
            Spacingd(image, pixdim=self.spacing, mode="bilinear", padding_mode="border", dtype=np.float32),
        ]
        if label:
            steps.append(ResampleLabeld(label, reference=image))
        return StrictCompose([*steps, RecordGridd(image)])

    def restore(
        self,
        prediction: Tensor,
        *,
        case: Case,
        path: str | Path,
        affine: Tensor | np.ndarray | None = None,
        clean: Clean | None = None,
    ) -> Path:
        """Write a prediction as a label file with the geometry of the case's own (first) image file, bit for bit.

        Args:
            prediction: (K, D, H, W) floating probabilities, or (1, D, H, W) integer classes (positions in
                ``label_values``), on the preprocessed grid.
            case: whose image file's geometry is taken.
            path: ends in ``.nii`` or ``.nii.gz``; written to a temporary file and renamed.
            affine: (4, 4) of the preprocessed grid; None: that of the MetaTensor ``prediction``.
            clean: post-processing of the label map on the file's grid, ``f(labels, voxel size in mm, structures)``.

        Returns:
            The path written.

        Raises:
            DataError: the prediction holds NaN or does not fit, or the image file can't be read.
            ConfigError: no affine is known.
        """
        structures = self.regions or tuple((v,) for v in self.label_values[1:])
        return restore(
            prediction,
            case=case,
            path=Path(path),
            affine=affine,
            label_values=self.label_values,
            regions_class_order=self.regions_class_order,
            clean=None if clean is None else lambda voxels, spacing: clean(voxels, spacing, structures),
        )

    def save(self, path: str | Path) -> Path:
        """Write the JSON file that `load` reads; an interrupted write leaves the former file."""
        return write_text(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Preprocessing:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file can't be read, or its content is not valid.
        """
        try:
            content = read_json(path, largest=MEBIBYTE)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: can't be read as preprocessing ({error}); copy the run's folder") from error
        try:
            return cls._of(content)
        except (ConfigError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path}: is no valid preprocessing ({error}); copy the run's folder") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Preprocessing:
        """From a JSON object."""
        if content.pop("version", None) != VERSION:
            raise ConfigError(f"version must be {VERSION}")
        content.setdefault("bias_correction", False)  # files from before there was any
        if unknown := set(content) ^ {f.name for f in fields(cls)}:
            raise ConfigError(f"fields {sorted(unknown)} are missing or unknown")
        content["statistics"] = [IntensityStatistics(**s) for s in content["statistics"]]
        return cls(**{k: _frozen(v) for k, v in content.items()})


def patch_options(
    label_values: Sequence[int], regions: Sequence[Sequence[int]] | None, ignore_label: int | None
) -> dict[str, Any]:
    """What `PatchBatches` has to know of labels that were turned into positions in ``label_values``.

    Args:
        label_values: in ascending order, background first.
        regions: the label values of each region, or None.
        ignore_label: the value of voxels whose label is unknown, or None.

    Returns:
        Its ``num_classes``, ``regions`` and ``ignore_label``.

    >>> patch_options((0, 5, 9), ((5, 9), (9,)), 10)
    {'num_classes': 3, 'regions': ((1, 2), (2,)), 'ignore_label': 3}
    """
    index = {value: i for i, value in enumerate(label_values)}
    places = None if regions is None else tuple(tuple(index[v] for v in r) for r in regions)
    count = len(label_values)
    return {"num_classes": count, "regions": places, "ignore_label": None if ignore_label is None else count}


def _frozen(value: Any) -> Any:
    """JSON lists -> tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    """Whether a value is a whole number, not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
