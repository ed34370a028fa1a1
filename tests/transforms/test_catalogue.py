# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The rows against the paper's two catalogues: how many, in which order, of which range."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from monai_autoaug.transforms import Operation, extra_cascades, operations_at_test_time, training_cascades

VECTORS = Path(__file__).parents[1] / "data" / "vectors"


def table(name: str) -> list[dict[str, str]]:
    with (VECTORS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_counts_of_the_paper() -> None:
    cascades = training_cascades()
    assert [len(c) for c in cascades] == [6, 5, 5, 5, 2, 2, 2, 4, 4, 4, 4, 4, 7, 4, 4]
    assert sum(len(c) for c in cascades) == 62
    assert sum(o.acts != "nothing" for c in cascades for o in c.operations) == 47
    kinds = Counter(o.kind for o in operations_at_test_time())
    assert kinds == {"identity": 1, "spatial": 41, "intensity": 30, "noise": 3, "resolution": 9}


@pytest.mark.parametrize("row", table("training_catalogue.csv"), ids=lambda r: f"{r['cascade']}_{r['operation_index']}")
def test_training_rows_match_the_catalogue(row: dict[str, str]) -> None:
    place, index = int(row["cascade_index"]), int(row["operation_index"])
    cascade = training_cascades()[place]
    operation = cascade[index]
    assert cascade.name == row["cascade"] == operation.cascade
    assert (operation.cascade_index, operation.index) == (place, index)
    assert operation.moves_label == (row["changes_label"] == "True")
    text = row["range"]
    uniform = re.search(r"(1\+)?U\(([\d.]+),([\d.]+)\)", text)
    if uniform is None:  # the identity, flips, quarter turns
        assert operation.low == operation.high
        return
    base = 1.0 if uniform[1] else 0.0
    assert operation.range == pytest.approx((base + float(uniform[2]), base + float(uniform[3])))
    signed = "negative" if "sign" in text else "none"
    assert operation.opposite == ("reciprocal" if "replaced" in text else signed)


def parameters(operation: Operation) -> dict[str, object]:
    """What the catalogue would say about a row at test time."""
    name = operation.name.rsplit("_", 1)[0]
    if operation.name == "identity":
        return {}
    if operation.name.startswith("flip"):
        return {"flip": [float(axis in operation.name[5:]) for axis in "dhw"]}
    if operation.acts == "permutation":
        axes = {"hw": ("yz", 1), "dw": ("xz", -1), "dh": ("xy", 1)}[name.removeprefix("rotate_")]
        return {"rot90": {"plane": axes[0], "k": round(operation.low / 90) * axes[1] % 4}}
    if name.startswith("rotate"):
        plane = {"hw": "12", "dw": "02", "dh": "01"}[name.removeprefix("rotate_")]
        return {f"rot_deg_axes{plane}": operation.low}
    key = {
        "scale": "scale_factor", "gamma": "gamma", "inverted_gamma": "invgamma", "brightness_add": "shift",
        "brightness_multiply": "scale", "contrast": "contrast", "blur": "blur_sigma", "sharpen": "sharpen_sigma",
        "noise": "noise_std", "low_resolution": "zoom",
    }[name]  # fmt: skip
    return {key: pytest.approx(operation.low, abs=1e-6)}


@pytest.mark.parametrize("row", table("test_time_catalogue.csv"), ids=lambda r: r["index"])
def test_rows_at_test_time_match_the_catalogue(row: dict[str, str]) -> None:
    operation = operations_at_test_time()[int(row["index"])]
    assert operation.index == int(row["index"])
    kind = "noise" if operation.kind == "resolution" else operation.kind
    assert kind == row["kind"]
    assert json.loads(row["parameters"]) == parameters(operation)
    if row["exactly_invertible"]:
        assert operation.exactly_invertible == (row["exactly_invertible"] == "True")
    assert operation.low == operation.high
    assert operation.opposite == "none"


def test_names_are_unique_where_one_policy_chooses() -> None:
    everything = (*training_cascades(), *extra_cascades().values())
    for names in (
        [c.name for c in everything],
        [o.name for o in operations_at_test_time()],
        [o.name for c in everything for o in c.operations if o.name != "identity"],
    ):
        assert len(set(names)) == len(names)


def test_what_needs_a_third_axis_is_not_there_in_2d() -> None:
    cascades = training_cascades(2)
    assert [c.name for c in training_cascades() if c.name not in {d.name for d in cascades}] == [
        "rotF",
        "rotS",
        "mirrorA",
    ]
    assert [c.operations[0].cascade_index for c in cascades] == [0, 3, 4, 5, *range(7, 15)]
    views = operations_at_test_time(2)
    assert len(views) == 64
    assert all(operations_at_test_time()[v.index].name == v.name for v in views)


def test_magnitudes_of_a_range() -> None:
    quantile, sign = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1, 1, -1])
    by_name = {c.name: c for c in training_cascades()}
    assert by_name["scale"][3].magnitude(quantile, sign).tolist() == pytest.approx([1.2, 1.25, 1 / 1.3])
    assert by_name["rotL"][2].magnitude(quantile, sign).tolist() == pytest.approx([10, 15, -20])
    assert by_name["noise"][2].magnitude(quantile, sign).tolist() == pytest.approx([0.05, 0.075, 0.1])
