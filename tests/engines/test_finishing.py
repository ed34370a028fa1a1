# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a method does after the last step, in the MONAI host: before anything is saved, once, and again after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import items, network, trainer
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import policies
from monai_autoaug.data import PatchBatches, loader, read_datalist, write_phantom
from monai_autoaug.engines import AutoAugTrainer, PolicyLogger, PolicySaver, TrainingCheckpoint, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.methods.comparisons import comparison
from monai_autoaug.methods.late_views import LateViews

METHOD: dict[str, Any] = {"learn_training": False, "views": 3, "views_after": 4, "meta_batch": 2}
LATE: dict[str, Any] = {"method": "joint_policy", "method_options": METHOD, "epochs": 2, "iterations": 2}


class Killed(Exception):
    """The process ends here."""


def patches(stream: str) -> Any:
    volumes = [i | {"case": str(n)} for n, i in enumerate(items())]
    return loader(
        PatchBatches(volumes, patch_size=(8, 8, 8), batch_size=2, seed=7, num_classes=3, length=12, stream=stream)
    )


def engine_run(
    folder: Path, *, resumed: bool = False, heard: Callable[[int, int], None] | None = None
) -> AutoAugTrainer:
    """Three epochs of two steps, with all handlers of a bundle."""
    torch.manual_seed(99 if resumed else 0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    handlers = [
        TrainingCheckpoint(folder / "run.pt", {"model": net, "optimizer": optimizer}, resume=resumed),
        PolicyLogger(folder / "policy.jsonl"), PolicySaver(folder / "policy.json", interval=1),
    ]  # fmt: skip
    engine = trainer(
        "joint_policy", METHOD, data=patches("train"), meta_data_loader=patches("meta"), network=net,
        optimizer=optimizer, epoch_length=2, max_epochs=3, train_handlers=handlers,
    )  # fmt: skip
    engine.heard = heard
    engine.run()
    return engine


def views(engine: AutoAugTrainer) -> torch.Tensor:
    logits: Any = engine.method.policies()["test_time"].logits
    return logits.detach()


def test_handlers_save_what_was_learned_after_the_last_step(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    engine = engine_run(tmp_path, heard=lambda *told: heard.append(told))
    assert heard == [(k, 4) for k in range(1, 5)]
    assert set(engine.finished) == {"view_loss", "identity_loss", "views_gain"}
    assert engine.finished.items() <= engine.state.metrics.items()
    saved = policies.load(tmp_path / "policy.json").test_time
    assert saved is not None
    assert torch.equal(saved.logits, views(engine))
    lines = [json.loads(line) for line in (tmp_path / "policy.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    found = [list(line["test_time"]["probabilities"].values()) for line in lines]
    assert found[0] == found[1] != found[2]
    assert found[2] == pytest.approx(saved.probabilities().tolist())


def test_killed_within_it_and_resumed(tmp_path: Path) -> None:
    """The checkpoint of the last epoch is there; from it all of it is done again, and then not once more."""
    whole = engine_run(tmp_path / "whole")

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        engine_run(tmp_path / "killed", heard=kill)
    again = engine_run(tmp_path / "killed", resumed=True)
    assert again.state.iteration == 6
    assert torch.equal(views(again), views(whole))
    assert (tmp_path / "killed/policy.json").read_bytes() == (tmp_path / "whole/policy.json").read_bytes()
    heard: list[int] = []
    finished = engine_run(tmp_path / "killed", resumed=True, heard=lambda done, total: heard.append(done))
    assert not heard
    assert torch.equal(views(finished), views(whole))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=7, size=20)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """Every batch of a run: its stream, and the cases of its patches."""
    seen: list[tuple[str, set[str]]] = []
    cut = PatchBatches.__getitem__

    def note(self: PatchBatches, number: int) -> Any:
        batch = cut(self, number)
        if batch.case[0].startswith("phantom"):  # not the rehearsal
            seen.append((self.stream, set(batch.case)))
        return batch

    monkeypatch.setattr(PatchBatches, "__getitem__", note)
    return seen


@pytest.mark.parametrize("meta_split", ["fixed", "resampled"])
def test_a_run_that_is_stopped_within_it_or_after_it(
    data: Path, tmp_path: Path, drawn: list[tuple[str, set[str]]], meta_split: str
) -> None:
    given = LATE | {"meta_cases": 2, "meta_split": meta_split}
    whole = train(options(data, tmp_path / "whole", **given))
    assert [stream for stream, _ in drawn if stream == "meta"] == ["meta"] * 4
    last = set().union(*(cases for stream, cases in drawn if stream == "meta"))
    assert len(last) <= 2
    # resampled cases are those of the last epoch, in which they didn't train
    assert not last & set().union(*(cases for stream, cases in drawn[-6:] if stream == "train"))
    for name, listener in (("views", stop_at(2, "views")), ("predicting", stop_at(1, "predicting"))):
        with pytest.raises(KeyboardInterrupt):
            train(options(data, tmp_path / name, **given), listener=listener)
        heard: list[str] = []
        run = resume(tmp_path / name, listener=lambda p, heard=heard: heard.append(p.stage))  # type: ignore[misc]
        assert ("views" in heard) == (name == "views")
        assert "training" not in heard
        assert run.policy.read_bytes() == whole.policy.read_bytes()
        assert rows(run) == rows(whole)
        assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(whole).values(), strict=True))
        told = [json.loads(r.summary.read_text())["after_training"] for r in (run, whole)]
        assert told[0] == told[1]
        assert set(told[0]) == {"view_loss", "identity_loss", "views_gain"}


def test_what_cases_that_are_set_apart_are_for(data: Path, tmp_path: Path, drawn: list[tuple[str, set[str]]]) -> None:
    """Fine-tuning ends on them; a fair comparison leaves them alone; the views of a preset are deployed as they are."""
    split: dict[str, Any] = {"method": "joint_policy", "meta_cases": 2, "epochs": 1, "iterations": 4}
    runs: dict[str, Run] = {}
    for name, more in (("fine_tuning", {"fine_tune": 0.5}), ("heuristic_tea", {})):
        drawn.clear()
        runs[name] = train(options(data, tmp_path / name, **split, method_options=comparison(name, **more)))
        parts = json.loads(runs[name].config.read_text())["split"]
        assert [len(parts[part]) for part in ("train", "meta", "validation")] == [3, 2, 2]
        meta = [cases for stream, cases in drawn if stream == "meta"]
        assert len(meta) == (2 if name == "fine_tuning" else 0)
        assert all(cases <= set(parts["meta"]) for cases in meta)
    assert policies.load(runs["fine_tuning"].policy).test_time is None
    kept = policies.load(runs["heuristic_tea"].policy).test_time
    assert kept is not None
    size = json.loads(runs["heuristic_tea"].config.read_text())["patch_size"]
    start = policies.TestTimePolicy.preset("nnunet", level="patch", patch_size=size)
    assert torch.equal(kept.logits, start.logits)


def test_trying_the_options_out_makes_one_update(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal is a run in miniature, whatever ``views_after`` says."""
    made: list[int] = []
    learn = LateViews.learn

    def spied(self: LateViews, batches: Any, steps: int, updates: int, tell: Any) -> dict[str, float]:
        made.append(updates)
        return learn(self, batches, steps, updates, tell)

    monkeypatch.setattr(LateViews, "learn", spied)
    rehearse(options(data, tmp_path / "run", **LATE), read_datalist(data))
    assert made == [1]
