# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The trainer takes any method: one that a user writes has players, figures, a second stream and checkpoints too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import loader, loss, network, record, trainer
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.engines import AutoAugTrainer, TrainingCheckpoint
from monai_autoaug.methods import Batches, Method, Player, Task


class Brightness(Method):
    """Learns one number that is added to the image, from the first and the second stream in turn."""

    name: ClassVar[str] = "brightness"
    needs: ClassVar[tuple[str, ...]] = ("train", "real")

    def __init__(self, task: Task, *, seed: int = 0) -> None:
        super().__init__(task, seed=seed)
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(()))])
        self.players["shift"] = Player(self.shift, torch.optim.SGD(self.shift.parameters(), lr=0.1))

    def step(self, batches: Batches) -> dict[str, float]:
        """One step."""
        batch: Batch = batches.next("train" if self.steps % 2 == 0 else "real").cropped()
        noise = torch.randn(len(batch.image), 1, 1, 1, 1, generator=self.generator)
        output = self.task.forward(batch.image + self.shift[0] + 0.01 * noise)
        self.task.notify("forward", {"batch": batch, "output": output})
        loss = self.task.losses(output, batch.label, batch.valid).mean()
        self.task.notify("loss", {"loss": loss})
        self.descend(loss)
        return {"loss": float(loss.detach()), "shift": float(self.shift[0].detach())}

    def on_epoch(self, epoch: int) -> dict[str, float]:
        """The number so far."""
        return {"shift_of_epoch": float(self.shift[0].detach())}


def run(epochs: int, path: Path, *, resume: bool = False) -> tuple[list[dict[str, float]], AutoAugTrainer]:
    torch.manual_seed(1)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    handler = TrainingCheckpoint(path, {"model": net, "optimizer": optimizer}, resume=resume)
    engine = AutoAugTrainer("cpu", epochs, loader(batch_size=4), net, optimizer, loss(), method=Brightness,
                            train_handlers=[handler])  # fmt: skip
    rows = record(engine)
    engine.run()
    return rows, engine


def test_a_users_method_trains_logs_and_resumes(tmp_path: Path) -> None:
    rows, engine = run(3, tmp_path / "whole.pt")
    assert rows[0]["shift"] != rows[-1]["shift"]
    assert engine.state.metrics["shift_of_epoch"] == rows[-1]["shift"]
    run(1, tmp_path / "parts.pt")
    after, resumed = run(3, tmp_path / "parts.pt", resume=True)
    assert after == rows[2:]
    assert resumed.method.state_dict()["players"]["shift"]["module"]["0"] == rows[-1]["shift"]


def test_magnitudes_of_all_augmenters_are_logged() -> None:
    engine = trainer(max_epochs=1)
    engine.run()
    told = set(engine.state.metrics)
    assert told >= {"affine_rotation", "affine_translation", "affine_displacement_mean"}
    assert told >= {"deformation_displacement_mean", "deformation_displacement_max", "deformation_jacobian_minimum"}
    assert "appearance_additive_mean" in told
    assert told >= {f"{kind}_{what}" for kind in ("affine", "deformation", "appearance")
                    for what in ("noise_share", "saturation", "loss_ratio")}  # fmt: skip


def halved(data: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return data["image"] * 0.5, data["label"], (), {}


@pytest.mark.parametrize("method", ["random", "adversarial"])
def test_another_prepare_batch_is_honoured_by_learned_augmentation(method: str) -> None:
    """What it returns is what is transformed, in both streams."""
    engine = trainer(method, prepare_batch=halved)
    given, seen = [], []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: given.append(e.state.batch["image"].as_tensor()))
    engine.add_event_handler(IterationEvents.LOSS_COMPLETED, lambda e: seen.append(engine.batches.current.image))
    engine.run()
    assert torch.equal(seen[0], given[0] * 0.5)
    if method == "adversarial":
        real = engine.streams["real"].next().image
        assert float(real.std()) < 0.7 < float(given[0].std())


def test_every_player_waits_for_the_last_micro_batch() -> None:
    engine = trainer(data=loader(batch_size=1), accumulation_steps=2)
    steps: dict[str, list[int]] = {}
    optimizers = {"network": engine.optimizer} | {n: p.optimizer for n, p in engine.method.players.items()}
    for name, optimizer in optimizers.items():
        steps[name] = []
        optimizer.register_step_post_hook(lambda *_, name=name: steps[name].append(engine.state.iteration))
    engine.run()
    assert steps == {name: [2, 4, 5] for name in ("network", "generators", "discriminator")}
