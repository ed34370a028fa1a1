# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's folders for many trainings on parts of one data set."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fault_helpers import alive

from monai_autoaug import writing
from monai_autoaug.data import Case, DataList, read_datalist, write_phantom
from monai_autoaug.errors import AutoAugError, ConfigError
from monai_autoaug.nnunet import experiment
from monai_autoaug.nnunet.experiment import (
    _TENDED,
    DATASET,
    Experiment,
    _run,
    small_configuration,
    write_images,
    write_raw,
)


def test_raw_data_are_links_and_a_description(tmp_path: Path) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=3, size=16))
    folder = write_raw(tmp_path / "raw" / "Dataset900_a", data, data.training[:2])
    images = sorted((folder / "imagesTr").iterdir())
    assert [f.name for f in images] == [f"{c.name}_0000.nii.gz" for c in data.training[:2]]
    assert all(f.is_symlink() for f in images)
    content = json.loads((folder / "dataset.json").read_text())
    assert (content["numTraining"], content["labels"], content["file_ending"]) == (2, data.labels, ".nii.gz")
    write_raw(folder, data, data.training[2:])
    assert len(list((folder / "labelsTr").iterdir())) == 1  # what was there is gone


def test_regions_and_an_ignore_label_are_told(tmp_path: Path) -> None:
    case = Case("a", (tmp_path / "a.nii",), tmp_path / "label.nii")
    for file in (*case.images, case.label):
        assert file is not None
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), file)
    data = DataList(tmp_path, "nnunet", ("MRI",), {"background": 0, "whole": (1, 2), "core": 2}, (1, 2), 3, (case,))
    content = json.loads((write_raw(tmp_path / "raw", data, data.training) / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert content["regions_class_order"] == [1, 2]
    assert content["file_ending"] == ".nii"
    with pytest.raises(ConfigError, match="a has no label"):
        write_raw(tmp_path / "raw", data, [Case("a", case.images)])


def test_channels_of_one_file_become_files(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    nib.save(nib.Nifti1Image(values, np.diag([1, 2, 3, 1.0])), tmp_path / "a.nii.gz")
    case = Case("a", (tmp_path / "a.nii.gz",))
    write_images(tmp_path / "images", case, 2)
    for channel in range(2):
        image = nib.load(tmp_path / "images" / f"a_{channel:04d}.nii.gz")
        assert np.array_equal(image.get_fdata(), values[..., channel])
        assert np.allclose(image.affine, np.diag([1, 2, 3, 1.0]))
    write_images(tmp_path / "copied", case, 1, link=False)
    assert not (tmp_path / "copied" / "a_0000.nii.gz").is_symlink()


def test_files_that_end_differently_are_refused(tmp_path: Path) -> None:
    case = Case("a", (tmp_path / "a.nii.gz",), tmp_path / "label.nii")
    for file in (*case.images, case.label):
        assert file is not None
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), file)
    with pytest.raises(ConfigError, match="end alike"):
        write_raw(tmp_path / "raw", DataList(tmp_path, "nnunet", ("MRI",), {"background": 0, "a": 1}), [case])


@pytest.mark.parametrize("blocks", ["n_conv_per_stage", "n_blocks_per_stage"])
def test_a_small_configuration(blocks: str) -> None:
    planned = {"architecture": {"network_class_name": "net", "arch_kwargs": {blocks: [2] * 5, "n_stages": 5}}}
    found = small_configuration(planned, features=[8, 16, 32], patch_size=(24, 24, 16), batch_size=3)
    arguments = found["architecture"]["arch_kwargs"]
    assert (arguments["n_stages"], arguments["features_per_stage"], arguments[blocks]) == (3, [8, 16, 32], [2, 2, 2])
    assert (found["inherits_from"], found["patch_size"], found["batch_size"]) == ("3d_fullres", [24, 24, 16], 3)
    assert planned["architecture"]["arch_kwargs"]["n_stages"] == 5  # untouched


def test_views_share_the_data_and_have_splits_of_their_own(tmp_path: Path) -> None:
    own = Experiment(tmp_path / "nnunet", "Task 04_b")
    assert own.name == f"Dataset{DATASET}_Task04b"
    (own.preprocessed / "cases").mkdir(parents=True)
    (own.preprocessed / "plans.json").write_text("{}")
    (own.preprocessed / "splits_final.json").write_text("[]")
    assert not own.prepared
    for number in range(2):
        home = tmp_path / "cells" / str(number)
        own.view(home, ["c", "a"], [f"v{number}"])
        own.view(home, ["c", "a"], [f"v{number}"])  # again, as a resumed training does
        folder = home / "preprocessed" / own.name
        assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["a", "c"], "val": [f"v{number}"]}]
        assert (folder / "cases").is_dir()
        assert not os.path.isabs(os.readlink(folder / "plans.json"))  # the folder may lie elsewhere on other machines
    assert (own.preprocessed / "splits_final.json").read_text() == "[]"


