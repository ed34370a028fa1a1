# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Images without labels in nnU-Net: preprocessed as labelled ones are, audited, streamed, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_resume import final, same, stop_after

from monai_autoaug import methods
from monai_autoaug.cli import main
from monai_autoaug.errors import AutoAugWarning, CheckpointError, ConfigError, DataError
from monai_autoaug.methods import Batches, Method
from monai_autoaug.nnunet.labelled import LabelledCases
from monai_autoaug.nnunet.trainers import with_autoaug
from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled

SEEN: list[Any] = []


class Watching(Method):
    """The plain step, whose gradient feels the unlabelled images."""

    name: ClassVar[str] = "watching"
    needs = ("train", "unlabelled")

    def step(self, batches: Batches) -> dict[str, float]:
        batch, further = batches.next("train").cropped(), batches.next("unlabelled")
        SEEN.append(further)
        loss = self.task.losses(self.task.forward(batch.image, batch.extra), batch.label, batch.valid).mean()
        self.descend(loss * (1 + further.image.mean().abs()))
        return {"loss": float(loss.detach())}


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "watching", f"{__name__}:Watching")
    SEEN.clear()


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set with an ignore label, and three further images of another spacing beside it."""
    made = make_dataset(labels={"background": 0, "shell": 1, "core": 2, "ignore": 3}, ignore=3)
    folder = tmp_path_factory.mktemp("further")
    write_raw(folder, labels={}, cases=3, shape=(20, 24, 20), spacing=(1.2, 1.2, 1.2))
    made.further = folder / "imagesTr"
    return made


OPTIONS = {"method": "watching", "epochs": 2, "iterations_per_epoch": 2, "save_every": 1, "batch_size": 3}


def trainer(dataset: Any, fold: int = 0, **given: Any) -> Any:
    made = dataset.trainer(with_autoaug(nnUNetTrainer, "adversarial"), fold=fold, **(OPTIONS | given))
    made.fold = 0
    return made


def test_before_anything_is_preprocessed_the_command_is_told(dataset: Any) -> None:
    with pytest.raises(ConfigError, match=rf"preprocess-unlabelled {dataset.name} 3d_fullres FOLDER"):
        trainer(dataset).run_training()


def test_they_are_preprocessed_as_labelled_images_are(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same image comes out bit for bit, whether it has a label or not."""
    labelled = dataset.raw / dataset.name / "imagesTr" / "case_0_0000.nii.gz"
    folder = tmp_path / "images"
    shutil.copytree(dataset.further, folder)
    shutil.copy(labelled, folder / "again_0000.nii.gz")
    with monkeypatch.context() as patch:
        patch.setattr(LabelledCases, "check", lambda *given: None)  # which refuses it
        done = preprocess_unlabelled(str(dataset.number), "3d_fullres", folder)
    assert done.parent == dataset.preprocessed / dataset.name
    own = dataset.preprocessed / dataset.name / "nnUNetPlans_3d_fullres" / "case_0.b2nd"
    again = [np.asarray(blosc2.open(str(f))[:]) for f in (own, done / "again.b2nd")]
    assert np.array_equal(*again)
    other = np.asarray(blosc2.open(str(done / "case_1.b2nd"))[:])
    assert other.shape == (1, 24, 29, 24)  # 20 voxels of 1.2 mm are 24 of 1 mm
    note = json.loads(done.with_name(done.name + ".json").read_text())
    assert note["cases"] == ["again", "case_0", "case_1", "case_2"]
    with pytest.raises(ConfigError, match="give --overwrite to replace them"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder)
    told: list[tuple[int, int]] = []
    preprocess_unlabelled(
        dataset.name, "3d_fullres", dataset.further, overwrite=True, progress=lambda *n: told.append(n)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not (done / "again.b2nd").exists()
    assert [p.name for p in done.parent.glob("*.partial")] == []


def test_what_cannot_be_used_is_named(dataset: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(dataset.further, folder)
    broken = folder / "case_1_0000.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    given: dict[str, Any] = {"overwrite": True}
    with pytest.raises(DataError, match=r"case_1_0000\.nii\.gz"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, **given)
    broken.write_bytes(whole)
    image = nib.load(dataset.further / "case_2_0000.nii.gz")
    two = np.stack([image.get_fdata(dtype=np.float32)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(two, image.affine), folder / "two_0000.nii.gz")
    with pytest.raises(DataError, match=r"two_0000\.nii\.gz: holds several volumes"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, **given)
    (folder / "two_0000.nii.gz").rename(folder / "two.nii")
    with pytest.raises(DataError, match=r"two\.nii"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, **given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NIfTI file"):
        preprocess_unlabelled(dataset.name, "3d_fullres", tmp_path / "empty", **given)
    with pytest.raises(ConfigError, match="have no configuration '2e'; they have"):
        preprocess_unlabelled(dataset.name, "2e", folder)
    with pytest.raises(ConfigError, match="plan and preprocess the data set first"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, plans="others")
    with pytest.raises(ConfigError, match="nnUNetPlans_2d holds no preprocessed case: first preprocess the data set"):
        preprocess_unlabelled(dataset.name, "2d", folder)
    for name in ("987", "Hippocampus"):
        with pytest.raises(ConfigError, match=f"there is no data set '{name}'"):
            preprocess_unlabelled(name, "3d_fullres", folder)


@pytest.mark.parametrize("raw", [True, False], ids=["raw data there", "raw data gone"])
def test_a_labelled_image_is_known_whatever_its_file(
    dataset: Any, tmp_path: Path, raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In some fold it is a validation case. What was there before stays, and nothing half made remains."""
    done = preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    before = {f.name: f.read_bytes() for f in done.iterdir()}
    folder = tmp_path / "images"
    shutil.copytree(dataset.further, folder)
    labelled = nib.load(dataset.raw / dataset.name / "imagesTr" / "case_2_0000.nii.gz")
    voxels = labelled.get_fdata(dtype=np.float64)  # in another format
    nib.save(nib.Nifti1Image(voxels, labelled.affine), folder / "copy_0000.nii.gz")
    if not raw:
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"copy_0000\.nii\.gz.*holds with a label.*the image of case case_2"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, overwrite=True)
    assert {f.name: f.read_bytes() for f in done.iterdir()} == before
    assert not list(done.parent.glob("*.partial"))


def test_an_image_that_is_turned_otherwise_is_refused(dataset: Any, tmp_path: Path) -> None:
    """nnU-Net takes voxels as they are stored, so the discriminator would see patients upside down."""
    image = nib.load(dataset.further / "case_0_0000.nii.gz")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("LPI"))
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(image.affine)
    folder = tmp_path / "images"
    folder.mkdir()
    nib.save(turned, folder / "turned_0000.nii.gz")
    with pytest.raises(DataError, match=r"turned_0000\.nii\.gz.*expected RAS, came \w{3}. To do: reorient it"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, overwrite=True)


def test_processes_side_by_side_make_the_same(dataset: Any, tmp_path: Path, forked_pools: Callable[..., Any]) -> None:
    made = []
    told: list[tuple[int, int]] = []
    for count in (1, 2):
        with forked_pools():
            done = preprocess_unlabelled(
                dataset.name, "3d_fullres", dataset.further, overwrite=True, processes=count,
                progress=lambda *n: told.append(n),
            )  # fmt: skip
        made.append([np.asarray(blosc2.open(str(f))[:]) for f in sorted(done.glob("*.b2nd"))])
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    assert len(made[0]) == len(made[1]) == 6  # images and labels
    assert all(np.array_equal(a, b) for a, b in zip(*made, strict=True))
    folder = tmp_path / "images"
    shutil.copytree(dataset.further, folder)
    labelled = dataset.raw / dataset.name / "imagesTr" / "case_2_0000.nii.gz"
    shutil.copy(labelled, folder / "a_0000.nii.gz")  # the first one: others wait behind it
    with forked_pools(), pytest.raises(DataError, match="holds with a label"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, overwrite=True, processes=2)
    assert not list(done.parent.glob("*.partial"))


def test_a_doubt_is_told_once_and_does_not_stop_it(dataset: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(dataset.further, folder)
    shutil.copy(folder / "case_0_0000.nii.gz", folder / "twice_0000.nii.gz")
    told: list[str] = []
    preprocess_unlabelled(dataset.name, "3d_fullres", folder, overwrite=True, warn=told.append)
    assert len(told) == 1
    assert "holds the same image as another case" in told[0]
    with pytest.warns(AutoAugWarning, match="holds the same image as another case"):
        preprocess_unlabelled(dataset.name, "3d_fullres", folder, overwrite=True)


def test_a_command_that_is_killed_leaves_nothing_that_is_believed(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither cases of which the note is another's, nor a folder that stands in the way of the next command."""
    done = preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    with pytest.raises(ConfigError, match="first run: monai-autoaug nnunet preprocess-unlabelled"):
        trainer(dataset).run_training()
    done.mkdir(exist_ok=True)  # as a kill before the note is written leaves it
    preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further)


def test_a_trainer_streams_them_and_resumes(dataset: Any) -> None:
    preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    whole = trainer(dataset)
    whole.run_training()
    batch = SEEN[-1]
    assert set(batch.case) <= {"case_0", "case_1", "case_2"}
    assert batch.margin == whole.layout.margin
    size = [p + 2 * m for p, m in zip(whole.configuration_manager.patch_size, batch.margin, strict=True)]
    assert batch.image.shape == (3, 1, *size)
    assert float(batch.label.abs().sum()) == float(batch.valid.sum()) == 0
    assert batch.label.shape[1] == 3
    wanted = final(dataset, whole)
    assert wanted["autoaug"]["streams"]["unlabelled"] == 4
    first = trainer(dataset, fold=1)
    stop_after(first, 1)
    second = trainer(dataset, fold=1, resume=True)
    path = str(Path(first.output_folder) / "checkpoint_latest.pth")
    second.load_checkpoint(path)
    second.run_training()
    same(final(dataset, second)["network_weights"], wanted["network_weights"])

    others = Path(dataset.further).parent / "others"  # of the same names
    shutil.copytree(dataset.further, others)
    (others / "case_0_0000.nii.gz").rename(others / "x.nii.gz")
    (others / "case_1_0000.nii.gz").rename(others / "case_0_0000.nii.gz")
    (others / "x.nii.gz").rename(others / "case_1_0000.nii.gz")
    preprocess_unlabelled(dataset.name, "3d_fullres", others, overwrite=True)
    with pytest.raises(CheckpointError, match="unlabelled: "):
        trainer(dataset, fold=1, resume=True).load_checkpoint(path.replace("checkpoint_latest", "checkpoint_final"))

    fewer = Path(dataset.further).parent / "fewer"
    fewer.mkdir()
    shutil.copy(dataset.further / "case_0_0000.nii.gz", fewer)
    preprocess_unlabelled(dataset.name, "3d_fullres", fewer, overwrite=True)
    path = path.replace("checkpoint_latest", "checkpoint_final")
    with pytest.raises(CheckpointError, match="unlabelled: "):
        trainer(dataset, fold=1, resume=True).load_checkpoint(path)


def test_images_of_other_plans_are_refused(dataset: Any) -> None:
    folder = preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    file = folder.with_name(folder.name + ".json")
    note = json.loads(file.read_text())
    file.write_text(json.dumps(note | {"fingerprint": "other"}))
    with pytest.raises(ConfigError, match=r"with other plans; run again: .* --overwrite"):
        trainer(dataset).run_training()


def test_the_command_says_where_they_are(dataset: Any) -> None:
    shutil.rmtree(dataset.preprocessed / dataset.name / "nnUNetPlans_3d_fullres_unlabelled", ignore_errors=True)
    arguments = ["nnunet", "preprocess-unlabelled", str(dataset.number), "3d_fullres", str(dataset.further)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().endswith("nnUNetPlans_3d_fullres_unlabelled")
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert "give --overwrite" in again.output


def test_labels_of_unlabelled_patches_stay_unknown_with_another_margin(dataset: Any) -> None:
    preprocess_unlabelled(dataset.name, "3d_fullres", dataset.further, overwrite=True)
    made = trainer(dataset, epochs=1, margin=0)
    made.run_training()
    assert all(torch.equal(b.valid, torch.zeros_like(b.valid)) for b in SEEN)
