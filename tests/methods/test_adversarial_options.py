# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial method's options: switches, bounds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import Fixed, build, losses, unet

from monai_autoaug import methods
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.adversarial import Adversarial
from monai_autoaug.methods.base import Task
from monai_autoaug.precision import Precision


def test_switches_do_what_they_say() -> None:
    without = build(discriminator=False)
    batches = Fixed()
    without.step(batches)
    assert set(without.players) == {"generators"}
    assert batches.asked == ["train"]
    with_it = build(warm_up=2)
    batches = Fixed()
    with_it.step(batches)
    assert batches.asked == ["train"]  # the discriminator rests while all patches are nearly real
    with_it.step(batches)
    batches.asked.clear()
    with_it.step(batches)
    assert batches.asked == ["train", "real"]
    assert tuple(with_it.needs) == ("train", "real")
    blind = build(image_condition=False)
    assert not any("trunk.image." in n for n, _ in blind.players["generators"].module.named_parameters())
    paper = build(fidelity="paper")
    assert isinstance(paper, Adversarial)
    assert (paper.saturating, paper.balance, paper.weight_prior) == (True, False, 0.0)
    assert paper.generators["affine"].trunk is not paper.generators["deformation"].trunk
    assert build().generators["affine"].trunk is not None
    plain = build(unet(), auxiliary_norms=False)
    assert not any("auxiliary" in n for n, _ in plain.task.network.named_parameters())
    network = unet()
    with pytest.raises(ConfigError, match="prepare"):
        methods.build(
            "adversarial", Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"))
        )
    with pytest.raises(ConfigError, match="mode"):
        build(mode="all")
    with pytest.raises(ConfigError, match="no option 'lambda_'"):
        build(lambda_=1)


@pytest.mark.parametrize(
    "bounds",
    [{"afine": {}}, {"affine": {"rotatoin": 3.0}}, {"affine": None}, {"affine": {"rotation": -3.0}}],
    ids=["kind", "name", "nothing", "value"],
)
def test_bounds_are_checked(bounds: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="affine"):
        build(bounds=bounds)


def test_bounds_of_a_kind_that_is_not_trained_are_refused() -> None:
    with pytest.raises(ConfigError, match="no use for the bounds of deformation"):
        build(mode="affine", bounds={"deformation": {"control": 5}})


@pytest.mark.parametrize(
    "option", [{"warm_up": -1}, {"noise_size": 0}, {"width": 0}, {"weight_magnitude": -0.1}, {"weight_prior": -1.0}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_numbers_that_can_not_be_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} must be at least"):
        build(**option)