def test_nnunet_finds_the_folders_within_a_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "before")
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", "mine.yaml")
    own = Experiment(tmp_path / "nnunet", "a")
    with own.environment(tmp_path / "cell", EXTRA_OF_TEST="1"):
        assert os.environ["nnUNet_results"] == str(tmp_path / "cell" / "results")
        assert os.environ["nnUNet_raw"] == str(tmp_path / "nnunet" / "raw")
        assert (os.environ["EXTRA_OF_TEST"], "MONAI_AUTOAUG_CONFIG" in os.environ) == ("1", False)
        assert (tmp_path / "cell" / "preprocessed").is_dir()
    assert (os.environ["nnUNet_results"], os.environ["MONAI_AUTOAUG_CONFIG"]) == ("before", "mine.yaml")
    assert "EXTRA_OF_TEST" not in os.environ


def phantom(folder: Path) -> DataList:
    return read_datalist(write_phantom(folder, cases=2, size=16))


def planning(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None] = lambda: None) -> list[Path]:
    """nnU-Net's planning, which takes long and writes a file; where it did."""
    folders: list[Path] = []

    def run(command: object, log: Path, stop: object = None) -> None:
        folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset900_a"
        folder.mkdir()
        folders.append(folder)
        number = len(folders)
        (folder / "half.txt").write_text(str(number))
        if number == 1:
            meanwhile()
        assert (folder / "half.txt").read_text() == str(number)  # nobody else writes here
        (folder / "whole.txt").write_text(str(number))

    monkeypatch.setattr(experiment, "_run", run)
    return folders


