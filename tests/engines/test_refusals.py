# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What can't work with a learned augmentation is refused by name before anything has been trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_helpers import loader, loss, network, trainer
from monai.engines.utils import PrepareBatchExtraInput
from monai.inferers import PatchInferer, SlidingWindowInferer
from monai.losses import DiceLoss, NACLLoss
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from monai_autoaug import methods
from monai_autoaug.engines import AutoAugTrainer
from monai_autoaug.engines.task import check_optimizer
from monai_autoaug.errors import ConfigError, DataError


def further_tensor(data: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return data["image"], data["label"], (data["image"],), {}


def without_label(data: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return data["image"], None


def one_value(data: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return data["image"]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inferer": SlidingWindowInferer((8, 8, 8))}, "SlidingWindowInferer"),
        ({"inferer": PatchInferer(splitter=None)}, "PatchInferer"),
        ({"prepare_batch": PrepareBatchExtraInput("weight")}, "PrepareBatchExtraInput"),
        ({"iteration_update": lambda engine, batch: None}, "iteration_update"),
        ({"optim_set_to_none": False}, "optim_set_to_none .* no loss of a step has reached"),
        ({"margin": -1}, "margin"),
        ({"margin": (1, 2)}, "margin"),
        ({"method_options": {"no_such_option": 1}}, "no_such_option"),
        ({"method_options": {"mode": "sideways"}}, "sideways"),
        ({"amp": True, "amp_kwargs": {"dtype": torch.float64}}, "float64"),
        ({"data": DataLoader(Endless())}, "real_data_loader"),
        ({"data": [{"image": torch.zeros(1, 1, 8, 8, 8), "label": torch.zeros(1, 1, 8, 8, 8)}]}, "real_data_loader"),
        (
            {"data": DataLoader(list(range(4)), batch_sampler=BatchSampler(SequentialSampler(range(4)), 2, False))},
            "batch_sampler",
        ),
        ({"data": DataLoader(list(range(4)), batch_size=None)}, "batch_sampler"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else v if isinstance(v, str) else "error",
)
def test_refused_before_training(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        trainer(**options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prepare_batch": further_tensor}, ConfigError, "further tensors"),
        ({"prepare_batch": without_label}, ConfigError, "needs labels"),
        ({"prepare_batch": one_value}, ConfigError, "prepare_batch must return"),
        ({"method_options": {"image_channels": 2}}, ConfigError, "2 image channels"),
        ({"num_classes": 2}, DataError, "undeclared label value"),
        ({"loss_function": NACLLoss(classes=3, dim=3)}, ConfigError, "NACLLoss"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else v if isinstance(v, str) else "error",
)
def test_refused_at_the_first_batch(options: dict[str, Any], error: type[Exception], words: str) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    engine = trainer(network=net, **options)
    with pytest.raises(error, match=words):
        engine.run()
    after = net.state_dict()
    learned = {name for name, _ in net.named_parameters()}
    assert all(torch.equal(before[k], after[k]) for k in before if k in learned)


def test_overlapping_channels_without_sigmoid_are_refused() -> None:
    data = [{"image": torch.randn(4, 1, 8, 8, 8), "label": torch.ones(4, 3, 8, 8, 8)}]
    engine = trainer("random", data=data, loss_function=DiceLoss(softmax=True))
    with pytest.raises(ConfigError, match="regions"):
        engine.run()


def test_network_without_auxiliary_norms_is_refused() -> None:
    net = network()
    with pytest.raises(ConfigError, match="prepare"):
        AutoAugTrainer("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(), method="adversarial")


def test_optimizer_made_before_prepare_is_refused() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    methods.prepare("adversarial", net)
    with pytest.raises(ConfigError, match="optimiser was made before"):
        AutoAugTrainer("cpu", 1, loader(), net, optimizer, loss(), method="adversarial")
    frozen = methods.prepare("adversarial", network())
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    check_optimizer(frozen, optimizer)  # who freezes parameters leaves them out on purpose


def test_network_without_convolution_needs_image_channels() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm3d(1))
    with pytest.raises(ConfigError, match="image_channels"):
        trainer(network=net)


def test_options_go_with_a_name_not_with_a_function() -> None:
    net = network()
    with pytest.raises(ConfigError, match="method_options"):
        AutoAugTrainer("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(),
                       method=lambda task: methods.build("none", task), method_options={"seed": 1})  # fmt: skip


def test_function_makes_the_method() -> None:
    net = network()
    made = AutoAugTrainer("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(),
                          method=lambda task: methods.build("none", task))  # fmt: skip
    assert made.method.name == "none"


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="Must provide batch data"):
        trainer("none")._iteration(None, None)
