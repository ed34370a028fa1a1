# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A finished policy in a new training, fixed or as its start: found, checked, kept in the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_joint_trainer import joint
from test_resume import final, same, stop_after

from monai_autoaug import policies
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet.options import Options
from monai_autoaug.policies import Laterality, TestTimePolicy, TrainingPolicy


def learned(**options: Any) -> TrainingPolicy:
    policy = TrainingPolicy.preset("nnunet", **options)
    with torch.no_grad():
        policy.logits += torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0))
    policy.constrain()
    return policy


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy beside which training is started, where no fold has been trained before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return policies.save(tmp_path / "policy.json", training=learned())


def given(tiny: Any, path: Any, learns: bool = True, **options: Any) -> Any:
    method = {"policy": str(path), "learn_training": learns, "test_time": learns}
    return joint(tiny, method_options=method, save_every=1, epochs=2, iterations_per_epoch=2, **options)


@pytest.mark.parametrize("learns", [True, False])
def test_a_training_begins_with_it_and_goes_on_without_its_file(tiny: Any, file: Path, learns: bool) -> None:
    whole = given(tiny, file, learns)
    whole.run_training()
    wanted = final(tiny, whole)
    kept = policies.load(Path(whole.output_folder) / "policy.json").training
    assert kept is not None
    assert torch.equal(kept.logits, learned().logits) != learns
    assert torch.equal(whole.method._start, learned().logits)
    for text in ((Path(whole.output_folder_base) / "plans.json").read_text(), str(wanted["init_args"])):
        assert "policy.json" in text
        assert str(file.parent) not in text
    assert str(file.parent) not in str(wanted["autoaug"]["options"])

    first = given(tiny, "policy.json", learns, fold=1)  # from the folder in which training is started
    first.fold = 0  # the same cases, another folder
    stop_after(first, 1)
    file.unlink()
    second = given(tiny, "policy.json", learns, fold=1, resume=True)
    second.fold = 0
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state"):
        same(got[key], wanted[key], key)
    same(got["autoaug"]["method"], wanted["autoaug"]["method"])
    shutil.rmtree(second.output_folder)


def test_its_views_are_the_start_too_and_are_kept(tiny: Any, tmp_path: Path) -> None:
    """Also where the file is gone; a preset that is asked for goes before."""
    views = TestTimePolicy.preset("uniform")
    with torch.no_grad():
        views.logits += torch.randn(views.logits.shape, generator=torch.Generator().manual_seed(1))
    file = policies.save(tmp_path / "policy.json", training=learned(), test_time=views)
    first = given(tiny, file, fold=3)
    first.initialize()
    start = {o.name: float(v) for o, v in zip(views.operations, views.logits, strict=True)}
    own = first.method.test_time
    assert [float(v) for v in own.logits] == [pytest.approx(start[o.name]) for o in own.operations]
    assert own.level == "patch"
    path = str(Path(first.output_folder) / "checkpoint_latest.pth")
    first.save_checkpoint(path)
    file.unlink()
    second = given(tiny, file, fold=3, resume=True)
    second.load_checkpoint(path)
    assert torch.equal(second.method.test_time.logits, own.logits)
    shutil.rmtree(first.output_folder)
    policies.save(file, training=learned(), test_time=views)
    method = {"policy": str(file), "test_time_preset": "nnunet"}
    other = joint(tiny, fold=3, method_options=method)
    other.initialize()
    assert [o.name for o in other.method.test_time.top(2)[0]] == ["identity", "flip_d"]


def test_a_continued_training_does_not_read_the_file(tiny: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been written anew, by the training that it is of."""
    first = given(tiny, file, fold=2)
    first.fold = 0
    stop_after(first, 1)
    path = str(Path(first.output_folder) / "checkpoint_latest.pth")
    policies.save(file, training=TrainingPolicy.preset("uniform"))
    given(tiny, file, fold=2, resume=True).load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"method_options: policy: '[0-9a-f]{16}' in the checkpoint, None"):
        joint(tiny, fold=2, resume=True, method_options={"learn_training": True}).load_checkpoint(path)
    # validation of a finished training needs its checkpoint only; a training that begins needs the file
    file.unlink()
    shutil.copy(path, Path(first.output_folder) / "checkpoint_final.pth")
    validating = given(tiny, file, fold=2)
    validating.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save_probabilities=False: None)
    validating.perform_actual_validation()
    with pytest.raises(ConfigError, match=r"policy\.json: can't be read"):
        given(tiny, file, fold=2).run_training()
    shutil.rmtree(first.output_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"missing\.json: can't be read .* begins at the folder in which training is started, /"),
        ({"test_time": TestTimePolicy.preset("nnunet")}, "holds no training policy; give another file"),
        ({"training": learned(spatial_dims=2)}, "it is of 2D patches, those of this configuration are 3D"),
        ({"training": learned(classes=("background", "a", "b"))}, "are background, a, b, the labels here are back"),
        ("{}", "field format: is no policy file"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_made(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    path = tmp_path / "policy.json"
    if isinstance(content, dict):
        policies.save(path, **content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        given(tiny, "missing.json" if content is None else path)
    assert not (tmp_path / "results").exists()
    with pytest.raises(ConfigError, match="must be the path of a policy.json"):
        joint(tiny, method_options={"policy": 3})


@pytest.mark.parametrize("classes", [("all",), ("background", "shell", "core")])
def test_policies_of_one_class_and_of_these_labels(tiny: Any, tmp_path: Path, classes: tuple[str, ...]) -> None:
    trainer = given(tiny, policies.save(tmp_path / "policy.json", training=learned(classes=classes)))
    trainer.initialize()
    assert trainer.method.training.classes == classes


def test_left_and_right_of_a_policy_are_those_of_the_arrays(tiny: Any, tmp_path: Path) -> None:
    """nnU-Net's arrays begin with the file's last axis: what was learned elsewhere may take another one for it."""
    here, elsewhere = (
        policies.save(tmp_path / f"{axis}.json", training=learned(laterality=Laterality(((1, 2),), axis=axis)))
        for axis in (2, 0)
    )
    trainer = given(tiny, here)
    trainer.initialize()
    for policy in trainer.method.policies().values():  # the views, too
        assert policy.laterality == Laterality(((1, 2),), axis=2)
    with pytest.raises(ConfigError, match="its laterality is .*axis=0.* here it is .*axis=2"):
        given(tiny, elsewhere).initialize()
    without = policies.save(tmp_path / "without.json", training=learned())
    with pytest.raises(ConfigError, match="its laterality is None, the option laterality says"):
        joint(tiny, method_options={"policy": str(without), "laterality": [[1, 2]]}).initialize()


def test_options_hold_the_name_of_the_file_only(tmp_path: Path) -> None:
    for path, written in ((tmp_path / "a.json", "a.json"), ("runs/a.json", "runs/a.json"), (Path("b.json"), "b.json")):
        options = Options(method="joint_policy", method_options={"policy": path})
        assert json.loads(json.dumps(options.as_dict()))["method_options"]["policy"] == written
