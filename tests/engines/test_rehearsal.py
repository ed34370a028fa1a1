# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A value of an option that can't work is refused before any file is opened or written, and the message names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import options

from monai_autoaug.data import DataList, write_phantom
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.random_states import random_states
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.engines.run import train
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.joint_policy import JointPolicy

CLASSES = DataList(Path("."), "decathlon", ("MRI",), {"background": 0, "left": 1, "right": 2})
REGIONS = DataList(Path("."), "nnunet", ("T1", "T2"), {"background": 0, "all": (1, 2), "core": (2,)}, (1, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "none"},
        {"method": "random"},
        {"method_options": {"mode": "deformation", "discriminator": False}},
        {"method_options": {"fidelity": "paper"}},
        {"network": "segresnet", "network_options": {}},
        {"network": "dynunet", "network_options": {}},
        {"network_options": {"channels": [2, 2, 2, 2, 2, 2]}},
        {"patch_size": (8, 8, 4)},
        {"batch_size": 1},
        {"method": "joint_policy", "epochs": 20},
        {"method": "joint_policy", "epochs": 20, "method_options": {"classes": "labels", "warm_up": 0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("data", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_what_works_passes_and_changes_nothing(data: DataList, changes: dict[str, Any]) -> None:
    before = random_states()
    rehearse(options(Path("nowhere"), Path("nowhere"), **changes), data)
    assert torch.equal(before["torch"], random_states()["torch"])
    assert before["numpy"]["position"] == random_states()["numpy"]["position"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method_options": {"mode": "afine"}}, "mode must be 'combined' or one of .*, got 'afine'"),
    ({"method_options": {"fidelity": "papr"}}, "fidelity must be"),
    ({"method_options": {"width": 0}}, r"width(=0| must be at least 1, got 0)"),
    ({"method_options": {"noise_size": -1}}, r"noise_size(=-1| must be at least 1, got -1)"),
    ({"method_options": {"learning_rate_generator": -1}}, "learning_rate_generator=-1 .*Invalid learning rate"),
    ({"method_options": {"image_channels": 3}}, "3 image channels, but images have 1"),
    ({"method_options": {"fidelity": "paper", "weight_discriminator": 1e39}}, "is not finite in the first step"),
    ({"network": "segresnet", "network_options": {"filters": 12}}, "network 'segresnet' can't work with filters=12"),
    ({"patch_size": (4, 4, 4)}, r"patch_size \[4, 4, 4\] is too small for network 'unet' .*\[16, 16, 16\] works"),
    ({"patch_size": (8, 8, 8), "network_options": {}}, r"patch_size \[8, 8, 8\] is too small for network 'unet' with"),
    ({"patch_size": (4, 4, 4), "method_options": {"width": 0}}, r"width(=0| must be at least 1, got 0)"),
    (
        {"method": "joint_policy", "method_options": {"derivative": "guess", "warm_up": 0}},
        "method 'joint_policy' can't work with derivative='guess'|derivative|mode must be",
    ),
    ({"method": "joint_policy", "method_options": {"warm_up": 20}}, "training has 9 steps, updates begin after 20"),
    ({"patch_size": (16, 18, 16)}, r"divisible by 4 with network 'unet', got \[16, 18, 16\]"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rehearse(options(Path("nowhere"), Path("nowhere"), **changes), CLASSES)


def test_policies_are_tried_out_at_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at a step that only warms up, and with the schedule of the whole run."""
    found: list[tuple[int, int | None]] = []
    original = JointPolicy._learn

    def note(self: JointPolicy, *args: Any) -> Any:
        result = original(self, *args)
        found.append((self.steps, self.task.steps))
        assert {"meta_loss"} <= set(result)
        return result

    monkeypatch.setattr(JointPolicy, "_learn", note)
    rehearse(options(Path("nowhere"), Path("nowhere"), method="joint_policy", epochs=20, iterations=10), CLASSES)
    assert found == [(10, 200)]


def test_a_fault_of_ours_is_not_blamed_on_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("monai_autoaug.engines.rehearsal.make_trainer", broken)
    for changes in ({}, {"patch_size": (16, 16, 16)}, {"patch_size": (8, 8, 8)}):
        with pytest.raises(ConfigError, match=r"default options \(TypeError: a bug\).*a fault of monai_autoaug") as e:
            rehearse(options(Path("nowhere"), Path("nowhere"), **changes), CLASSES)
        assert type(e.value.__cause__) is TypeError


def test_a_refused_run_leaves_nothing_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_phantom(tmp_path / "data", cases=4, size=16)
    monkeypatch.setattr("monai_autoaug.data.audit_views.read_nifti", lambda path: pytest.fail("a file was read"))
    for changes, message in BAD:
        with pytest.raises(ConfigError, match=message):
            train(options(data, tmp_path / "run", **changes))
    (tmp_path / "file").touch()
    for name in ("output", "cache"):
        with pytest.raises(ConfigError, match=f"{name} must be a folder"):
            train(options(data, **({"output": tmp_path / "run"} | {name: tmp_path / "file"})))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file"]


def test_method_options_of_the_wrong_kind_are_refused_with_the_options() -> None:
    with pytest.raises(ConfigError, match="method 'adversarial': discriminator must be true or false, got 'maybe'"):
        TrainOptions("data", "run", method_options={"discriminator": "maybe"})
