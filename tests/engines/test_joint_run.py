# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies learned in a whole run: from which cases, the same after a resume, and applied to images."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import policies
from monai_autoaug.data import PatchBatches, loader, write_phantom
from monai_autoaug.engines import TrainOptions, building, predict, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.progress import Progress
from monai_autoaug.errors import AutoAugWarning, CheckpointError, ConfigError, DataError
from monai_autoaug.policies import drawing

METHOD: dict[str, Any] = {"warm_up": 0, "update_every": 2, "meta_batch": 4, "views": 3, "pool": 2}
JOINT: dict[str, Any] = {"method": "joint_policy", "method_options": METHOD, "epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=7, size=20)


@pytest.fixture(scope="module")
def heard() -> list[Progress]:
    """What the listener of `run` hears."""
    return []


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory, heard: list[Progress]) -> Run:
    return train(options(data, tmp_path_factory.mktemp("run") / "run", **JOINT, meta_cases=2), listener=heard.append)


def logits(run: Run) -> list[torch.Tensor]:
    found = policies.load(run.policy)
    assert found.training is not None
    assert found.test_time is not None
    return [found.training.logits, found.test_time.logits]


def split_of(run: Run) -> dict[str, set[str]]:
    return {part: set(names) for part, names in json.loads(run.config.read_text())["split"].items()}


def test_patches_are_augmented_from_label_values(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    faster = drawing.apply_to_values
    monkeypatch.setattr(drawing, "apply_to_values", lambda *given, **more: seen.append(1) or faster(*given, **more))
    chosen = options(data, tmp_path / "run", **JOINT | {"epochs": 1}, meta_cases=2)
    train(chosen)
    assert len(seen) == chosen.iterations


def test_progress_tells_how_undecided_the_policies_are(run: Run, heard: list[Progress]) -> None:
    ends = [p.ended for p in heard if p.ended is not None]
    assert len(ends) == 2
    for ended, row in zip(ends, rows(run), strict=True):
        assert ended.entropy == pytest.approx(
            {name: row[f"entropy_{name}"] for name in ("background", "foreground", "views")}, rel=1e-4
        )
        assert 0 < min(ended.entropy.values()) <= 1


def test_a_run_leaves_its_policies(run: Run, data: Path) -> None:
    found = policies.load(run.policy)
    data_fingerprint = hashlib.sha256(run.preprocessing.read_bytes()).hexdigest()[:16]
    expected = {"method": "joint_policy", "seed": 0, "epoch": 2, "data_fingerprint": data_fingerprint}
    assert expected.items() <= found.provenance.items()
    assert data.name not in run.policy.read_text()  # no path, and no name
    start = policies.TrainingPolicy.preset("nnunet")
    assert not torch.equal(logits(run)[0], start.logits)
    assert found.seen is not None
    for row, name in zip(found.seen.start, start.classes, strict=True):
        torch.testing.assert_close(row.float(), torch.cat(start.probabilities(name)).detach(), rtol=0, atol=1e-6)
    assert not found.seen.decided().any()  # by so few samples
    assert json.loads(run.summary.read_text())["no_ops"] == []  # its residual units go around the norms
    parts = split_of(run)
    assert [len(parts[p]) for p in ("train", "meta", "validation")] == [3, 2, 2]
    assert len(set().union(*parts.values())) == 7
    summary = json.loads(run.summary.read_text())
    assert summary["cases"] == {"train": 3, "meta": 2, "validation": 2}
    assert any("updated 3 times only" in w for w in summary["warnings"])
    last = rows(run)[-1]
    assert last["policy_updates"] == 3
    assert {"meta_loss", "view_loss", "entropy_views", "entropy_foreground_gamma"} <= set(last)


@pytest.mark.parametrize("meta_split", ["fixed", "resampled"])
@pytest.mark.parametrize("step", [1, 4])  # before the first checkpoint, and after it
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(data: Path, tmp_path: Path, meta_split: str, step: int) -> None:
    given = JOINT | {"meta_cases": 2, "meta_split": meta_split, "validation_interval": 1}
    whole = train(options(data, tmp_path / "whole", **given))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(step))
    stopped = Run(tmp_path / "stopped")
    assert stopped.policy.exists() == stopped.checkpoint.exists() == (step == 4)
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert stopped.policy.read_bytes() == whole.policy.read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


