# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What policies begin with: a preset, a policy that is given, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_joint_policy import Streams, build
from torch import nn

from monai_autoaug import policies
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy


def test_policies_by_label_and_for_all() -> None:
    streams = Streams(shape=(16, 16, 16))
    by_label = build(classes="labels", task={"label_names": ("background", "anterior", "posterior")})
    by_label.step(streams)
    assert by_label.training.classes == ("background", "anterior", "posterior")
    assert build(classes="all").training.classes == ("all",)
    with pytest.raises(ConfigError, match="needs the labels' names"):
        build(classes="labels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "set learning_rate"),
        ({"warm_up": 20}, "would never be updated"),
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"classes": "organs"}, "classes must be one of"),
        ({"freeze": 0.0}, "freeze in"),
        ({"look_ahead": "Real"}, "look_ahead must be one of real, virtual, got 'Real'"),
        ({"derivative": "fd"}, "derivative must be one of"),
        ({"meta_loss": "focal"}, "must be one of ce, dice, both"),
        ({"class_of": "corner"}, "class_of must be one of"),
        ({"loss_region": 0.0}, "loss_region must be in"),
        ({"loss_region": 0.5, "class_of": "sampled"}, "leave class_of out"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_an_optimiser_with_other_parameters_is_refused() -> None:
    method = build()
    method.task.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ConfigError, match="parameters that are not the network's"):
        method.step(Streams(shape=(16, 16, 16)))


def test_a_frozen_policy_of_a_file_needs_no_meta_validation(tmp_path: Path) -> None:
    """What one training has learned is the augmentation of another."""
    learned = TrainingPolicy.preset("deepmedic", ("all",))
    policies.save(tmp_path / "policy.json", training=learned)
    method = build(policy=str(tmp_path / "policy.json"), learn_training=False, test_time=False)
    streams = Streams(shape=(16, 16, 16))
    method.step(streams)
    assert method.needs == ("train",)
    assert streams.asked == ["train"]
    assert torch.allclose(method.training.logits, learned.logits)
    assert not method.warnings()


def test_views_know_the_sides_of_a_policy_that_was_given() -> None:
    given = TrainingPolicy.preset("nnunet", laterality=[[1, 2]])
    method = build(policy=given)
    assert method.test_time is not None
    assert method.test_time.laterality == given.laterality is not None
    with pytest.raises(ConfigError, match="its laterality is None"):
        build(policy=TrainingPolicy.preset("nnunet"), laterality=[[1, 2]])


@pytest.mark.parametrize(
    ("classes", "dims", "message"),
    [(("background", "liver"), 3, "its classes are background, liver, the"), (("all",), 2, "it is of 2D")],
)
def test_a_policy_that_does_not_fit_is_refused(classes: tuple[str, ...], dims: int, message: str) -> None:
    """Other labels, or other axes."""
    given = TrainingPolicy.preset("nnunet", classes, spatial_dims=dims)
    with pytest.raises(ConfigError, match=message):
        build(policy=given, task={"label_names": ("background", "anterior", "posterior")})
    fitting = TrainingPolicy.preset("nnunet", ("background", "anterior", "posterior"))
    build(policy=fitting, task={"label_names": ("background", "anterior", "posterior")})


def test_views_start_with_those_of_a_file(tmp_path: Path) -> None:
    """As far as they keep the size of a patch here; a preset that is asked for goes before."""
    views = TestTimePolicy.preset("uniform", average="probabilities", z=5)
    with torch.no_grad():
        views.logits += torch.randn(views.logits.shape, generator=torch.Generator().manual_seed(0))
    path = policies.save(tmp_path / "policy.json", training=TrainingPolicy.preset("nnunet"), test_time=views)
    method = build(policy=str(path), task={"patch_size": (16, 20, 20)})
    made = method.test_time
    assert made is not None
    assert (len(made.operations), made.level, made.average, made.z) == (80, "patch", "probabilities", 5)
    start = dict(zip((o.name for o in views.operations), views.logits.tolist(), strict=True))
    assert made.logits.tolist() == pytest.approx([start[o.name] for o in made.operations])
    preset = build(policy=str(path), test_time_preset="nnunet").test_time
    assert preset is not None
    assert [o.name for o in preset.top(2)[0]] == ["identity", "flip_d"]
    turned = [o for o in views.operations if o.name not in {p.name for p in made.operations}]
    policies.save(path, training=TrainingPolicy.preset("nnunet"), test_time=TestTimePolicy(turned))
    with pytest.raises(ConfigError, match="none of its 4 views, of 3D images, is possible .* set test_time_preset"):
        build(policy=str(path), task={"patch_size": (16, 20, 20)})
