# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies to export, real patches, and the operations of this package to compare with."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import torch
from torch import Tensor

from monai_autoaug.policies import Policies, TrainingPolicy
from monai_autoaug.policies.export.plan import Plan, Row, Slot, plan
from monai_autoaug.transforms import Cascade, Operation, apply, extra_cascades, training_cascades

CLASSES = ("background", "foreground")
ALL = [o for c in (*training_cascades(), *extra_cascades().values()) for o in c.operations[1:]]


def real_patch(folder: Path) -> tuple[Tensor, Tensor]:
    """The first case's z-scored image and its label, (1, 33, 36, 30): sizes that differ, odd and even."""
    name = sorted((folder / "labelsTr").glob("hipp*.nii.gz"))[0].name
    image, label = (
        torch.from_numpy(nib.load(folder / part / name).get_fdata())[None].float() for part in ("imagesTr", "labelsTr")
    )
    centre = (label > 0).nonzero()[:, 1:].float().mean(0).round().long().tolist()
    size = (33, 36, 30)
    start = [max(0, min(c - n // 2, m - n)) for c, n, m in zip(centre, size, image.shape[1:], strict=True)]
    window = (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
    image, label = image[window], label[window]
    assert tuple(image.shape[1:]) == size
    return (image - image.mean()) / image.std(), label


def mixed_policy(laterality: list[tuple[int, int]] | None = None) -> TrainingPolicy:
    """Two classes that choose otherwise, and a cascade that does nothing for the background."""
    names = ["rotS", "rotF", "mirrorS", "gamma", "badd", "sharpen", "noise"]
    policy = TrainingPolicy([c for c in training_cascades() if c.name in names], CLASSES, laterality=laterality)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        policy.logits.copy_(torch.randn(policy.logits.shape, generator=generator))
        start = 0
        for cascade in policy.cascades:
            if cascade.name == "badd":
                policy.logits[0, start + 1 : start + len(cascade)] = -1000.0
            start += len(cascade)
    return policy


def at_the_middle(operations: list[Operation]) -> tuple[dict[str, Operation], Plan]:
    """Operations whose amounts are the middles of their ranges, by name; and the plan of a cascade of them alone."""
    fixed = {o.name: replace(o, low=(o.low + o.high) / 2, high=(o.low + o.high) / 2) for o in operations}
    found = plan(Policies(TrainingPolicy([Cascade("one", (Operation("identity"), *operations))], ("all",))))
    return fixed, replace(found, slots=(Slot("one", tuple(Row(o, (1.0,)) for o in fixed.values())),))


def expected(operation: Operation, image: Tensor, label: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What this package makes of an image and a label, with the amount and with its opposite."""
    hot = torch.stack([label[0] == value for value in range(3)])[None].float()
    cascade, found = Cascade("one", (Operation("identity"), operation)), []
    for sign in (1, -1):
        moved, soft = apply(image[None], hot, torch.tensor([[1]]), [cascade], quantile=0.0, sign=sign)
        assert soft is not None
        found.append((moved[0], soft[0].argmax(0, keepdim=True)))
    return found


def difference(image: Tensor, expected: Tensor, border: int = 0) -> float:
    """The largest difference of two images but for a border, in standard deviations of the image."""
    inner = (slice(None), *[slice(border, n - border) for n in image.shape[1:]])
    return float((image[inner] - expected[inner]).abs().max())


def check_frequencies(counts: Mapping[str, int], probabilities: Mapping[str, float], what: str) -> None:
    """Within 4.5 standard deviations of the binomial distribution; never where the probability is 0.

    Of the tests' two hundred comparisons one would fail by chance in 700 seeds.
    """
    total = sum(counts.values())
    assert set(counts) <= {name for name, p in probabilities.items() if p > 0}, what
    for name, p in probabilities.items():
        bound = 4.5 * math.sqrt(p * (1 - p) / total) + 1 / total
        assert abs(counts.get(name, 0) / total - p) <= bound, f"{what}, {name}: {counts.get(name, 0)} of {total}, {p}"


def tables(policy: TrainingPolicy, name: str) -> dict[str, dict[str, float]]:
    """Cascade -> operation -> probability."""
    shares = policy.probabilities(name)
    return {
        c.name: {o.name: float(p) for o, p in zip(c.operations, share.tolist(), strict=True)}
        for c, share in zip(policy.cascades, shares, strict=True)
    }


def module(text: str, folder: Path, name: str) -> ModuleType:
    """An exported file, imported."""
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded: Any = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded
