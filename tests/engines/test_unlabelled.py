# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Images without labels in the MONAI host: from a folder or the data list, audited, cut, streamed, resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import items, loader, loss, network
from monai.data import DataLoader
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import methods
from monai_autoaug.data import PatchBatches, read_datalist, write_phantom
from monai_autoaug.data import loader as patch_loader
from monai_autoaug.engines import AutoAugTrainer, TrainOptions, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import CheckpointError, ConfigError, DataError
from monai_autoaug.methods import Batches, Method

SEEN: list[Any] = []


class Watching(Method):
    """The plain step; its weights also feel the mean of the unlabelled images, so that these matter."""

    name: ClassVar[str] = "watching"
    needs = ("train", "unlabelled")

    def step(self, batches: Batches) -> dict[str, float]:
        batch, further = batches.next("train").cropped(), batches.next("unlabelled")
        SEEN.append(further)
        output = self.task.forward(batch.image, batch.extra)
        self.task.notify("forward", {"batch": batch, "output": output})
        loss = self.task.losses(output, batch.label, batch.valid).mean()
        self.task.notify("loss", {"loss": loss})
        self.descend(loss * (1 + further.image.mean().abs()))
        return {"loss": float(loss.detach()), "further": float(further.image.mean())}


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "watching", f"{__name__}:Watching")
    SEEN.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled cases, and three further images in a folder elsewhere."""
    root = tmp_path_factory.mktemp("data")
    labelled = write_phantom(root / "labelled", cases=5, size=20)
    other = write_phantom(root / "other", cases=3, size=20, seed=9)
    (root / "images").mkdir()
    for number, case in enumerate(read_datalist(other).training):
        shutil.copy(case.images[0], root / "images" / f"scan_{number}.nii.gz")
    return labelled


@pytest.fixture
def images(data: Path) -> Path:
    return data.parent / "images"


def test_a_run_streams_unlabelled_patches_and_goes_on_where_it_stopped(
    data: Path, images: Path, tmp_path: Path
) -> None:
    given = {"method": "watching", "unlabelled": images, "epochs": 2, "patch_size": (8, 8, 8)}
    whole = train(options(data, tmp_path / "whole", **given))
    config = json.loads(whole.config.read_text())
    assert config["unlabelled"] == [f"unlabelled/scan_{n}" for n in range(3)]
    assert json.loads(whole.summary.read_text())["cases"]["unlabelled"] == 3
    batch = SEEN[-1]
    assert set(batch.case) <= set(config["unlabelled"])
    assert batch.image.shape == (4, 1, *(8 + 2 * m for m in config["margin"]))  # margin and patch as in training
    assert float(batch.label.abs().sum()) == float(batch.valid.sum()) == 0
    assert batch.label.shape[1] == len(read_datalist(data).label_values)
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(5))
    stopped = Run(tmp_path / "stopped")
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


def test_other_images_than_at_the_start_are_not_resumed_with(data: Path, images: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(images, tmp_path / "images")
    given = {"method": "watching", "unlabelled": copy, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "run", **given), listener=stop_at(1))
    (copy / "scan_0.nii.gz").write_bytes((copy / "scan_1.nii.gz").read_bytes())
    with pytest.raises(CheckpointError, match=r"scan_0.nii.gz: expected .*, came .*\n.*put these files back"):
        resume(tmp_path / "run")
    (copy / "scan_0.nii.gz").unlink()
    with pytest.raises(CheckpointError, match="unlabelled images are no longer those"):
        resume(tmp_path / "run")


def test_the_data_list_may_name_them(data: Path, images: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    file = copy / "dataset.json"
    content = json.loads(file.read_text())
    shutil.copytree(images, copy / "more")
    content["unlabelled"] = ["more/scan_1.nii.gz", {"image": "more/scan_2.nii.gz"}]
    file.write_text(json.dumps(content))
    assert [c.name for c in read_datalist(copy).unlabelled] == ["unlabelled/scan_1", "unlabelled/scan_2"]
    run = train(options(copy, tmp_path / "run", method="watching", epochs=1))
    assert len(json.loads(run.config.read_text())["unlabelled"]) == 2
    content["unlabelled"] = {"a": "b"}
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match='no usable "unlabelled"'):
        read_datalist(copy)


def test_a_pair_of_folders_may_have_a_third(data: Path, images: Path, tmp_path: Path) -> None:
    cases = read_datalist(data).training
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for case in cases:
        assert case.label is not None
        shutil.copy(case.images[0], tmp_path / "images" / f"{case.name}.nii.gz")
        shutil.copy(case.label, tmp_path / "labels" / f"{case.name}.nii.gz")
    shutil.copytree(images, tmp_path / "unlabelled")
    found = read_datalist(tmp_path)
    assert (len(found.training), len(found.unlabelled)) == (5, 3)


def test_bad_files_are_named(data: Path, images: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(images, tmp_path / "images")
    broken = copy / "scan_1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"scan_1\.nii\.gz"):
        train(options(data, tmp_path / "run", method="watching", unlabelled=copy))
    for case in read_datalist(data).training:  # among them those that validate
        shutil.copy(case.images[0], copy / f"again_{case.name}.nii.gz")
    broken.unlink()
    with pytest.raises(
        DataError, match="is an unlabelled case that holds the same image as the validation case"
    ) as told:
        train(options(data, tmp_path / "run", method="watching", unlabelled=copy))
    assert "same image as the training case" not in str(told.value)
    with pytest.raises(DataError, match="is not a folder"):
        train(options(data, tmp_path / "run", method="watching", unlabelled=tmp_path / "nothing"))


def test_missing_and_superfluous_images_are_refused_at_once(data: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learns from unlabelled images.*--unlabelled"):
        train(options(data, tmp_path / "run", method="watching"))
    with pytest.raises(ConfigError, match="learns nothing from unlabelled images"):
        TrainOptions(data, tmp_path / "run", method="random", unlabelled=images)
    with pytest.raises(ConfigError, match="give their loader as unlabelled_data_loader"):
        engine()


def engine(**given: Any) -> AutoAugTrainer:
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return AutoAugTrainer("cpu", 1, loader(batch_size=2), net, optimizer, loss(), method="watching", **given)


def test_a_users_loader_needs_no_labels() -> None:
    rows_ = [{"image": item["image"]} for item in items(4)]
    engine(unlabelled_data_loader=DataLoader(rows_, batch_size=3, shuffle=True)).run()
    assert {len(batch.image) for batch in SEEN} <= {1, 3}
    assert all(float(b.label.abs().sum()) == 0 and float(b.valid.sum()) == 0 for b in SEEN)
    assert SEEN[0].label.shape[1] == 3
    assert SEEN[0].case[0].startswith("case_")


def test_patches_without_labels_lie_anywhere_and_know_nothing() -> None:
    volumes = [{"image": torch.rand(1, 12, 12, 12), "case": "a"}]
    batches = PatchBatches(volumes, patch_size=(6, 6, 6), batch_size=5, seed=0, num_classes=3, length=4, labelled=False,
                           stream="unlabelled", ignore_label=3)  # fmt: skip
    made = list(patch_loader(batches))
    assert made[0].label.shape == (5, 3, 6, 6, 6)
    assert all(float(b.label.sum()) == 0 for b in made)
    assert all(b.valid is not None and float(b.valid.sum()) == 0 for b in made)
    with pytest.raises(DataError, match="expected image and label"):
        PatchBatches(volumes, patch_size=(6, 6, 6), batch_size=1, seed=0, num_classes=3, length=1)[0]
