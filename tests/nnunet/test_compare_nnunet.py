# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A comparison by host "nnunet": what nnU-Net's commands are given, and all of it."""

from __future__ import annotations

import json
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from monai_autoaug.data import DataList, read_datalist, write_phantom
from monai_autoaug.errors import AutoAugError, CheckpointError, ConfigError
from monai_autoaug.evaluation.comparison import Plan, Setting, compare, plan
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.comparison.claims import Claim
from monai_autoaug.evaluation.comparison.comparing import check_arms, prepare_nnunet
from monai_autoaug.evaluation.comparison.nnunet_work import NnunetCell, configuration_of, small_of
from monai_autoaug.evaluation.comparison.working import Place
from monai_autoaug.nnunet import experiment, launcher
from monai_autoaug.nnunet.experiment import Experiment

SMALL = {"patch_size": [16, 16, 16], "features": [4, 8], "epochs": 20, "iterations_per_epoch": 2,
         "val_iterations_per_epoch": 1}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataList:
    return read_datalist(write_phantom(tmp_path_factory.mktemp("compared") / "data", cases=8, size=20))


def made(data: DataList, folder: Path, *arms: str, options: dict[str, Any] | None = None, **setting: Any) -> Plan:
    given = {"test_cases": 2, "validation_cases": 1, **setting}
    own = Setting(host="nnunet", options=SMALL if options is None else options, **given)
    return plan(data, folder, own, arms=arms, counts=(3,), seeds=(0,))


def begun(own: Plan, number: int, workers: int | None = 0) -> tuple[Cell, NnunetCell]:
    cell = own.cells()[number]
    folder = own.place(cell)
    folder.begin(cell)
    place = Place(own.datalist.folder, own.folder, "cpu", workers)
    return cell, NnunetCell(folder, cell.config, place, own.datalist, torch.device("cpu"))


class Heard:
    """What nnU-Net's commands were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("train", "predict"):
            monkeypatch.setattr(launcher, name, self.hear)

    def hear(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.environment = {k: v for k, v in os.environ.items() if k.startswith(("nnUNet", "MONAI_AUTOAUG"))}
        config = self.environment.get("MONAI_AUTOAUG_CONFIG")
        self.options: Any = None if config is None else yaml.safe_load(Path(config).read_text())


def test_a_training_is_nnunets_own_command(data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch)
    own = made(data, tmp_path / "out", "nnunet", "joint_policy/learned:views=3:lr=0.1")
    Experiment(own.folder / "nnunet", "compare").preprocessed.mkdir(parents=True)
    cell, work = begun(own, 0, workers=2)
    assert work.train()
    assert heard.arguments == ["900", "small", "0", "-tr", "nnUNetTrainerAutoAugNone", "-p", "nnUNetPlans", "-device",
                               "cpu"]  # fmt: skip
    # the network's size is in the plans
    assert heard.options == {"epochs": 20, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 2,
                             "loader": "stock", "method": "none", "seed": 0}  # fmt: skip
    assert heard.environment["nnUNet_n_proc_DA"] == "2"
    folder = Path(heard.environment["nnUNet_preprocessed"]) / "Dataset900_compare"
    split = json.loads((folder / "splits_final.json").read_text())
    assert split == [{"train": sorted(cell.config["train"]), "val": sorted(cell.config["validation"])}]
    assert heard.environment["nnUNet_results"] == str(own.place(cell).run / "results")
    _, work = begun(own, 1)
    work.train()
    assert heard.options["method_options"] == {"classes": "all", "test_time": False, "views": 3}
    assert heard.options["lr"] == 0.1
    assert "-tr nnUNetTrainerAutoAug " in " ".join(heard.arguments)


def test_a_cell_knows_what_its_training_has_warned_of(data: DataList, tmp_path: Path) -> None:
    """At its end, after what is learned last; nnU-Net's own trainer warns of nothing."""
    own = made(data, tmp_path / "out", "nnunet", "none")
    Experiment(own.folder / "nnunet", "compare").preprocessed.mkdir(parents=True)
    _, work = begun(own, 0)
    assert work.warnings() == []
    work.fold.mkdir(parents=True)
    (work.fold / "autoaug.json").write_text(json.dumps({"version": 1, "warnings": ["2 updates were skipped"]}))
    assert work.warnings() == ["2 updates were skipped"]


