# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What nnUNetTrainerAutoAug does when nnU-Net's loop is through, and what it deploys of paper 002's comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from test_resume import Killed, final, same

from monai_autoaug import policies
from monai_autoaug.methods.comparisons import comparison
from monai_autoaug.nnunet import launcher, test_time
from monai_autoaug.nnunet.finishing import finish
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug as Joint

LATE: dict[str, Any] = {
    "epochs": 2, "method_options": {"learn_training": False, "views": 2, "views_after": 4, "meta_batch": 2},
}  # fmt: skip


def make(dataset: Any, fold: int, *, resume: bool = False, **options: Any) -> tuple[Any, list[str]]:
    """A trainer of the first fold's cases in another folder, and what it prints."""
    trainer = dataset.trainer(Joint, fold=fold, resume=resume, **options)
    trainer.fold, said = 0, []
    say = trainer.print_to_log_file
    trainer.print_to_log_file = lambda *words, **more: (said.append(" ".join(map(str, words))), say(*words, **more))
    return trainer, said


def stop_in(trainer: Any, update: int) -> None:
    """Train until so many updates have been made after the last step."""
    say = trainer.print_to_log_file

    def stop(*words: Any, **more: Any) -> None:
        say(*words, **more)
        if f"After training: {update} of" in str(words[0]):
            raise Killed

    trainer.print_to_log_file = stop
    with pytest.raises(Killed):
        trainer.run_training()


@pytest.mark.parametrize("split", ["fixed", "resampled"])
def test_a_run_that_is_killed_after_its_last_step(tiny: Any, split: str) -> None:
    """It makes no step again, but all that comes after them, with the same result; and then not once more."""
    options, fold = LATE | {"meta_split": split, "meta_cases": 2}, {"fixed": 10, "resampled": 20}[split]
    whole, said = make(tiny, fold, **options)
    whole.run_training()
    wanted, policy = final(tiny, whole), (Path(whole.output_folder) / "policy.json").read_bytes()
    assert wanted["autoaug"]["streams"]["meta"] == 4
    assert sum("of 4 updates of the test-time policy" in line for line in said) == 4
    assert any("autoaug after training" in line and "views_gain" in line for line in said)
    kept = test_time.views_of(whole.task.network).policy
    assert kept is not None
    assert torch.equal(kept.logits, whole.method.test_time.logits)

    first, _ = make(tiny, fold + 1, **options)
    stop_in(first, 2)
    folder = Path(first.output_folder)
    assert not (folder / "checkpoint_final.pth").exists()
    second, said = make(tiny, fold + 1, resume=True, **options)
    second.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert second.current_epoch == 2
    steps = second.method.steps
    second.run_training()
    assert second.method.steps == steps == 4
    got = final(tiny, second)
    for key in ("network_weights", "optimizer_state", "current_epoch"):
        same(got[key], wanted[key], key)
    for key in ("method", "streams"):
        same(got["autoaug"][key], wanted["autoaug"][key], key)
    assert (folder / "policy.json").read_bytes() == policy
    assert not (folder / "checkpoint_latest.pth").exists()

    third, said = make(tiny, fold + 1, resume=True, **options)
    third.load_checkpoint(str(folder / "checkpoint_final.pth"))
    third.run_training()
    same(final(tiny, third)["network_weights"], wanted["network_weights"])
    assert not any("After training" in line for line in said)


def test_what_fails_within_it_leaves_the_trainer_as_it_was(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = make(tiny, 60, **LATE)
    trainer.initialize()
    trainer.batches, trainer.current_epoch = None, 2
    monkeypatch.setattr(trainer.method, "finish", lambda batches: (_ for _ in ()).throw(Killed))
    before = trainer.task.notify
    with pytest.raises(Killed):
        finish(trainer)
    assert trainer.task.notify == before
    assert trainer.current_epoch == 2


def test_late_views_are_those_of_the_final_network(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were learned for it; the best network, another one, predicts without them, and one is told."""
    monkeypatch.setenv("nnUNet_extTrainer", str(launcher.ext_path()))
    trainer, said = make(tiny, 70, **LATE)
    trainer.run_training()
    assert any("are in checkpoint_final.pth; checkpoint_best.pth, another network, has none" in line for line in said)
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("best", "final"):
        predictor = nnUNetPredictor(use_gaussian=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (70,), f"checkpoint_{name}.pth")
        found[name] = test_time.views_of(predictor.network).policy, predictor.allowed_mirroring_axes
        assert bool(torch.isfinite(predictor.predict_logits_from_preprocessed_data(image)).all())
    assert found["best"] == (None, None)  # nor was there any mirroring in training
    policy, axes = found["final"]
    assert torch.equal(policy.logits, trainer.method.test_time.logits)
    assert axes is None


def test_fixed_views_are_deployed_and_others_not_before_they_are_learned(tiny: Any) -> None:
    trainer, _ = make(tiny, 30, method_options=comparison("heuristic_tea"))
    trainer.run_training()
    kept = policies.load(Path(trainer.output_folder) / "policy.json")
    assert kept.test_time is not None
    assert torch.equal(kept.test_time.logits, trainer.method.test_time.logits)
    deployed = test_time.views_of(trainer.task.network).policy
    assert deployed is not None
    assert [o.name for o in deployed.top(8)[0]][:4] == ["identity", "flip_d", "flip_h", "flip_w"]
    assert final(tiny, trainer)["inference_allowed_mirroring_axes"] is None  # nnU-Net's would multiply them
    assert trainer._streams == {}
    late, _ = make(tiny, 40, **LATE)
    late.initialize()
    late.save_checkpoint(str(Path(late.output_folder) / "checkpoint_latest.pth"))
    assert test_time.views_of(late.task.network).policy is None


def test_fine_tuning_ends_on_the_cases_that_are_set_apart(tiny: Any) -> None:
    trainer, _ = make(tiny, 50, epochs=2, meta_cases=2, method_options=comparison("fine_tuning", fine_tune=0.5))
    seen: list[tuple[str, ...]] = []
    trainer.initialize()
    trainer.task.notify = lambda event, values: seen.append(values["batch"].case) if event == "forward" else None
    trainer.run_training()
    meta = set(trainer._split.meta(0))
    apart = [set(cases) <= meta for cases in seen]
    assert apart == [False, False, True, True]
    assert not any(set(cases) & meta for cases in seen[:2])
    assert {len(cases) for cases in seen} == {2}
