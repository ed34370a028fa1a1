# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Handlers that write what has become of the policies: exact numbers, whole files, no line twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_helpers import shown_steps, trainer
from ignite.engine import Engine, Events

from monai_autoaug import policies
from monai_autoaug.engines import AugmenterSaver, PolicyLogger, PolicySaver
from monai_autoaug.engines.handlers import shared_writer
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import Evidence, Seen, TestTimePolicy, TrainingPolicy


class Learning(Engine):
    """An engine of which the handlers see what they see of an `AutoAugTrainer`; its policies move each epoch."""

    def __init__(self, **learned: Any) -> None:
        super().__init__(lambda engine, batch: None)
        self.learned, self.seed = learned, 3
        self.finished: dict[str, float] = {}
        self.seen: Seen | None = None
        self.method = SimpleNamespace(name="joint_policy", policies=lambda: self.learned, seen=lambda: self.seen)
        self.add_event_handler(Events.EPOCH_STARTED, self.move)

    def move(self) -> None:
        generator = torch.Generator().manual_seed(self.state.epoch)
        for policy in self.learned.values():
            with torch.no_grad():
                policy.logits.normal_(generator=generator)


def both() -> dict[str, Any]:
    return {"training": TrainingPolicy.preset("nnunet"), "test_time": TestTimePolicy.preset("nnunet", z=4)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_hold_the_policies_exactly(tmp_path: Path) -> None:
    engine = Learning(**both())
    PolicyLogger(tmp_path / "logs" / "policy.jsonl", interval=2).attach(engine)
    engine.run([0], max_epochs=4)
    rows = lines(tmp_path / "logs" / "policy.jsonl")
    assert [row["epoch"] for row in rows] == [2, 4]
    training, views = engine.learned["training"], engine.learned["test_time"]
    assert list(rows[1]["training"]) == ["background", "foreground"]
    for name in training.classes:
        logged = rows[1]["training"][name]
        for number, (cascade, p) in enumerate(zip(training.cascades, training.probabilities(name), strict=True)):
            assert list(logged[cascade.name]["probabilities"]) == [o.name for o in cascade.operations]
            assert list(logged[cascade.name]["probabilities"].values()) == p.tolist()
            entropy = float(training.entropy().detach()[training.classes.index(name), number])
            assert logged[cascade.name]["entropy"] == entropy
    logged = rows[1]["test_time"]
    assert list(logged["probabilities"].values()) == views.probabilities().tolist()
    assert logged["top"] == [o.name for o in views.top(4)[0]]
    assert logged["weights"] == views.top(4)[1].tolist()
    entropy = torch.distributions.Categorical(logits=views.logits.detach()).entropy() / torch.tensor(84.0).log()
    assert logged["entropy"] == pytest.approx(float(entropy), rel=1e-5)


def test_a_uniform_test_time_policy_has_entropy_1(tmp_path: Path) -> None:
    engine = Learning(test_time=TestTimePolicy.preset("uniform"))
    engine.remove_event_handler(engine.move, Events.EPOCH_STARTED)
    PolicyLogger(tmp_path / "policy.jsonl").attach(engine)
    engine.run([0], max_epochs=1)
    (row,) = lines(tmp_path / "policy.jsonl")
    assert set(row) == {"epoch", "test_time"}
    assert row["test_time"]["entropy"] == pytest.approx(1, abs=1e-6)


def test_a_resumed_run_has_no_line_twice(tmp_path: Path) -> None:
    path = tmp_path / "policy.jsonl"
    for first, last in ((0, 3), (2, 5)):
        engine = Learning(**both())
        PolicyLogger(path).attach(engine)
        state = {"epoch_length": 1, "max_epochs": last, "iteration": first}
        if first:
            engine.load_state_dict(state)
        engine.run([0], max_epochs=last)
    assert [row["epoch"] for row in lines(path)] == [1, 2, 3, 4, 5]


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    seen: dict[tuple[str, int], float] = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, epoch: seen.update({(name, epoch): value}))
    engine = Learning(**both())
    PolicyLogger(tmp_path / "policy.jsonl", summary_writer=writer).attach(engine)
    engine.run([0], max_epochs=2)
    row = lines(tmp_path / "policy.jsonl")[1]
    assert seen["policy/foreground/gamma/identity", 2] == \
        row["training"]["foreground"]["gamma"]["probabilities"]["identity"]  # fmt: skip
    assert seen["policy_entropy/background/scale", 2] == row["training"]["background"]["scale"]["entropy"]
    assert seen["policy/views/flip_d", 2] == row["test_time"]["probabilities"]["flip_d"]
    assert len(seen) == 2 * (2 * (62 + 15) + 84 + 1)
    with pytest.raises(ConfigError, match="summary_writer or log_dir"):
        PolicyLogger("x", summary_writer=writer, log_dir=tmp_path)


