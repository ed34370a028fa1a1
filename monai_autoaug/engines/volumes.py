# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The volumes of a run: audited, then preprocessed, in memory or in a folder of their own."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.transforms import Transform
from torch import Tensor

import monai_autoaug
from monai_autoaug.data import Case, DataList, Split
from monai_autoaug.data.audit import Finding, audit
from monai_autoaug.data.contents import content_hash
from monai_autoaug.data.findings import refusal
from monai_autoaug.data.patches import Items
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.data.volume_transforms import StrictCompose
from monai_autoaug.engines.metadata import plain
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.errors import AutoAugWarning
from monai_autoaug.reading import read_tensors
from monai_autoaug.writing import write_tensors

__all__ = ["Kept", "sound", "volumes"]

_FORMAT = 1  # of a cached volume; to be raised when `Kept` or a transform changes within a version


def sound(
    datalist: DataList,
    *,
    parts: Split | None = None,
    spacing: Sequence[float] | None = None,
    listener: Listener = unheard,
) -> list[Finding]:
    """Audit a data set and refuse it where it can't be used.

    Args:
        datalist: the cases that will be used.
        parts: how they are split, if they are: an image must not be in two parts.
        spacing: mm a voxel that volumes will be resampled to; None: the training cases' median.
        listener: hears of each case.

    Returns:
        What there is to warn of or to note.

    Raises:
        DataError: the audit refuses; the message holds the first findings.
    """
    findings = audit(
        datalist, parts=parts, spacing=spacing,
        progress=lambda done, total: listener(Progress("checking", done, total)),
    )  # fmt: skip
    wrong = refusal(findings, datalist.folder)
    if wrong is not None:
        raise wrong
    return findings


class Kept(Transform):
    """Keeps of a preprocessed case what training needs, as plain tensors, numbers and strings.

    It is a MONAI transform, so that a `PersistentDataset` writes its result and not what went in.

    >>> import torch
    >>> sorted(Kept((1.0, 1.0, 2.0))({"image": torch.zeros(1, 2, 2, 2), "label": torch.zeros(1, 2, 2, 2), "case": "a"}))
    ['case', 'image', 'label', 'spacing']
    """

    def __init__(self, spacing: Sequence[float]) -> None:
        self.spacing = list(spacing)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """One case."""
        image: Tensor = plain(item["image"])
        label: dict[str, Tensor] = {"label": plain(item["label"]).contiguous()} if "label" in item else {}
        return {"image": image.contiguous(), **label, "case": item["case"], "spacing": self.spacing}


class _OnDisk(PersistentDataset):
    """MONAI's, but a kill or a full disk leaves no half-written volume, and one that is damaged is made again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._whole: set[Path] = set()  # whose checksums are right; patches are cut from these very often

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> Any:
        assert self.cache_dir is not None  # noqa: S101  # for the type checker: there is a folder
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}.pt"
        try:
            if file in self._whole:
                return torch.load(file, weights_only=True)
            found = read_tensors(file)
            self._whole.add(file)
            return found
        except FileNotFoundError:
            pass  # it has not been made yet
        except ValueError as error:
            message = f"{file}: is damaged ({error}); this volume is made and written again"
            warnings.warn(message, AutoAugWarning, stacklevel=2)
        made = self._pre_transform(dict(item_transformed))
        write_tensors(file, made)
        self._whole.add(file)
        return made


def volumes(
    datalist: DataList,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    *,
    cache: Path | None = None,
    listener: Listener = unheard,
) -> Items:
    """Preprocess cases.

    Args:
        datalist: the data set.
        cases: of it.
        preprocessing: decided on the training cases.
        cache: a folder: volumes are written there once and read at each use; the same volumes with the same
            preprocessing are found again by later runs of the same versions of this package and of MONAI. None: all
            volumes stay in memory.
        listener: hears of each case.

    Returns:
        A dictionary a case: ``image`` (C, D, H, W) float32, ``label`` (1, D, H, W) where the cases have labels,
        ``case``, ``spacing``.
    """
    # one flat list: MONAI takes a list within a list for a random transform and would cache nothing after it
    keys = ("image", "label") if all(case.label is not None for case in cases) else ("image",)
    transform = StrictCompose([*preprocessing.transforms(keys).transforms, Kept(preprocessing.spacing)])
    rows: list[dict[str, Any]] = list(datalist.to_monai(cases))
    if cache is None:
        items: Any = [None] * len(rows)
    else:
        key = _key(preprocessing)
        stamped = [row | {"stamp": _stamp(case)} for row, case in zip(rows, cases, strict=True)]
        items = _OnDisk(stamped, transform, cache_dir=cache / key)
    for i, row in enumerate(rows):
        if cache is None:
            items[i] = transform(row)
        else:
            items[i]  # written now, so that a broken file is found before training
        listener(Progress("preparing", i + 1, len(rows)))
    result: Items = items
    return result


def _key(preprocessing: Preprocessing) -> str:
    """What decides how volumes come out, besides their files: another version may make other volumes of them."""
    content = {
        "format": _FORMAT,
        "versions": [monai_autoaug.__version__, version("monai")],
        "preprocessing": asdict(preprocessing),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(case: Case) -> list[str]:
    """What a case's files hold: a changed file is another volume, even of the same size and time."""
    return [content_hash(file) for file in case.files]
