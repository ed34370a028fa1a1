# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every switch of the task-driven method changes what it says and nothing else; what can't be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from general_helpers import changed, weights
from task_driven_helpers import Streams, go_to, gradients, make, moved, same

from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import options
from monai_autoaug.methods.task_driven_comparisons import TASK_DRIVEN_COMPARISONS, task_driven_comparison

WEIGHTED = {"weighted_loss": True}
# option -> whose gradients change while a generator learns, and whether the network's do in the last phase
SWITCHES: list[tuple[dict[str, Any], dict[str, Any], set[str], bool]] = [
    ({}, {"weight_big": 0.0}, {"generator"}, False),
    ({}, {"weight_task": 0.0}, {"generator"}, False),
    ({}, {"weight_task": 2.0}, {"generator"}, False),
    ({}, {"saturating": True}, {"generator"}, False),
    ({}, {"weight_adversarial": 0.0}, {"generator", "discriminator"}, False),
    ({}, {"weight_adversarial": 2.0}, {"generator"}, False),
    ({}, {"unlabelled": False}, {"discriminator"}, False),
    ({}, {"labelled_share": 0.0}, {"discriminator"}, False),
    ({}, {"discriminator_resamples": False}, {"generator", "discriminator"}, False),
    ({}, {"warm_up": 5}, {"generator", "discriminator"}, False),
    ({}, WEIGHTED, {"network", "generator"}, True),
    (WEIGHTED, {"weight_background": 0.2}, {"network", "generator"}, False),
    (WEIGHTED, {"weight_foreground": 0.5}, {"network", "generator"}, True),
    (WEIGHTED, {"weight_background_later": 0.1}, set(), True),
    ({}, {"mixup": True}, set(), True),
    ({"mixup": True}, {"mixup_alpha": 5.0}, set(), True),
    ({}, {"generator_length": 2.0}, set(), False),
    ({}, {"affine": ()}, {"network", "generator", "discriminator"}, True),
    ({"affine": ("flip",)}, {"flip_axis": 0}, {"network", "generator", "discriminator"}, True),
    ({}, {"bounds": {"deformation": {"displacement": 9.0}}}, {"network", "generator", "discriminator"}, True),
    ({}, {"base": "identity"}, {"network", "generator", "discriminator"}, True),
]
_OTHERS = {"seed", "image_channels", "augmentation", "fidelity", "noise_size", "width", "learning_rate_generator",
           "learning_rate_discriminator"}  # fmt: skip


def test_every_option_is_looked_at() -> None:
    assert {name for _, given, _, _ in SWITCHES for name in given} == set(options("task_driven")) - _OTHERS


# A set is sorted in its test's name: workers of pytest-xdist must agree on names, and each has an order of its own.
@pytest.mark.parametrize(
    ("under", "given", "learning", "last"), SWITCHES, ids=lambda v: str(sorted(v) if isinstance(v, set) else v)[:40]
)
def test_a_switch_changes_what_it_says_and_nothing_else(
    under: dict[str, Any], given: dict[str, Any], learning: set[str], last: bool
) -> None:
    batches = Streams()
    plain, other = (moved(make(**under | more)) for more in ({}, given))
    found = [gradients(m, batches) for m in (plain, other)]
    players = ("network", "generator", "discriminator")
    differing = {n for n in players if n not in found[1] or not same(found[0][n], found[1][n])}
    assert differing == learning
    for method in (plain, other):  # the last phase, with the same random numbers and generators
        go_to(method, "network")
        method.generator.manual_seed(7)
    found = [gradients(m, batches) for m in (plain, other)]
    assert same(found[0]["network"], found[1]["network"]) != last


