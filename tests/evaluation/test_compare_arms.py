# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every arm that a user can name can be built, on every host, and is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_autoaug import methods
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation.comparison import HOSTS, Arm, known_arms
from monai_autoaug.evaluation.comparison.setting import host_options
from monai_autoaug.methods import bilevel_comparisons
from monai_autoaug.methods.adversarial_comparisons import ADVERSARIAL_COMPARISONS, adversarial_comparison
from monai_autoaug.methods.comparisons import COMPARISONS
from monai_autoaug.methods.general_comparisons import GENERAL_COMPARISONS
from monai_autoaug.methods.task_driven_comparisons import TASK_DRIVEN_COMPARISONS

BOTH = {"none", "nnunet", "no-mirroring", "nnunet-no-gamma", "randaugment-s", "randaugment-m", "randaugment-l",
        "random", "random-policy", "affine", "elastic", "contrast", "mixup", "heuristic-tea",
        "learned-tea"}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_all_that_the_papers_compare_is_there(host: str) -> None:
    arms = known_arms(host)
    assert set(arms) >= BOTH | {n for n in methods.names()}
    assert ({"nnunet-reseeded", "da5"} <= set(arms)) == (host == "nnunet")
    for method, rows in (
        ("adversarial", ADVERSARIAL_COMPARISONS), ("task_driven", TASK_DRIVEN_COMPARISONS),
        ("joint_policy", {*COMPARISONS} - {"heuristic_all_cases"}), ("general_adversarial", GENERAL_COMPARISONS),
        ("bilevel", {*bilevel_comparisons.COMPARISONS} - {"magnitude"}),
        ("bilevel", {f"magnitude_{m}" for m in bilevel_comparisons.MAGNITUDES}),
    ):  # fmt: skip
        assert {f"{method}/{row}" for row in rows} <= set(arms)
    assert all(arm.what.endswith(".") for arm in arms.values())


@pytest.mark.parametrize("name", known_arms("monai"))
def test_the_monai_host_takes_every_arm(name: str) -> None:
    arm = Arm.find(name, "monai")
    options = TrainOptions("data", "run", method=arm.method, method_options=arm.method_options)
    assert options.learns_from_meta == arm.learns_from_meta
    assert options.learns_from_unlabelled == arm.learns_from_unlabelled
    assert arm.trainer == ""


@pytest.mark.parametrize("name", known_arms("nnunet"))
def test_the_nnunet_host_takes_every_arm(name: str) -> None:
    from monai_autoaug.nnunet.baselines import BASELINES
    from monai_autoaug.nnunet.options import Options
    from monai_autoaug.nnunet.trainers import TRAINERS

    arm = Arm.find(name, "nnunet")
    given = {**arm.options, "method": arm.method, "method_options": arm.method_options}
    assert Options.from_mapping(given).learns_from_meta == arm.learns_from_meta
    assert arm.trainer in TRAINERS | BASELINES
    alone = "/" in name or name in ("none", "affine", "elastic", "contrast", "mixup")
    assert (Options.from_mapping(given).base_augmentation == "none") >= alone


@pytest.mark.parametrize("host", HOSTS)
def test_baselines_train_on_all_cases(host: str) -> None:
    """Only what learns from cases set apart, or is fine-tuned on them, sets any apart."""
    arms = known_arms(host)
    for name, arm in arms.items():
        assert "hold_out" not in arm.method_options, name
    assert not any(arms[name].learns_from_meta for name in BOTH - {"learned-tea"})
    assert not any(
        arms[f"bilevel/{row}"].learns_from_meta for row in ("baseline", "flip", "predefined", "magnitude_0.1")
    )
    assert not arms["joint_policy/heuristic_tea"].learns_from_meta
    assert all(arms[n].learns_from_meta for n in ("joint_policy", "bilevel", "learned-tea", "joint_policy/fine_tuning"))


def test_baselines_are_what_they_say() -> None:
    arms = known_arms("monai")
    fixed = {"learn_training": False, "test_time": False}
    assert arms["nnunet"].method_options == fixed
    assert arms["no-mirroring"].method_options["without"] == ["mirrorS", "mirrorF", "mirrorA"]
    assert arms["nnunet-no-gamma"].method_options["without"] == ["gamma", "invgamma"]
    assert arms["randaugment-m"].method_options == fixed | {"magnitude": "medium"}
    assert arms["learned-tea"].method_options == {"learn_training": False}
    assert known_arms("nnunet")["nnunet"].options == {"loader": "stock"}
    assert known_arms("nnunet")["nnunet-reseeded"].options == {}
    assert {n for n, arm in arms.items() if arm.chooses_epoch} == {
        "affine",
        "elastic",
        "contrast",
        "mixup",
        "task_driven",
        *(n for n in arms if n.startswith("task_driven/")),
    }


def test_options_of_an_arm() -> None:
    arm = Arm.find("joint_policy/learned:preset=deepmedic:epochs=7:without=[noise, gamma]", "monai")
    assert arm.method_options == {"classes": "all", "test_time": False, "preset": "deepmedic",
                                  "without": ["noise", "gamma"]}  # fmt: skip
    assert arm.options == {"epochs": 7}
    assert Arm.find("none:lr=0.1", "nnunet").options == {"base_augmentation": "none", "lr": 0.1}


@pytest.mark.parametrize(
    ("text", "host", "told"),
    [
        ("adversrial", "monai", "there is no arm 'adversrial'; .*did you mean 'adversarial'"),
        ("da5", "monai", "arm 'da5' is one of host nnunet only"),
        ("adversarial:mod=affine", "monai", "'mod=affine' is no OPTION=VALUE .*did you mean 'mode'"),
        ("adversarial:mode", "monai", "'mode' is no OPTION=VALUE"),
        ("adversarial:seed=3", "monai", "'seed=3' is no OPTION=VALUE"),
        ("adversarial:width=[", "monai", "can't be read as a value"),
        ("adversarial:width=wide", "monai", "width"),
        ("none", "keras", "there is no host 'keras'"),
    ],
)
def test_what_is_no_arm(text: str, host: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Arm.find(text, host)


def test_rows_of_paper_000() -> None:
    assert len(ADVERSARIAL_COMPARISONS) == 12
    assert adversarial_comparison("combined") == {"mode": "combined"}
    for name in ADVERSARIAL_COMPARISONS:
        methods.check("adversarial", adversarial_comparison(name))
    with pytest.raises(ConfigError, match="did you mean 'affine'"):
        adversarial_comparison("afine")


def test_options_for_all_arms(tmp_path: Path) -> None:
    common: dict[str, Any] = {"monai": host_options("monai"), "nnunet": host_options("nnunet")}
    assert {"epochs", "network", "patch_size", "precision"} <= set(common["monai"])
    assert not {"data", "output", "seed", "method", "split", "train_cases", "device"} & set(common["monai"])
    assert {"epochs", "features", "configuration", "patch_size"} <= set(common["nnunet"])
    assert not {"seed", "method"} & set(common["nnunet"])
