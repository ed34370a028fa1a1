# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A folder of NIfTI files -> cases: what a data set holds, whatever layout it comes in, and how it is split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from monai_autoaug.errors import ConfigError, DataError

__all__ = ["LARGEST_LABEL", "Case", "DataList", "LabelValue", "Layout", "Split", "split"]

Layout = Literal["decathlon", "nnunet", "folders"]
LabelValue = int | tuple[int, ...]
LARGEST_LABEL = 65535  # predictions are written in 16 bits at most


@dataclass(frozen=True)
class Case:
    """One subject: its image file or files, and its label.

    Args:
        name: unique within the data set; names the prediction.
        images: one file a channel, or one file that holds all channels.
        label: the label file, or None.

    >>> Case("a", (Path("a_0000.nii.gz"), Path("a_0001.nii.gz"))).images[1].name
    'a_0001.nii.gz'
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, the label last."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class DataList:
    """What a data set declares and where its files are.

    Args:
        folder: the folder it was read from.
        layout: how it was laid out.
        channels: the names of the image channels, such as ``("CT",)`` or ``("T1", "FLAIR")``.
        labels: name -> label value; with regions, name -> the label values it is the union of (nnU-Net's meaning).
        regions_class_order: with regions, the label value that each region writes, later regions over earlier ones.
        ignore_label: the value of voxels whose label is unknown, or None.
        training: cases with a label.
        test: cases without.
        unlabelled: further images without labels, from which a method may learn what images look like.

    >>> d = DataList(Path("."), "nnunet", ("MRI",), {"background": 0, "whole": (1, 2), "core": (2,)}, (1, 2))
    >>> d.has_regions, d.label_values, d.regions, d.num_outputs
    (True, (0, 1, 2), ((1, 2), (2,)), 2)
    """

    folder: Path
    layout: Layout
    channels: tuple[str, ...]
    labels: dict[str, LabelValue]
    regions_class_order: tuple[int, ...] | None = None
    ignore_label: int | None = None
    training: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()

    @property
    def has_regions(self) -> bool:
        """Whether some label is a union of several values, so that every label is an output of its own."""
        return any(isinstance(v, tuple) and len(v) > 1 for v in self.labels.values())

    @property
    def label_values(self) -> tuple[int, ...]:
        """Every label value in ascending order, the background (0) included and the ignore label left out."""
        values = {0}
        for value in self.labels.values():
            values.update(value if isinstance(value, tuple) else (value,))
        return tuple(sorted(values))

    @property
    def regions(self) -> tuple[tuple[int, ...], ...] | None:
        """The label values of each region, in the order of ``labels`` without the background; None without regions."""
        if not self.has_regions:
            return None
        sets = (v if isinstance(v, tuple) else (v,) for v in self.labels.values())
        return tuple(s for s in sets if set(s) != {0})

    @property
    def num_outputs(self) -> int:
        """Channels of a segmentation network: one a region, or one a label value with the background first."""
        return len(self.regions) if self.regions is not None else len(self.label_values)

    @property
    def foreground(self) -> dict[str, LabelValue]:
        """``labels`` without the background."""
        return {name: value for name, value in self.labels.items() if value not in (0, (0,))}

    def to_monai(self, cases: Iterable[Case] | None = None) -> list[dict[str, str | list[str]]]:
        """MONAI's data list: ``{"image": file or files, "label": file, "case": name}`` a case.

        Args:
            cases: which cases; all training cases if None.

        >>> DataList(Path("."), "folders", ("image",), {}).to_monai([Case("a", (Path("a.nii"),), Path("b.nii"))])
        [{'image': 'a.nii', 'case': 'a', 'label': 'b.nii'}]
        """
        rows: list[dict[str, str | list[str]]] = []
        for case in self.training if cases is None else cases:
            files = [str(f) for f in case.images]
            row: dict[str, str | list[str]] = {"image": files if len(files) > 1 else files[0], "case": case.name}
            if case.label is not None:
                row["label"] = str(case.label)
            rows.append(row)
        return rows

    @classmethod
    def of_images(cls, cases: Sequence[Case], *, channels: Sequence[str], folder: Path | None = None) -> DataList:
        """A data list of images to be predicted, without labels, so that they can be audited.

        Args:
            cases: the images.
            channels: the channels that the network expects.
            folder: where they are.
        """
        return cls(folder or Path(), "folders", tuple(channels), {}, test=tuple(cases))


class Split(NamedTuple):
    """Three disjoint groups of cases: for training, for learning the augmentation (meta-validation), for validation."""

    train: tuple[Case, ...]
    meta: tuple[Case, ...]
    validation: tuple[Case, ...]


def _amount(value: int | float, total: int, name: str) -> int:
    """A number of cases, or a share in [0, 1) of ``total``, as a number."""
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value >= 1):
        raise ConfigError(f"{name} must be a number of cases or a share in [0, 1), got {value!r}")
    if isinstance(value, int):
        return value
    return max(1, round(value * total)) if value else 0


def split(
    cases: Sequence[Case],
    *,
    seed: int,
    validation: int | float,
    meta: int | float | Collection[str] = 0,
    train: int | None = None,
) -> Split:
    """Split cases at random but reproducibly: by the seed and the case names, whatever the order they come in.

    The cases are ordered by a hash of seed and name. The first are the validation cases, so they are the same
    whatever ``train`` is; the next ``train`` cases are learned from, so that 20 cases are among 100. What the
    augmentation learns from is carved out of these, never out of the validation cases.

    Args:
        cases: the labelled cases; names are unique.
        seed: another seed gives another split.
        validation: how many cases validate, or their share of all cases (at least one).
        meta: how many of the cases that are learned from, or what share of them, is set apart for meta-validation; or
            the names of the cases that are.
        train: how many cases are learned from in all, meta-validation included; None: all that are left.

    Raises:
        ConfigError: the numbers can't be had of these cases, or a named case is not there or validates.
        DataError: two cases share a name.

    >>> cases = [Case(f"case_{i}", ()) for i in range(10)]
    >>> s = split(cases, seed=0, validation=3, meta=2)
    >>> [len(group) for group in s]
    [5, 2, 3]
    >>> split(cases[::-1], seed=0, validation=3, meta=2) == s
    True
    """
    names = [c.name for c in cases]
    if len(set(names)) != len(names):
        twice = sorted(n for n, count in Counter(names).items() if count > 1)
        raise DataError("case names are not unique", came=twice[:5], remedy="rename the files")
    order = sorted(cases, key=lambda c: (hashlib.sha256(f"{seed}:{c.name}".encode()).digest(), c.name))
    held = _amount(validation, len(order), "validation")
    pool = order[held:]
    if not isinstance(meta, int | float):  # the named ones first, whatever their place in the order
        _check_names(meta, order, order[:held])
        named = set(meta)
        pool = [*(c for c in pool if c.name in named), *(c for c in pool if c.name not in named)]
        meta = len(meta)
    if train is not None:
        if train < 1 or train > len(pool):
            raise ConfigError(
                f"{train} training cases can't be had: {len(order)} cases less {held} for validation leave {len(pool)}"
            )
        pool = pool[:train]
    carved = _amount(meta, len(pool), "meta")
    if len(pool) - carved < 1:
        aside = f"{held} of them for validation" + (f", {carved} for meta-validation" if carved else "")
        raise ConfigError(f"no training case is left: {len(order)} cases, {aside}")
    return Split(tuple(pool[carved:]), tuple(pool[:carved]), tuple(order[:held]))


def _check_names(names: Collection[str], cases: Sequence[Case], validation: Sequence[Case]) -> None:
    """Refuse names of cases that are not there, or that validate, from which nothing may be learned."""
    if unknown := sorted(set(names) - {c.name for c in cases}):
        some = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise ConfigError(f"meta-validation: there are no labelled cases {some}; take them off the list")
    if held := sorted(set(names) & {c.name for c in validation}):
        raise ConfigError(
            f"meta-validation: {', '.join(held)} validate in this split, so nothing may be learned from them; take them"
            " off the list, or choose another split (--split-seed)"
        )