@pytest.mark.parametrize(
    ("batch_size", "changes", "waits"),
    [(8, {"pool": 4}, False), (4, {"pool": 8, "paired": False}, True)],  # as many as pool x classes; and by choice
    ids=["enough", "unpaired"],
)
def test_a_run_whose_samples_were_not_compared_goes_on_too(
    data: Path, tmp_path: Path, batch_size: int, changes: dict[str, Any], waits: bool
) -> None:
    """What their unaugmented patches are worth is not known, which a checkpoint holds as something finite."""
    given = JOINT | {"method_options": METHOD | changes, "batch_size": batch_size, "meta_cases": 2}
    whole = train(options(data, tmp_path / "whole", **given))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(4))
    stopped = Run(tmp_path / "stopped")
    pool = stopped.load_checkpoint()["autoaug"]["method"]["learning"]["pool"]
    assert not waits or (len(pool["known"]) > 0 and not pool["known"].any())
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert stopped.policy.read_bytes() == whole.policy.read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))


def test_workers_change_nothing_and_a_run_says_what_it_will_do(data: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    one, two = (
        train(
            options(data, tmp_path / str(n), **JOINT | {"iterations": 2}, meta_split="resampled", workers=n),
            listener=heard.append,
        )
        for n in (0, 2)
    )
    assert rows(one) == rows(two)
    notes = [progress.note for progress in heard if progress.note is not None]
    assert len(notes) == 2 * 4  # once a run
    assert "to learn policies from (meta-validation)" in notes[0]
    assert "U = 2 times in all" in notes[1]
    assert "learning rate x U" in notes[2]


def test_who_is_drawn_from(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta-validation patches come from their cases alone, training patches from none of these; none validate."""
    seen: dict[tuple[str, int], set[str]] = {}
    cut = PatchBatches.__getitem__

    def note(self: PatchBatches, number: int) -> Any:
        batch = cut(self, number)
        if batch.case[0].startswith("phantom"):  # not the rehearsal
            seen.setdefault((self.stream, number // 6), set()).update(batch.case)
        return batch

    monkeypatch.setattr(PatchBatches, "__getitem__", note)
    many = JOINT | {"iterations": 6, "epochs": 3, "method_options": METHOD | {"update_every": 1}}
    parts = split_of(train(options(data, tmp_path / "fixed", **many)))
    assert seen["meta", 0] <= parts["meta"]
    assert seen["train", 0] <= parts["train"]
    seen.clear()
    parts = split_of(train(options(data, tmp_path / "resampled", **many, meta_split="resampled", meta_cases=2)))
    assert parts["meta"] == set()
    assert len(parts["train"]) == 5
    for epoch in range(3):
        assert len(seen["meta", epoch]) <= 2
        assert not seen["meta", epoch] & seen["train", epoch]
    assert len({frozenset(seen["meta", e]) for e in range(3)}) > 1
    assert not set().union(*seen.values()) & parts["validation"]


def test_meta_patches_are_as_the_method_wants_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as it says, half of them about foreground, with the margin of training patches."""
    made: dict[str, PatchBatches] = {}
    monkeypatch.setattr(building, "loader", lambda b, **o: made.update({b.stream: b}) or loader(b, **o))
    given = {"patch_size": (8, 8, 8), "meta_cases": 2, "batch_size": 2}
    for method, wanted in ((METHOD | {"meta_batch": 6}, 6), ({k: METHOD[k] for k in ("warm_up", "views")}, 8)):
        train(options(data, tmp_path / str(wanted), **JOINT | given | {"method_options": method}))
        train_stream, meta = made["train"], made["meta"]
        assert (meta.batch_size, meta.foreground, len(meta.items)) == (wanted, 0.5, 2)
        assert meta.margin == train_stream.margin == (1, 1, 1)
        assert meta.patch_size == train_stream.patch_size
        assert [meta._forced(0, slot) for slot in range(wanted)] == [False] * (wanted // 2) + [True] * (wanted // 2)


def test_where_nothing_learns_no_case_is_set_apart(data: Path, tmp_path: Path) -> None:
    nothing = {"learn_training": False, "test_time": False}
    given = JOINT | {"epochs": 1, "iterations": 2, "method_options": METHOD | nothing}
    run = train(options(data, tmp_path / "fixed_policy", **given))
    assert [len(split_of(run)[part]) for part in ("train", "meta", "validation")] == [5, 0, 2]
    for name in nothing:
        half = TrainOptions("nowhere", "run", method="joint_policy", method_options=nothing | {name: True})
        assert half.meta_share == 0.25
    with pytest.raises(ConfigError, match="has no meta-validation cases that could be resampled"):
        TrainOptions("nowhere", "run", method="joint_policy", method_options=nothing, meta_split="resampled")


def test_other_parts_stay_whatever_is_set_apart(data: Path, tmp_path: Path, run: Run) -> None:
    """Validation cases and preprocessing are those of a run without meta-validation, so that runs can be compared."""
    plain = train(options(data, tmp_path / "plain", method="none", epochs=1))
    assert split_of(plain)["validation"] == split_of(run)["validation"]
    assert plain.preprocessing.read_text() == run.preprocessing.read_text()
    apart = train(options(data, tmp_path / "apart", method="none", epochs=1, meta_cases=2))
    assert split_of(apart) == split_of(run)  # another method on the same cases
    assert not apart.policy.exists()


def test_listed_cases_and_another_site(data: Path, tmp_path: Path, run: Run) -> None:
    parts = split_of(run)
    chosen = sorted(parts["train"])[:1]
    (tmp_path / "meta.txt").write_text("\n".join(chosen))
    listed = train(options(data, tmp_path / "listed", **JOINT, meta_list=tmp_path / "meta.txt"))
    assert split_of(listed)["meta"] == set(chosen)
    (tmp_path / "meta.json").write_text(json.dumps(sorted(parts["validation"])))
    with pytest.raises(ConfigError, match="validate in this split"):
        train(options(data, tmp_path / "bad", **JOINT, meta_list=tmp_path / "meta.json"))
    site = write_phantom(tmp_path / "site_b", cases=3, size=20, seed=5)
    other = train(options(data, tmp_path / "other", **JOINT, meta_list=site))
    assert split_of(other)["meta"] == {f"site_b/phantom_{i:03d}" for i in range(3)}
    assert len(split_of(other)["train"]) == 5
    assert json.loads(other.config.read_text())["options"]["meta_list"] == str(site)
    with pytest.raises(ConfigError, match="learns nothing from meta-validation"):
        train(options(data, tmp_path / "bad", method="none", meta_list=site))
    # an image of a validation case at the other site
    held = sorted(parts["validation"])[0]
    for kind in ("imagesTr", "labelsTr"):
        (site / kind / "phantom_001.nii.gz").write_bytes((data / kind / f"{held}.nii.gz").read_bytes())
    with pytest.raises(DataError, match="holds the same image as the"):
        train(options(data, tmp_path / "bad", **JOINT, meta_list=site))
    assert not (tmp_path / "bad").exists()


def test_operations_that_the_network_cannot_see_are_told(data: Path, tmp_path: Path) -> None:
    """Before instance norm factors change nothing."""
    dynunet = {"network": "dynunet", "network_options": {"channels": [4, 8, 8]}, "patch_size": (16, 16, 16)}
    one = train(options(data, tmp_path / "run", **JOINT | dynunet | {"epochs": 1, "iterations": 2}))
    factors = {f"brightness_multiply_{a}" for a in ("1.00_1.10", "1.10_1.20", "1.20_1.30")}
    assert set(json.loads(one.summary.read_text())["no_ops"]) == factors
    none = train(options(data, tmp_path / "none", method="none", epochs=1))
    assert "no_ops" not in json.loads(none.summary.read_text())


def test_a_run_is_not_resumed_with_other_meta_validation_cases(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "run", **JOINT), listener=stop_at(1))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["split"]["meta"] = config["split"]["meta"][1:]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no longer splits"):
        resume(tmp_path / "run")


def test_a_run_of_the_time_before_meta_validation_is_resumed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "run", method="none", epochs=1), listener=stop_at(1))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["split"]["meta"], config["meta_cases_of_an_epoch"]
    for name in ("meta_cases", "meta_split", "meta_list"):
        del config["options"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert resume(tmp_path / "run").summary.exists()


def test_predictions_average_the_learned_views(run: Run, data: Path, tmp_path: Path) -> None:
    image = data / "imagesTr" / "phantom_000.nii.gz"

    def voxels(name: str, **given: Any) -> Any:
        (file,) = predict(run.folder, image, tmp_path / f"{name}.nii.gz", device="cpu", **given)
        return np.asarray(nib.load(file).dataobj)

    learned, alone = voxels("learned"), voxels("alone", z=0)
    np.testing.assert_array_equal(learned, voxels("eight", z=8, average="logits"))
    assert (learned != alone).any()
    assert (voxels("probabilities", average="probabilities", z=3) != alone).any()
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (run.model, run.config, run.preprocessing):
        (plain / file.name).write_bytes(file.read_bytes())
    with pytest.warns(AutoAugWarning, match=r"policy.json: is not there, but this run .*as they are.*--z 0"):
        (file,) = predict(plain, image, tmp_path / "without.nii.gz", device="cpu")
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), alone)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AutoAugWarning)
        predict(plain, image, tmp_path / "meant.nii.gz", device="cpu", z=0)
    for given in ({"z": 4}, {"average": "logits"}):
        with pytest.raises(ConfigError, match="policy.json: is not there, .*put the file back"):
            predict(plain, image, tmp_path / "x", **given)  # type: ignore[arg-type]
    learned_from = policies.load(run.policy)
    policies.save(plain / "policy.json", training=learned_from.training)
    with pytest.warns(AutoAugWarning, match=r"policy.json: holds no views, but this run"):
        predict(plain, image, tmp_path / "half.nii.gz", device="cpu")
    (plain / "policy.json").unlink()
    config = json.loads((plain / "config.json").read_text())
    config["options"]["method_options"]["test_time"] = False
    (plain / "config.json").write_text(json.dumps(config))  # as if it had learned none
    for given, message in (({"z": 4}, "has learned no views"), ({"average": "logits"}, "has learned no views")):
        with pytest.raises(ConfigError, match=message):
            predict(plain, image, tmp_path / "x", **given)  # type: ignore[arg-type]
    for given, message in (({"z": 0, "average": "logits"}, "z is 0"), ({"z": 1000}, "z must be a number of views")):
        with pytest.raises(ConfigError, match=message):
            predict(run.folder, image, tmp_path / "x", **given)  # type: ignore[arg-type]
    for name in split_of(run)["validation"]:  # the run's own predictions are those that predict makes
        (file,) = predict(run.folder, data / "imagesTr" / f"{name}.nii.gz", tmp_path / f"v_{name}.nii.gz", device="cpu")
        written = nib.load(run.validation / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), np.asarray(written.dataobj))


