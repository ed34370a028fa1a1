# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of the MONAI host share: a small network, labelled volumes with metadata, a training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from monai.utils import set_determinism
from torch import nn

from monai_autoaug import methods
from monai_autoaug.engines import AutoAugTrainer, figures

SIZE = (12, 8, 10)


def loss() -> DiceCELoss:
    return DiceCELoss(to_onehot_y=True, softmax=True)


def network() -> nn.Module:
    return UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm="batch", dropout=0.1)


def items(count: int = 5, *, channel_axis: bool = True) -> list[dict[str, Any]]:
    """Images and labels with metadata as MONAI's readers leave it, in batches a tensor for each entry."""
    generator = torch.Generator().manual_seed(3)
    meta = {"affine": torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))}
    made = []
    for n in range(count):
        image = torch.randn(1, *SIZE, generator=generator)
        label = (image > 0.3).float() + (image > 1).float()
        here = meta | {"filename_or_obj": f"case_{n}"}
        if channel_axis:
            here["original_channel_dim"] = float("nan")
        made.append({"image": MetaTensor(image, meta=here), "label": MetaTensor(label, meta=here)})
    return made


def transforms() -> Compose:
    return Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])


def loader(*, channel_axis: bool = True, **options: Any) -> DataLoader:
    dataset = CacheDataset(items(channel_axis=channel_axis), transforms(), progress=False)
    return DataLoader(dataset, **({"batch_size": 2, "shuffle": True} | options))


def train(
    kind: Callable[..., Any], *, epochs: int = 2, sgd: bool = True, **options: Any
) -> tuple[list[float], nn.Module]:
    """Losses of every iteration and the trained network."""
    set_determinism(seed=5)
    net = network()
    optimizer = (
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if sgd
        else torch.optim.AdamW(net.parameters(), lr=0.01)
    )
    losses: list[float] = []
    engine = kind(
        torch.device("cpu"), epochs, options.pop("data", loader)(), net, optimizer,
        options.pop("loss_function", None) or loss(), **options,
    )  # fmt: skip
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    engine.run()
    set_determinism(seed=None)
    return losses, net


def trainer(
    method: str = "adversarial", method_options: dict[str, Any] | None = None, **options: Any
) -> AutoAugTrainer:
    """A trainer with a prepared network, ready to run on the CPU; every player plays from the first step on."""
    if method in ("adversarial", "random"):
        method_options = {"warm_up": 0} | (method_options or {})
    net = options.pop("network", None) or network()
    net = methods.prepare(method, net, **(method_options or {}))
    data = options.pop("data", None)
    return AutoAugTrainer(
        "cpu", options.pop("max_epochs", 1), loader(batch_size=4) if data is None else data, net,
        options.pop("optimizer", None) or torch.optim.AdamW(net.parameters(), lr=0.01),
        options.pop("loss_function", None) or loss(), method=method, method_options=method_options, **options,
    )  # fmt: skip


def record(engine: AutoAugTrainer) -> list[dict[str, float]]:
    """Collect every scalar of every iteration while ``engine`` runs."""
    rows: list[dict[str, float]] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: rows.append(figures()(e.state.output)))
    return rows


def shown_steps(folder: Path, name: str) -> list[int]:
    """The steps of a scalar that TensorBoard shows."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return [event.step for event in events.EventAccumulator(str(folder)).Reload().Scalars(name)]