@pytest.mark.parametrize("alone", [True, False])
def test_tensorboard_shows_an_epoch_that_is_trained_again_once(tmp_path: Path, alone: bool) -> None:
    """In a folder of ours alone; in another one, where steps may be iterations, what others have written stays."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    board = tmp_path / "board"
    if not alone:
        with writer(str(board)) as made:
            for iteration in range(1, 7):
                made.add_scalar("loss", 0.5, iteration)
    for first, last in ((1, 3), (2, 5)):
        engine = Learning(test_time=TestTimePolicy.preset("nnunet", z=4))
        PolicyLogger(tmp_path / "policy.jsonl", log_dir=board).attach(engine)
        engine.add_event_handler(  # another handler, which does not purge what the first one has just written
            Events.EPOCH_COMPLETED, lambda e: shared_writer(e, board).add_scalar("other", 1.0, e.state.epoch)
        )
        if first > 1:
            engine.load_state_dict({"epoch_length": 1, "max_epochs": last, "iteration": first - 1})
        engine.run([0], max_epochs=last)
    expected = [1, 2, 3, 4, 5] if alone else [1, 2, 3, 2, 3, 4, 5]
    assert shown_steps(board, "policy/views/flip_d") == shown_steps(board, "other") == expected
    if not alone:
        assert shown_steps(board, "loss") == [1, 2, 3, 4, 5, 6]


def test_the_policy_file_says_where_it_comes_from(tmp_path: Path) -> None:
    engine = Learning(**both())
    path = tmp_path / "policy.json"
    epochs: list[Any] = []
    start = engine.learned["training"].logits.clone()
    engine.seen = Evidence(engine.learned["training"]).seen(start)
    PolicySaver(path, interval=2, provenance={"dataset": "phantom"}).attach(engine)
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: epochs.append(policies.load(path).provenance["epoch"] if path.exists() else 0)
    )
    engine.run([0], max_epochs=3)
    assert epochs == [0, 2, 2]
    found = policies.load(path)
    assert {"method": "joint_policy", "seed": 3, "epoch": 3, "dataset": "phantom"}.items() <= found.provenance.items()
    assert found.training is not None
    assert torch.equal(found.training.logits, engine.learned["training"].logits)
    assert found.seen is not None
    expected = torch.cat([p.softmax(1) for p in start.double().split([len(c) for c in found.training.cascades], 1)], 1)
    torch.testing.assert_close(found.seen.start, expected, rtol=0, atol=1e-6)
    assert not found.seen.decided().any()


def test_methods_without_policies_write_nothing_and_leave_no_other_training_s_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("of a training whose network is written over")
    handlers = [PolicySaver(tmp_path / "policy.json"), PolicyLogger(tmp_path / "policy.jsonl")]
    trainer("none", train_handlers=handlers).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [AugmenterSaver, PolicySaver, PolicyLogger])
def test_handlers_belong_to_an_engine_with_a_method(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} belongs to an AutoAugTrainer, not to a Engine"):
        kind("x").attach(Engine(lambda engine, batch: None))
    with pytest.raises(ConfigError, match="interval must be a number of epochs"):
        kind("x", interval=-1)