@pytest.mark.parametrize("regions", [False, True])
def test_policies_by_label_regions_and_an_ignore_label(tmp_path: Path, regions: bool) -> None:
    data = write_phantom(tmp_path / "data", cases=5, size=20, layout="nnunet", regions=regions, ignore=True)
    given = JOINT | {"method_options": METHOD | {"classes": "labels"}, "epochs": 1}
    run = train(options(data, tmp_path / "run", **given))
    found = policies.load(run.policy)
    assert found.training is not None
    assert found.test_time is not None
    assert found.training.classes[0] == "background"
    assert len(found.training.classes) == 4
    assert found.test_time.regions == regions
    assert np.isfinite([r["loss"] for r in rows(run)]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_cases": 0, "method": "joint_policy"}, "meta_cases can't be 0"),
        ({"meta_cases": 1.5}, "meta_cases must be a number of cases, or a share below 1"),
        ({"meta_cases": -1}, "meta_cases must be at least 1"),
        ({"meta_split": "random"}, "meta_split must be fixed or resampled"),
        ({"meta_split": "resampled"}, "has no meta-validation cases that could be resampled"),
        ({"meta_cases": 2, "meta_list": "x"}, "give one of them"),
        ({"meta_list": "x", "meta_split": "resampled", "method": "joint_policy"}, "meta_list names them"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions("nowhere", "run", **changes)
    assert TrainOptions("nowhere", "run", method="joint_policy").meta_share == 0.25


def test_too_many_or_too_few_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training case is left: 7 cases, 2 of them for validation, 5 for meta"):
        train(options(data, tmp_path / "run", **JOINT, meta_cases=5))
    with pytest.raises(ConfigError, match=re.escape("the policy would never be updated: training has 6 steps")):
        train(options(data, tmp_path / "run", **JOINT | {"method_options": {"warm_up": 6}}))
    with pytest.raises(ConfigError, match="no cascade or operation is called blurr"):
        train(options(data, tmp_path / "run", **JOINT | {"method_options": METHOD | {"without": ["blurr"]}}))
    assert not (tmp_path / "run").exists()
