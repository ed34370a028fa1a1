# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which cases are for what, what belongs to a configuration, and how long arms of equal time train."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compare_helpers import datalist, making_up, small_plan, write_result

import monai_autoaug
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation.comparison import Arm, Setting, plan
from monai_autoaug.evaluation.comparison.cells import CellFolder
from monai_autoaug.evaluation.comparison.planning import training_time, write_once
from monai_autoaug.evaluation.comparison.scheduling import run_cells
from monai_autoaug.evaluation.comparison.setting import Parts, fingerprint
from monai_autoaug.methods.policy_schedule import PolicySchedule


def test_parts_are_disjoint_and_the_same_for_every_process(tmp_path: Path) -> None:
    data = datalist(tmp_path)
    setting = Setting(test_cases=0.25, validation_cases=3, unlabelled_cases=4)
    parts = Parts.of(data.training, setting)
    groups = (parts.test, parts.validation, parts.unlabelled, parts.pool)
    assert [len(g) for g in groups] == [6, 3, 4, 11]
    assert len({name for group in groups for name in group}) == 24
    assert Parts.of(data.training[::-1], setting) == parts
    assert Parts.of(data.training, replace(setting, split_seed=1)).test != parts.test


def test_training_cases_follow_the_seed_and_are_nested(tmp_path: Path) -> None:
    parts = Parts.of(datalist(tmp_path).training, Setting(test_cases=6))
    for seed in (0, 1):
        few, many = parts.train(3, seed), parts.train(9, seed)
        assert many[:3] == few
        assert set(many) <= set(parts.pool)
    assert parts.train(3, 0) != parts.train(3, 1)
    assert set(parts.train(parts.count("all"), 0)) == set(parts.pool)


@pytest.mark.parametrize(
    ("count", "told"),
    [("ten", "numbers of training cases, or all; got 'ten'"), ("0", "got '0'"), ("-3", "got '-3'"),
     ("15", "15 training cases can't be had: 8 cases are kept to test with, 2 to validate with, which leaves 14")],
)  # fmt: skip
def test_numbers_of_cases_that_cannot_be_had(tmp_path: Path, count: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small_plan(tmp_path, counts=("all", count))


def test_a_number_of_cases_counts_once(tmp_path: Path) -> None:
    assert small_plan(tmp_path, counts=(3, "all", "14", "3")).counts == (3, 14)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": ("none",)}, "needs at least two arms, got none"),
        ({"arms": ("none", "none")}, "needs at least two arms"),
        ({"reference": "nnunet"}, "reference 'nnunet' is none of the arms"),
        ({"reference": "adversrial"}, "did you mean 'adversarial'"),
        ({"seeds": ()}, "seeds must be different numbers"),
        ({"seeds": (1, 1)}, "seeds must be different numbers"),
        ({"counts": ()}, "names no number of training cases"),
        ({"arms": ("none", "task_driven")}, "'task_driven' learns from unlabelled images, too: give their folder"),
        ({"setting": Setting(test_cases=22)}, "no training case is left: 24 labelled cases, 22 to test with"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small_plan(tmp_path, **changes)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"host": "keras"}, "there is no host 'keras'"),
        ({"options": {"epoch": 2}}, "did you mean 'epochs'"),
        ({"options": {"seed": 2}}, "there is no option 'seed'"),
        ({"test_time": "all"}, "test_time must be one of own, none"),
        ({"test_cases": 0}, "test_cases must be a number of cases"),
        ({"validation_cases": 1.5}, "validation_cases must be a number of cases"),
        ({"unlabelled_cases": -1}, "unlabelled_cases must be 0 or more"),
        ({"tolerance": -1.0}, "tolerance of the surface Dice"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Setting(**given)


def test_the_reference_is_nnunet_unless_told(tmp_path: Path) -> None:
    arms = ("none", "nnunet", "random")
    assert small_plan(tmp_path, arms).reference == "nnunet"
    assert small_plan(tmp_path, arms[::2]).reference == "none"
    assert small_plan(tmp_path, arms, reference="random").reference == "random"


def test_unlabelled_images_are_part_of_the_configuration(tmp_path: Path) -> None:
    arms = ("none", "task_driven")
    setting = Setting(test_cases=8, validation_cases=2, unlabelled_cases=3)
    own = small_plan(tmp_path, arms, setting=setting)
    cells = {cell.arm.name: cell.config["unlabelled"] for cell in own.cells()}
    assert cells == {"none": [], "task_driven": list(own.parts.unlabelled)}
    assert [case.name for case in own.unlabelled] == list(own.parts.unlabelled)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"x")
    given = small_plan(tmp_path, arms, unlabelled=folder)
    first = {cell.arm.name: cell.config["unlabelled"] for cell in given.cells()}["task_driven"]
    (folder / "a.nii.gz").write_bytes(b"y")
    second = small_plan(tmp_path, arms, unlabelled=folder).cells()[1].config["unlabelled"]
    assert first[0].startswith("digest ")
    assert first != second
    with pytest.raises(ConfigError, match="give one of them"):
        small_plan(tmp_path, arms, setting=setting, unlabelled=folder)


