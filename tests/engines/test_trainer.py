# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The trainer is MONAI's own with method "none", fires MONAI's events, and honours or refuses every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from monai.utils import set_determinism
from torch import nn

from monai_autoaug.engines import AutoAugTrainer

SIZE = (12, 8, 10)


def network() -> nn.Module:
    return UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm="batch", dropout=0.1)


def items(count: int = 5) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    meta = {"affine": torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))}
    made = []
    for n in range(count):
        image = torch.randn(1, *SIZE, generator=generator)
        label = (image > 0.3).float() + (image > 1).float()
        here = meta | {"filename_or_obj": f"case_{n}"}
        made.append({"image": MetaTensor(image, meta=here), "label": MetaTensor(label, meta=here)})
    return made


def transforms() -> Compose:
    return Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])


def loader(**options: Any) -> DataLoader:
    return DataLoader(CacheDataset(items(), transforms(), progress=False), **({"batch_size": 2, "shuffle": True} | options))


def train(kind: Callable[..., Any], *, epochs: int = 2, sgd: bool = True, **options: Any) -> tuple[list[float], nn.Module]:
    """Losses of every iteration and the trained network."""
    set_determinism(seed=5)
    net = network()
    optimizer = (
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if sgd
        else torch.optim.AdamW(net.parameters(), lr=0.01)
    )
    losses: list[float] = []
    loss_function = options.pop("loss_function", DiceCELoss(to_onehot_y=True, softmax=True))
    trainer = kind(
        torch.device("cpu"), epochs, options.pop("data", None) or loader(), net, optimizer, loss_function,
        postprocessing=None, **options,
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    trainer.run()
    set_determinism(seed=None)
    return losses, net


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sgd": False},
        {"accumulation_steps": 2},
        {"accumulation_steps": 3, "sgd": False},
        {"epoch_length": 2},
        {"amp": True},
        {"loss_function": DiceLoss(to_onehot_y=True, softmax=True, reduction="none", batch=True)},
    ],
    ids=str,
)
def test_none_is_supervised_trainer_step_by_step(options: dict[str, Any]) -> None:
    theirs, their_network = train(SupervisedTrainer, **options)
    ours, our_network = train(AutoAugTrainer, method="none", **options)
    assert len(ours) == len(theirs) > 3
    assert ours == theirs
    for mine, other in zip(our_network.state_dict().values(), their_network.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def events_and_outputs(kind: Callable[..., Any], **options: Any) -> list[tuple[str, Any]]:
    """Every event of a run, with the types of what is in the engine's output by then."""
    seen: list[tuple[str, Any]] = []
    net = network()
    trainer = kind(
        "cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), DiceCELoss(to_onehot_y=True, softmax=True),
        **options,
    )  # fmt: skip

    def note(engine: Any, name: str) -> None:
        output = engine.state.output
        rows = output if isinstance(output, list) else [output]
        seen.append((name, [{str(k): type(v).__name__ for k, v in row.items() if v is not None} for row in rows]))

    for event in [*IterationEvents, Events.ITERATION_COMPLETED]:
        trainer.add_event_handler(event, note, event.name)
    trainer.run()
    return seen


def test_none_fires_monai_events_with_monai_output() -> None:
    ours = events_and_outputs(AutoAugTrainer, method="none")
    theirs = events_and_outputs(SupervisedTrainer)
    assert [name for name, _ in ours[:5]] == [
        "FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED", "ITERATION_COMPLETED",
    ]  # fmt: skip
    for _, rows in theirs:  # the core computes with plain tensors, so the loss is one too; all else is the same
        for row in rows:
            if row.get("loss") == "MetaTensor":
                row["loss"] = "Tensor"
    assert ours == theirs
