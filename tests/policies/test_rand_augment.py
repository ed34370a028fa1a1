# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""RandAugment-S, -M and -L: which operations stay, and that each type stays as probable as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TrainingPolicy, load, rand_augment, save
from monai_autoaug.policies.rand_augment import Magnitude
from monai_autoaug.transforms import Cascade, Operation, extra_cascades, training_cascades

CATALOGUE = Path(__file__).parents[1] / "data" / "vectors" / "training_catalogue.csv"
# places in the catalogue's cascades that stay; what has no magnitude stays always
PLACES: dict[Magnitude, dict[str, list[int]]] = {
    "small": {"scale": [1], "rotF": [1, 4], "rotS": [1, 4], "rotL": [1, 4], "sharpen": [1, 4]},
    "medium": {"scale": [3], "rotF": [2, 4], "rotS": [2, 4], "rotL": [2, 4], "sharpen": [2, 5]},
    "large": {"scale": [5], "rotF": [3, 4], "rotS": [3, 4], "rotL": [3, 4], "sharpen": [3, 6]},
}
OTHERS: dict[Magnitude, int] = {"small": 1, "medium": 2, "large": 3}
THREE = ("gamma", "invgamma", "badd", "bmul", "contrast", "noise", "simulow")


@torch.no_grad()
@pytest.mark.parametrize("preset", ["nnunet", "deepmedic"])
@pytest.mark.parametrize("magnitude", ["small", "medium", "large"])
def test_operations_and_probabilities(preset: str, magnitude: Magnitude) -> None:
    """By the catalogue: of each cascade the rows that stay, and the probability of doing something as it was."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["operation_index"] == "0"]
    identity = {r["cascade"]: float(r[f"p_{preset}_preset"]) for r in rows}
    policy = rand_augment(TrainingPolicy.preset(preset), magnitude)
    expected = PLACES[magnitude] | {n: [OTHERS[magnitude]] for n in THREE}
    known = {c.name: c for c in training_cascades()}
    for cascade, p in zip(policy.cascades, policy.probabilities("foreground"), strict=True):
        places = [0, *expected.get(cascade.name, [1])]  # mirrors have one operation
        assert [o.name for o in cascade.operations] == [known[cascade.name][k].name for k in places], cascade.name
        assert float(p[0]) == pytest.approx(identity[cascade.name], abs=1e-6)
    by_name = dict(zip([c.name for c in policy.cascades], policy.probabilities("background"), strict=True))
    share = 1 - identity["rotF"]
    assert by_name["rotF"][1:].tolist() == pytest.approx([0.75 * share, 0.25 * share])  # the quarter turn keeps its own
    share = 1 - identity["sharpen"]
    assert by_name["sharpen"][1:].tolist() == pytest.approx([share / 2, share / 2])  # blur and sharpening


def test_the_policy_it_came_from_is_left_alone_and_the_new_one_is_written_and_applied(tmp_path: Path) -> None:
    start = TrainingPolicy.preset("nnunet", ("all",), floor=0.01, laterality=[(1, 2)])
    before = start.logits.detach().clone()
    made = rand_augment(start, "large")
    assert torch.equal(start.logits, before)
    assert (made.floor, made.classes) == (0.01, ("all",))
    assert made.laterality == start.laterality
    save(tmp_path / "policy.json", training=made)
    read = load(tmp_path / "policy.json").training
    assert read is not None
    assert torch.equal(read.logits, made.logits)
    indices, _ = read.sample(torch.zeros(3, dtype=torch.long), torch.Generator().manual_seed(0))
    moved, _ = read.apply(torch.rand(3, 1, 8, 8, 8), None, indices)
    assert bool(moved.isfinite().all())


@torch.no_grad()
def test_cascades_beyond_the_paper_and_classes_that_differ() -> None:
    """Every cascade of the catalogue has one operation of a magnitude; each class keeps its own probabilities."""
    start = TrainingPolicy.preset("uniform", extra=list(extra_cascades()))
    start.logits[0, 1:6] += 1.0
    for magnitude, place in OTHERS.items():
        made = rand_augment(start, magnitude)
        for name, cascade in zip([c.name for c in made.cascades], made.cascades, strict=True):
            if name in extra_cascades():
                assert [o.name for o in cascade.operations[1:]] == [extra_cascades()[name][place].name]
        for kind in start.classes:
            old, new = start.probabilities(kind)[0], made.probabilities(kind)[0]
            assert new.tolist() == pytest.approx([float(old[0]), float(old[1:].sum())])


def test_what_has_no_magnitude_stays() -> None:
    """Somebody's own operations, and the only one of its type."""
    mine = Cascade(
        "mine", (Operation("identity"), Operation("a", "spatial", "values"), Operation("b", "noise", "values"))
    )
    noise = next(c for c in training_cascades() if c.name == "noise")
    one = Cascade("one", noise.operations[:2])
    made = rand_augment(TrainingPolicy([mine, one]), "large")
    assert [[o.name for o in c.operations] for c in made.cascades] == [
        ["identity", "a", "b"], [o.name for o in one.operations],
    ]  # fmt: skip


def test_other_magnitudes_are_refused() -> None:
    with pytest.raises(ConfigError, match="magnitude must be one of small, medium, large, got 'huge'"):
        rand_augment(TrainingPolicy.preset("nnunet"), "huge")  # type: ignore[arg-type]