def test_all_arms_have_the_same_cases(tmp_path: Path) -> None:
    compared = small_plan(tmp_path, ("none", "joint_policy", "adversarial"), counts=(4, 8))
    for count in (4, 8):
        for seed in (0, 1):
            cells = [c for c in compared.cells() if (c.cases, c.seed) == (count, seed)]
            assert len({json.dumps([c.config[k] for k in ("train", "validation", "test")]) for c in cells}) == 1
            assert len(cells[0].config["train"]) == count
    assert [c.seed for c in compared.cells()] == [0] * 6 + [1] * 6  # a whole seed first


def test_a_changed_setting_is_refused(tmp_path: Path) -> None:
    before = small_plan(tmp_path)
    before.begin()
    before.begin()  # the same again
    changed = small_plan(
        tmp_path, setting=Setting(test_cases=8, validation_cases=2, options={"epochs": 5}, split_seed=1)
    )
    with pytest.raises(
        ConfigError, match=r'options: \{\} there, \{"epochs": 5\} here; split_seed: 0 there, 1 here'
    ) as told:
        changed.check()
    assert "choose another folder with --output" in str(told.value)
    with pytest.raises(ConfigError, match="another configuration"):
        changed.begin()


def test_more_arms_seeds_and_cases_are_no_other_setting(tmp_path: Path) -> None:
    small_plan(tmp_path).begin()
    more = small_plan(tmp_path, ("none", "adversarial", "random"), seeds=(0, 1, 2), counts=(4, 6), reference="random")
    more.check()
    more.begin()


@pytest.mark.parametrize("role", ["image", "label"])
def test_other_data_are_refused(tmp_path: Path, role: str) -> None:
    """Files that were written again in place, too: an uncompressed label has the same size whatever it holds."""
    own = small_plan(tmp_path)
    own.begin()
    file = tmp_path / "data" / f"{role}_003.nii.gz"
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(b"y" * len(content))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = replace(own, data=fingerprint(own.datalist))
    with pytest.raises(ConfigError, match="data: .* so the data have changed since, or an older version, .* wrote"):
        changed.check()
    file.write_bytes(content)
    assert fingerprint(own.datalist) == own.data


def test_what_a_data_set_declares_and_how_its_cases_are_called_is_part_of_it(tmp_path: Path) -> None:
    own = datalist(tmp_path)
    renamed = replace(own.training[0], name="case_100")
    exchanged = replace(own.training[0], images=own.training[1].images)
    others = [
        replace(own, channels=("CT",)), replace(own, labels=own.labels | {"new": 3}), replace(own, ignore_label=3),
        replace(own, training=own.training[1:]), replace(own, training=(renamed, *own.training[1:])),
        replace(own, training=(exchanged, *own.training[1:])),
    ]  # fmt: skip
    assert len({fingerprint(one) for one in (own, *others)}) == 1 + len(others)
    assert fingerprint(replace(own, training=own.training[::-1])) == fingerprint(own)


def test_another_version_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_plan(tmp_path).begin()
    monkeypatch.setattr(monai_autoaug, "__version__", "99.0")
    with pytest.raises(ConfigError, match='version: ".*" there, "99.0" here'):
        small_plan(tmp_path).check()