@pytest.mark.parametrize("common", [{}, {"batch_size": 4}])
def test_an_arm_has_a_batch_size_of_its_own(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, common: dict[str, int]
) -> None:
    """The plans hold the one that is common to all, also those of a small network."""
    heard = Heard(monkeypatch)
    own = made(data, tmp_path / "out", "none", "none:batch_size=8", options=SMALL | common)
    Experiment(own.folder / "nnunet", "compare").preprocessed.mkdir(parents=True)
    for number, size in enumerate((common.get("batch_size"), 8)):
        begun(own, number)[1].train()
        assert heard.options.get("batch_size") == size
    assert small_of(own.setting.options)["batch_size"] == common.get("batch_size", 2)


@pytest.mark.parametrize("option", ["features=[4]", "width=0.5", "patch_size=[8, 8, 8]", "configuration=3d_lowres"])
def test_the_network_is_the_same_for_all_arms(data: DataList, tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match="is no OPTION=VALUE of method 'none' or of the host"):
        made(data, tmp_path / "out", "none", f"none:{option}")


def test_nnunet_has_its_own_number_of_workers_unless_told(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(monkeypatch)
    monkeypatch.delenv("nnUNet_n_proc_DA")
    own = made(data, tmp_path / "out", "nnunet", "none")
    Experiment(own.folder / "nnunet", "compare").preprocessed.mkdir(parents=True)
    begun(own, 0, workers=None)[1].train()
    assert "nnUNet_n_proc_DA" not in heard.environment


def test_a_stopped_training_goes_on_and_one_that_has_ended_does_not(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(monkeypatch)
    own = made(data, tmp_path / "out", "nnunet", "none", options={"save_every": 7})
    Experiment(own.folder / "nnunet", "compare").preprocessed.mkdir(parents=True)
    _, work = begun(own, 1)
    work.fold.mkdir(parents=True)
    (work.fold / "checkpoint_latest.pth").touch()
    assert not work.train()
    assert heard.arguments[-1] == "--c"
    assert heard.arguments[1] == "3d_fullres"
    assert heard.options["save_every"] == 7
    assert heard.options["base_augmentation"] == "none"
    (work.fold / "checkpoint_final.pth").touch()
    del heard.arguments
    assert not work.train()
    assert not hasattr(heard, "arguments")


@pytest.mark.parametrize(("test_time", "plain"), [("own", False), ("none", True)])
def test_test_cases_are_predicted(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_time: str, plain: bool
) -> None:
    heard = Heard(monkeypatch)
    own = made(data, tmp_path / "out", "nnunet", "none", test_time=test_time)
    cell, work = begun(own, 0)
    by_name = {case.name: case for case in data.training}
    images: list[str] = []
    original = heard.hear

    def hear(arguments: list[str]) -> None:
        original(arguments)
        images.extend(sorted(f.name for f in Path(arguments[1]).iterdir()))

    monkeypatch.setattr(launcher, "predict", hear)
    work.predict([by_name[name] for name in cell.config["test"]])
    assert images == sorted(f"{name}_0000.nii.gz" for name in cell.config["test"])
    assert ("--disable_tta" in heard.arguments) is plain
    assert heard.environment.get("MONAI_AUTOAUG_TEA") == ("0" if plain else None)
    assert heard.options is None  # prediction needs none
    assert not Path(heard.arguments[1]).exists()


def test_what_training_took_is_of_its_epochs(data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = made(data, tmp_path / "out", "nnunet", "none")
    _, work = begun(own, 0)
    content = {"logging": {"epoch_start_timestamps": [10.0, 500.0], "epoch_end_timestamps": [12.0, 503.5]}}
    monkeypatch.setattr("monai_autoaug.nnunet.checkpoint.read_checkpoint", lambda path: content)
    assert work.trained() == {"seconds": 5.5, "epochs": 2, "iterations": 4}  # not what lay between two attempts
    assert work.learned(("policy_updates",)) == {}
    work.fold.mkdir(parents=True)
    (work.fold / "autoaug.jsonl").write_text('{"epoch": 0}\n{"epoch": 1, "policy_updates": 3, "other": 1}\n')
    assert work.learned(("policy_updates",)) == {"policy_updates": 3}


def test_options_of_the_plans() -> None:
    assert configuration_of({}) == "3d_fullres"
    assert configuration_of({"configuration": "3d_lowres"}) == "3d_lowres"
    assert configuration_of(SMALL) == experiment.SMALL
    assert small_of({"features": [4]}) is None
    assert small_of(SMALL) == {"patch_size": [16, 16, 16], "features": [4, 8], "batch_size": 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [({"patch_size": [8, 8, 8]}, "needs features"),
     ({"patch_size": [8, 8, 8], "features": [4]}, "at least 2 stages, got"),
     ({"epochs": 0}, "arm 'nnunet': .*epochs must be a positive"), ({"precision": "half"}, "precision must be one of")],
)  # fmt: skip
def test_what_cannot_work_is_refused(data: DataList, tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_arms(made(data, tmp_path / "out", "nnunet", "none", options=options))


def test_arms_can_be_built(data: DataList, tmp_path: Path) -> None:
    check_arms(made(data, tmp_path / "out", "nnunet", "da5", "joint_policy", "bilevel/flip", "random"))


class Prepared:
    """What nnU-Net was to prepare; nothing is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cases: list[set[str]] = []
        self.small: Any = None
        self.unlabelled: list[tuple[set[str], str]] = []
        heard = self

        def prepare(self: Experiment, datalist: DataList, cases: Any, *, small: Any, **given: Any) -> None:
            heard.cases.append({c.name for c in cases})
            heard.small = small
            self.preprocessed.mkdir(parents=True)
            (self.preprocessed / "prepared").touch()

        def unlabelled(
            self: Experiment, cases: Any, channels: int, configuration: str, names: Any, **given: Any
        ) -> None:
            heard.unlabelled.append(({c.name for c in cases}, configuration))
            folder = self.unlabelled(configuration, names)
            folder.mkdir(parents=True)
            (folder / "content.txt").write_text(
                "".join(c.images[0].read_bytes().decode("latin-1") for c in cases), "latin-1"
            )

        monkeypatch.setattr(Experiment, "prepare", prepare)
        monkeypatch.setattr(Experiment, "prepare_unlabelled", unlabelled)


def test_data_are_prepared_once(data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Prepared(monkeypatch)
    own = made(data, tmp_path / "out", "none", "task_driven", unlabelled_cases=2)
    place = Place(data.folder, own.folder, "cpu")
    for _ in range(2):
        prepare_nnunet(own, place)
    assert heard.cases == [{*own.parts.pool, *own.parts.validation}]
    assert heard.small == small_of(SMALL)
    assert heard.unlabelled == [(set(own.parts.unlabelled), "small")]
    assert {f.name for f in (own.folder / "nnunet").iterdir()} == {"preprocessed", "unlabelled"}  # no claim is left


def test_a_training_learns_from_the_unlabelled_images_that_it_names(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from those that another call of the command, which then was stopped, has preprocessed."""
    Heard(monkeypatch)
    heard = Prepared(monkeypatch)
    plans = {}
    for content in ("those of A", "those of B"):
        folder = tmp_path / content
        folder.mkdir()
        (folder / "image.nii.gz").write_text(content)
        own = Setting(host="nnunet", options=SMALL, test_cases=2, validation_cases=1)
        plans[content] = plan(
            data, tmp_path / "out", own, arms=("none", "task_driven"), counts=(3,), seeds=(0,), unlabelled=folder
        )
    first, second = plans.values()
    prepare_nnunet(first, Place(data.folder, first.folder, "cpu"))
    cell, work = begun(second, 1)
    with pytest.raises(CheckpointError, match="unlabelled images were not preprocessed"):
        work.train()
    prepare_nnunet(second, Place(data.folder, second.folder, "cpu"))
    assert (len(heard.cases), len(heard.unlabelled)) == (1, 2)
    work.train()
    view = second.place(cell).run / "preprocessed" / "Dataset900_compare"
    assert (view / "content.txt").read_text() == "those of B"
    assert not os.path.isabs(os.readlink(view / "content.txt"))
    plain, work = begun(second, 0)
    work.train()
    assert not (second.place(plain).run / "preprocessed" / "Dataset900_compare" / "content.txt").exists()


def test_who_was_away_while_preparing_leaves_it_to_the_other(
    data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the claim over; this one stops, waits, and goes on with what the other one has made."""
    monkeypatch.setattr(Claim, "take", partial(Claim.take, heartbeat=0.02))
    monkeypatch.setattr("monai_autoaug.evaluation.comparison.comparing.POLL", 0.02)
    own = made(data, tmp_path / "out", "nnunet", "none")
    calls: list[bool] = []

    def prepare(self: Experiment, *given: Any, stop: threading.Event, **more: Any) -> None:
        (self.folder / "claim.2").write_text('{"machine": "elsewhere", "process": 1}')
        calls.append(stop.wait(20))

        def other() -> None:
            time.sleep(0.2)
            self.preprocessed.mkdir(parents=True)
            (self.preprocessed / "prepared").touch()
            (self.folder / "claim.2").unlink()

        threading.Thread(target=other).start()
        raise AutoAugError("another process has taken that over")

    monkeypatch.setattr(Experiment, "prepare", prepare)
    prepare_nnunet(own, Place(data.folder, own.folder, "cpu"))
    assert calls == [True]
    assert {f.name for f in (own.folder / "nnunet").iterdir()} == {"preprocessed"}


def test_why_data_could_not_be_prepared(data: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = made(data, tmp_path / "out", "nnunet", "none")

    def prepare(self: Experiment, *given: Any, **more: Any) -> None:
        raise AutoAugError("nnU-Net could not plan")

    monkeypatch.setattr(Experiment, "prepare", prepare)
    with pytest.raises(AutoAugError, match="could not plan"):
        prepare_nnunet(own, Place(data.folder, own.folder, "cpu"))
    assert list((own.folder / "nnunet").iterdir()) == []


@pytest.mark.long
def test_all_of_it(data: DataList, tmp_path: Path) -> None:
    """nnU-Net plans, trains and predicts; two arms of a few iterations, one of which learns from unlabelled images."""
    options = SMALL | {"epochs": 3}  # a phase each
    own = made(data, tmp_path / "out", "nnunet-no-gamma", "task_driven:width=4:base_augmentation=none", options=options,
               unlabelled_cases=1)  # fmt: skip
    summary, failed = compare(own, Place(data.folder, own.folder, "cpu", 0))
    assert failed == {}
    assert (summary.done, summary.total) == (2, 2)
    for row in summary.rows:
        assert row.metrics["dice"].mean is not None
        assert row.training_seconds is not None
        assert row.iterations is not None
    for cell in own.cells():
        folder: CellFolder = own.place(cell)
        _, result = folder.read()
        assert result["inference"]["cases"] == 2
        assert result["warnings"] == []
        assert result["peak_memory"]["host_mib"] > 100