def test_of_two_that_prepare_neither_harms_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was away, the other one took over, and the first one wakes while or after that works."""
    data, own = phantom(tmp_path / "data"), Experiment(tmp_path / "nnunet", "a")
    own.preprocessed.mkdir(parents=True)  # of one that was killed
    (own.preprocessed / "old.txt").touch()
    folders = planning(monkeypatch, lambda: own.prepare(data, data.training))
    own.prepare(data, data.training)
    assert len(set(folders)) == 2
    assert {f.name for f in own.preprocessed.iterdir()} == {"half.txt", "whole.txt", "prepared"}
    assert (own.preprocessed / "whole.txt").read_text() == "2"  # the one that ended first
    assert [f.name for f in own.folder.iterdir()] == ["preprocessed"]


def test_who_is_to_stop_puts_nothing_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, own, stop = phantom(tmp_path / "data"), Experiment(tmp_path / "nnunet", "a"), threading.Event()
    planning(monkeypatch, stop.set)
    with pytest.raises(AutoAugError, match="another process has taken that over"):
        own.prepare(data, data.training, stop=stop)
    assert not own.prepared
    assert list(own.folder.iterdir()) == []
    own.folder.joinpath("preparing_killed").mkdir()
    own.tidy()
    assert list(own.folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="groups of processes")
def test_what_runs_is_ended_with_all_that_it_has_begun(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(AutoAugError, match="another process has taken that over"):
        _run(["bash", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"], tmp_path / "plan.txt", stop)
    assert time.monotonic() - began < 15
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_unlabelled_images_are_kept_apart_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, case = Experiment(tmp_path / "nnunet", "a"), Case("unlabelled/x", (tmp_path / "x.nii.gz",))
    case.images[0].write_text("image")
    own.preprocessed.mkdir(parents=True)
    (own.preprocessed / "plans.json").write_text("{}")

    def preprocess(dataset: str, configuration: str, folder: Path, *, plans: str, progress: Any) -> Path:
        home = Path(os.environ["nnUNet_preprocessed"]) / own.name
        assert (home / "plans.json").read_text() == "{}"
        found = home / "data_unlabelled"
        found.mkdir()
        (found / "files.txt").write_text(" ".join(f.name for f in folder.iterdir()))
        (home / "data_unlabelled.json").write_text("{}")
        progress(1, 1)
        return found

    monkeypatch.setattr("monai_autoaug.nnunet.unlabelled.preprocess_unlabelled", preprocess)
    for names in (["digest a"], ["digest b"], ["digest a"]):
        own.prepare_unlabelled([case], 1, "3d_fullres", names)
    folders = {own.unlabelled(c, names) for c in ("3d_fullres", "small") for names in (["digest a"], ["digest b"])}
    assert len(folders) == 4
    assert {f for f in folders if f.exists()} == {own.unlabelled("3d_fullres", [f"digest {x}"]) for x in "ab"}
    folder = own.unlabelled("3d_fullres", ["digest a"])
    assert {f.name for f in folder.iterdir()} == {"data_unlabelled", "data_unlabelled.json"}
    assert (folder / "data_unlabelled" / "files.txt").read_text() == "unlabelled_x_0000.nii.gz"
    assert [f.name for f in own.preprocessed.iterdir()] == ["plans.json"]
    stop = threading.Event()
    stop.set()
    with pytest.raises(AutoAugError, match="another process has taken that over"):
        own.prepare_unlabelled([case], 1, "small", ["digest a"], stop=stop)
    assert {f.name for f in own.folder.iterdir()} == {"preprocessed", "unlabelled"}


def test_why_nnunet_could_not_plan(tmp_path: Path) -> None:
    with pytest.raises(AutoAugError, match="could not plan .* plan.txt ends with\nboom"):
        _run(["bash", "-c", "echo boom; exit 3"], tmp_path / "plan.txt")
    with pytest.raises(AutoAugError, match=r"killed by signal 9 while it planned.*fewer --workers.*ends with\nboom"):
        _run(["bash", "-c", "echo boom; kill -9 $$"], tmp_path / "plan.txt")
    with pytest.raises(AutoAugError, match=r"killed by signal 11 while it planned and preprocessed the data set; the"):
        _run(["bash", "-c", "kill -11 $$"], tmp_path / "plan.txt")


def test_channels_of_one_file_become_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file would be taken for a whole one by the next command."""
    data = read_datalist(write_phantom(tmp_path / "data", cases=1, size=16, channels=2))

    def half(file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_to_disk", half)
        with pytest.raises(OSError, match="No space left"):
            write_images(tmp_path / "images", data.training[0], 2)
    assert list((tmp_path / "images").iterdir()) == []
    write_images(tmp_path / "images", data.training[0], 2)
    whole = np.asarray(nib.load(data.training[0].images[0]).dataobj)
    for channel in (0, 1):
        file = tmp_path / "images" / f"{data.training[0].name}_{channel:04d}.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), whole[..., channel])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_planning_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    """Kill -9 of a comparison: nobody is left that writes where the next command prepares the data anew."""
    code = _TENDED + "print('up', flush=True)\nimport time\ntime.sleep(600)"
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, "
        "start_new_session=True)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    assert alive(orphan)
    process.kill()
    process.communicate()
    ends(orphan)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_ends_planning_and_what_it_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    plain = subprocess.Popen.wait

    def wait(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", plain)
        while not begun.exists() or not begun.read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        _run(["bash", "-c", f"sleep 600 & echo $! > {begun}; wait"], tmp_path / "plan.txt")
    ends(int(begun.read_text()))


def ends(pid: int) -> None:
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