def test_a_changed_arm_is_refused(tmp_path: Path) -> None:
    """Its folder has the same name, but not the same content."""
    own = small_plan(tmp_path)
    own.begin()
    cell = own.cells()[1]
    own.place(cell).begin(cell)
    write_result(cell, own.place(cell), 0.0)
    arm = replace(cell.arm, method_options={"mode": "affine"})
    changed = replace(own, arms=(own.arms[0], arm))
    with pytest.raises(ConfigError, match=r'method_options: \{\} there, \{"mode": "affine"\} here; hash'):
        changed.check()
    seen: list[str] = []
    with pytest.raises(ConfigError):
        run_cells(changed.cells(), changed.place, making_up({}, seen=seen))
    assert seen == []  # nothing was begun


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    own.folder.mkdir()
    (own.folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds something else than a comparison"):
        own.check()


def test_a_damaged_setting_or_result_is_told(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    own.begin()
    own.file.write_text("{")
    with pytest.raises(ConfigError, match="can't be read .* remove it"):
        own.check()
    cell = own.cells()[0]
    folder = own.place(cell)
    folder.begin(cell)
    write_result(cell, folder, 0.0)
    folder.result.write_text('{"training": 3}')
    with pytest.raises(DataError, match="remove the folder none_4_0; the same command makes it again"):
        folder.read()


def test_names_of_folders(tmp_path: Path) -> None:
    own = small_plan(tmp_path, ("task_driven/affine", "joint_policy:views=4:without=[noise, gamma]"))
    names = [own.cell(arm, 4, 0).name for arm in own.arms]
    assert names[0] == "task_driven--affine_4_0"
    assert all(c.isalnum() or c in "._=+-" for c in names[1])
    long = own.cell(replace(own.arms[1], name="x" * 300), 4, 0).name
    assert len(long) == 80
    assert long != own.cell(replace(own.arms[1], name="x" * 301), 4, 0).name
    assert own.cell(own.arms[0], 4, 0, {"iterations": 3}).name.endswith("_equal_time")


def equal_time(tmp_path: Path, seconds: dict[str, float], **changes: Any) -> Any:
    arms = ("none", "joint_policy", "random:iterations=30")
    setting = Setting(test_cases=8, validation_cases=2, options={"epochs": 10, "iterations": 100})
    own = small_plan(tmp_path, arms, equal_time=True, setting=setting, **changes)
    run_cells(own.cells(), own.place, making_up({}, seconds))
    return own


def test_iterations_of_equal_time(tmp_path: Path) -> None:
    own = equal_time(tmp_path, {"none": 10.0, "joint_policy": 20.0, "random:iterations=30": 5.0})
    changes = {cell.arm.name: cell.config for cell in own.equal_time_cells()}
    joint = changes["joint_policy"]
    assert joint["options"] == {"epochs": 10, "iterations": 50}
    # as often as in the longer training, not as many times
    assert joint["method_options"] == {"update_every": PolicySchedule(1000).update_every}
    assert joint["equal"] == "time"
    assert changes["random:iterations=30"]["options"] == {"epochs": 10, "iterations": 60}
    assert len(own.equal_time_cells()) == 4  # the reference has the time already


def test_an_arm_that_takes_as_long_is_not_trained_again(tmp_path: Path) -> None:
    own = equal_time(tmp_path, {"none": 10.0, "joint_policy": 10.01, "random:iterations=30": 20.0})
    assert {cell.arm.name for cell in own.equal_time_cells()} == {"random:iterations=30"}
    assert own.changes(own.arms[1], 4) == {}


def test_equal_time_waits_for_all_seeds_and_is_decided_once(tmp_path: Path) -> None:
    setting = Setting(test_cases=8, validation_cases=2)
    own = small_plan(tmp_path, equal_time=True, setting=setting)
    run_cells(own.cells()[:3], own.place, making_up({}, {"adversarial": 20.0}))
    assert own.equal_time_cells() == []
    run_cells(own.cells(), own.place, making_up({}, {"adversarial": 20.0}))
    length = own.equal_time_cells()[0].config["options"]["iterations"]
    more = small_plan(tmp_path, equal_time=True, setting=setting, seeds=(0, 1, 2))
    run_cells(more.cells(), more.place, making_up({}, {"adversarial": 90.0}))
    assert {cell.config["options"]["iterations"] for cell in more.equal_time_cells()} == {length}
    assert len(more.equal_time_cells()) == 3


def test_times_of_different_machines_are_not_compared(tmp_path: Path) -> None:
    own = small_plan(tmp_path, equal_time=True, seeds=(0, 1, 2))
    run_cells(own.cells(), own.place, making_up({}, {"adversarial": 20.0}))
    slow = own.place(own.cell(own.arms[0], 4, 1))  # its plain training ran elsewhere
    result = json.loads(slow.result.read_text())
    result["device"]["name"] = "another"
    result["training"] |= {"seconds": 900.0, "cpu_seconds": 900.0}
    slow.result.write_text(json.dumps(result))
    decided = own._equal_time(own.arms[1], 4)
    assert decided is not None
    assert decided["ratio"] == 0.5


def test_cpu_time_is_taken_where_all_have_it() -> None:
    def result(kind: str, cpu: float | None) -> dict[str, Any]:
        return {"device": {"kind": kind}, "training": {"seconds": 5.0, "cpu_seconds": cpu}}

    assert training_time(result("cpu", 3.0), [result("cpu", 3.0)]) == 3.0
    assert training_time(result("cpu", 3.0), [result("cpu", None)]) == 5.0
    assert training_time(result("cuda", 3.0), [result("cuda", 3.0)]) == 5.0


def test_nnunet_counts_by_its_own_names(tmp_path: Path) -> None:
    setting = Setting(host="nnunet", test_cases=8, validation_cases=2, options={"epochs": 4})
    own = small_plan(tmp_path, ("none", "da5"), setting=setting, equal_time=True)
    run_cells(own.cells(), own.place, making_up({}, {"da5": 20.0}))
    assert own.equal_time_cells()[0].config["options"] == {"epochs": 4, "iterations_per_epoch": 125}


@pytest.mark.parametrize("links", [True, False])
def test_the_first_to_write_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*names: object) -> None:
            raise PermissionError(1, "no links here")

        monkeypatch.setattr("os.link", refuse)
    file = tmp_path / "a" / "b.json"
    threads = [threading.Thread(target=write_once, args=(file, str(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = file.read_text()
    write_once(file, "later")
    assert file.read_text() == first
    assert [f.name for f in file.parent.iterdir()] == ["b.json"]


def test_an_arm_stays_what_it_was_asked_for(tmp_path: Path) -> None:
    assert [arm.name for arm in small_plan(tmp_path, ("none", "random:mode=affine")).arms] == [
        "none",
        "random:mode=affine",
    ]
    assert Arm.find("random:mode=affine", "monai").method_options == {"mode": "affine"}
    assert isinstance(CellFolder(tmp_path).done, bool)
    assert plan.__module__.startswith("monai_autoaug.evaluation.comparison")
