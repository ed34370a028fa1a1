# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The starts of both policies against the official implementation's logits (joint_policy.md, checks 1 to 3)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import PRESETS, TestTimePolicy, TrainingPolicy, load, save

FOLDER = Path(__file__).parents[1] / "data" / "vectors"
LOGITS = np.load(FOLDER / "preset_logits.npz")


OFFICIAL = ("nnunet", "deepmedic", "uniform")


@pytest.mark.parametrize("name", OFFICIAL)
def test_training_logits_are_the_official_ones(name: str) -> None:
    policy = TrainingPolicy.preset(name)
    assert policy.logits.shape == (2, 62)
    for row in policy.logits.detach().numpy():
        assert row == pytest.approx(LOGITS[f"training_{name}"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("nnunet", {1, -1.995732, -2.583519, -0.945910, -2.295837, -3.043051, -1.833213, -2.178054}),
        ("deepmedic", {1, -1.995732, -1.772589, -1.944439, -3.043051, -1.833213, -3.736198}),
        ("uniform", {0}),
    ],
)
def test_training_logits_take_the_documented_values(name: str, values: set[float]) -> None:
    found = {round(v, 6) for v in TrainingPolicy.preset(name).double().logits.unique().tolist()}
    assert all(min(abs(v - w) for w in values) < 2e-6 for v in found)
    assert all(min(abs(v - w) for w in found) < 2e-6 for v in values)


@pytest.mark.parametrize("name", OFFICIAL)
def test_logits_at_test_time_are_the_official_ones(name: str) -> None:
    policy = TestTimePolicy.preset(name)
    assert policy.logits.detach().numpy() == pytest.approx(LOGITS[f"test_time_{name}"], abs=1e-6)
    preferred = {"nnunet": [0, 29, 30, 31, 34, 37, 40, 83], "deepmedic": [0, 29, 30, 31], "uniform": []}[name]
    share = policy.probabilities().detach()
    assert share[preferred].tolist() == pytest.approx([0.8 / max(1, len(preferred))] * len(preferred), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_none_is_no_augmentation(dims: int, tmp_path: Path) -> None:
    """The identity has probability 1, in every cascade and among the views, also of what is written and read again."""
    assert set(PRESETS) == {*OFFICIAL, "none"}
    extra = ["elastic", "bias_field", "gibbs", "channel_scale"]
    policy = TrainingPolicy.preset("none", ("all",), spatial_dims=dims, extra=extra)
    views = TestTimePolicy.preset("none", spatial_dims=dims)
    save(tmp_path / "policy.json", training=policy, test_time=views)
    read = load(tmp_path / "policy.json")
    for training, test_time in ((policy, views), (read.training, read.test_time)):
        assert training is not None
        assert test_time is not None
        assert all(p.tolist() == [1.0] + [0.0] * (len(p) - 1) for p in training.probabilities("all"))
        assert bool((training.entropy() == 0).all())
        indices, weights = training.sample(torch.zeros(500, dtype=torch.long), torch.Generator().manual_seed(0))
        assert not bool(indices.any())
        assert bool((weights == 1).all())
        assert test_time.probabilities().tolist() == [1.0] + [0.0] * (len(test_time.operations) - 1)
        assert [o.name for o in test_time.top(test_time.z)[0]] == ["identity"]
    image = torch.rand(500, 1, *[4] * dims)
    assert torch.equal(policy.apply(image, None, indices)[0], image)


@torch.no_grad()
def test_what_starts_from_none_reaches_its_floor() -> None:
    """Otherwise it could never learn: what is never drawn is never judged."""
    policy = TrainingPolicy.preset("none", floor=0.01)
    for p in policy.probabilities("foreground"):
        assert p.tolist() == pytest.approx([1 - 0.01 * (len(p) - 1)] + [0.01] * (len(p) - 1), abs=1e-6)


def test_counts() -> None:
    policy = TrainingPolicy.preset("nnunet")
    assert len(policy.cascades) == 15
    assert sum(o.acts != "nothing" for c in policy.cascades for o in c.operations) == 47
    assert len(TestTimePolicy.preset("nnunet").operations) == 84


@pytest.mark.parametrize(("name", "column"), [("nnunet", "p_nnunet_preset"), ("deepmedic", "p_deepmedic_preset")])
def test_probabilities_are_those_of_the_catalogues(name: str, column: str) -> None:
    with (FOLDER / "training_catalogue.csv").open(encoding="utf-8", newline="") as file:
        expected = [float(row[column]) for row in csv.DictReader(file)]
    policy = TrainingPolicy.preset(name)
    for c in policy.classes:
        assert torch.cat(policy.probabilities(c)).tolist() == pytest.approx(expected, abs=1e-6)
    with (FOLDER / "test_time_catalogue.csv").open(encoding="utf-8", newline="") as file:
        expected = [float(row[column]) for row in csv.DictReader(file)]
    assert TestTimePolicy.preset(name).probabilities().tolist() == pytest.approx(expected, abs=1e-6)


def test_in_2d_the_mirrorings_that_are_there_share_four_fifths() -> None:
    policy = TestTimePolicy.preset("nnunet", spatial_dims=2)
    share = dict(zip([o.name for o in policy.operations], policy.probabilities().tolist(), strict=True))
    assert [share[n] for n in ("identity", "flip_d", "flip_h", "rotate_dh_180")] == pytest.approx([0.2] * 4)
    assert len(TrainingPolicy.preset("nnunet", spatial_dims=2).cascades) == 12


@torch.no_grad()
def test_cascades_can_be_switched_on_and_off() -> None:
    extra = ["elastic", "bias_field", "gibbs", "channel_scale"]
    policy = TrainingPolicy.preset("nnunet", extra=extra, without=["bmul", "scale_1.40_1.50"])
    assert [c.name for c in policy.cascades][-4:] == extra
    assert [float(p[0]) for p in policy.probabilities("background")][-4:] == pytest.approx([0.9] * 4)
    assert "bmul" not in [c.name for c in policy.cascades]
    assert [o.name for o in policy.cascades[0].operations][-1] == "scale_1.30_1.40"
    indices, _ = policy.sample(torch.tensor([0, 1, 1]), torch.Generator().manual_seed(0))
    moved, _ = policy.apply(torch.rand(3, 1, 16, 16, 16), None, indices)
    assert bool(moved.isfinite().all())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="preset must be one of nnunet, deepmedic, uniform, none, got 'nnformer'"):
        TrainingPolicy.preset("nnformer")
    with pytest.raises(ConfigError, match="got 'best'"):
        TestTimePolicy.preset("best")
    with pytest.raises(ConfigError, match=r"extra cascades are elastic, .* got \['warp'\]"):
        TrainingPolicy.preset("nnunet", extra=["warp"])
    with pytest.raises(ConfigError, match="no cascade or operation is called blurr"):
        TrainingPolicy.preset("nnunet", without=["blurr"])