@pytest.mark.parametrize("kind", ["deformation", "appearance"])
def test_one_generator_alone_is_learned_as_with_the_other(kind: str) -> None:
    """Both begin alike; a deformation in the first phase, whose random numbers are the same, learns alike, too."""
    alone, both = make(augmentation=kind), make()
    assert not changed(weights(alone.generators[kind]), both.generators[kind])
    assert not changed(weights(alone.discriminator), go_to(make(), kind).discriminator)  # type: ignore[arg-type]
    if kind == "deformation":
        assert same(gradients(alone, Streams())["generator"], gradients(both, Streams())["generator"])
    assert list(alone.generators) == [kind]
    assert [p.name for p in alone.phases] == [kind, "network"]


def test_rates_are_those_of_adam_as_in_the_paper() -> None:
    for fidelity, rates in (("default", [1e-4, 1e-3]), ("paper", [1e-3, 1e-3])):
        players = make(fidelity=fidelity).players.values()
        assert [player.optimizer.param_groups[0]["lr"] for player in players] == rates
        assert all(player.optimizer.param_groups[0]["betas"] == (0.9, 0.999) for player in players)
    method = make(learning_rate_generator=1e-2, learning_rate_discriminator=2e-2, phase="appearance")
    assert [p.optimizer.param_groups[0]["lr"] for p in method.players.values()] == [1e-2, 2e-2]


def test_the_papers_numbers_are_the_defaults() -> None:
    known = {name: parameter.default for name, parameter in options("task_driven").items()}
    assert (known["weight_adversarial"], known["weight_big"], known["weight_task"]) == (1.0, 1e-3, 1.0)
    assert (known["mixup_alpha"], known["noise_size"], known["augmentation"]) == (0.1, 100, "both")
    assert [known[f"weight_{n}"] for n in ("background", "foreground", "background_later")] == [0.1, 0.3, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight_big": -1.0}, "weight_big must be at least 0, got -1"),
        ({"warm_up": -1}, "warm_up must be at least 0"),
        ({"width": 0}, "width must be at least 1"),
        ({"mixup_alpha": 0.0}, "mixup_alpha must be above 0"),
        ({"generator_length": 0.0}, "generator_length must be above 0"),
        ({"labelled_share": 1.5}, "labelled_share must be between 0 and 1"),
        ({"fidelity": "code"}, "fidelity must be 'default' or 'paper'"),
        ({"fidelity": "paper", "base": "random"}, "has a form of its own: leave base out"),
        ({"augmentation": "elastic", "base": "random"}, "there is no generator: leave base out"),
        ({"augmentation": "none", "bounds": {"deformation": {}}}, "of which there is none; got deformation"),
        ({"augmentation": "appearance", "bounds": {"deformation": {}}}, "there are appearance; got deformation"),
        ({"bounds": {"deformation": {"additive": 1.0}}}, "bounds of deformation are displacement, control, steps"),
        ({"fidelity": "paper", "bounds": {"deformation": {"displacement": 1.0}}}, "bounds of deformation are none"),
        ({"affine": ["shear"]}, "affine is a list of"),
        ({"augmentation": "affine"}, "augmentation must be one of both"),
        ({"base": "zero"}, "base must be 'random' or 'identity'"),
    ],
)
def test_what_can_t_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**given)


def test_the_weighted_loss_is_of_classes() -> None:
    method = make()
    method.task.regions = True
    with pytest.raises(ConfigError, match="but the labels are regions"):
        type(method)(method.task, weighted_loss=True)


@pytest.mark.parametrize("name", TASK_DRIVEN_COMPARISONS)
def test_every_row_of_the_papers_table_trains(name: str) -> None:
    method = make(**task_driven_comparison(name))
    go_to(method, "network")
    assert all(torch.isfinite(torch.tensor(v)) for v in method.step(Streams()).values())
    assert method.mixup == ("mixup" in name)
    assert (method.affine == ()) == (name == "none")
    assert ("appearance" in method.kinds) == (name.startswith(("both", "learned_intensity")))
    assert ("deformation" in method.kinds) == (name.startswith(("both", "learned_deformation")))


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no comparison 'ssl'; choose one of none, affine"):
        task_driven_comparison("ssl")
