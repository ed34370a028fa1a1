# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Classification of 2D images with each method: labels stay untouched, and a small MONAI network learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.networks.nets import DenseNet
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.augmenters import Transformation
from monai_autoaug.data import Batch, pictures
from monai_autoaug.engines import AutoAugTrainer
from monai_autoaug.engines.losses import per_sample
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.parts import transform

CLASSES = 3
# method -> options that let every player play within a short training
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {"warm_up": 0},
    "adversarial": {"warm_up": 5, "width": 8},
    "bilevel": {"update_every": 3},
    "general_adversarial": {"width": 8},
}


def network() -> nn.Module:
    return DenseNet(2, 1, CLASSES, init_features=16, growth_rate=8, block_config=(2, 2), bn_size=2)


def loader(count: int = 96, seed: int = 0, **options: Any) -> DataLoader:
    return DataLoader(pictures(count, classes=CLASSES, seed=seed), **({"batch_size": 16, "shuffle": True} | options))


def train(method: str, *, epochs: int = 12, **given: Any) -> AutoAugTrainer:
    torch.manual_seed(0)
    options = METHODS.get(method, {})
    net = methods.prepare(method, network(), **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003)
    arguments = {"classification": True, "loss_function": nn.CrossEntropyLoss()} | given
    if "meta" in methods.streams(method, **options):
        arguments["meta_data_loader"] = loader(24, seed=2, batch_size=8)  # pictures that the network isn't trained on
    trainer = AutoAugTrainer(
        "cpu", epochs, loader(), net, optimizer, method=method, method_options=options, **arguments
    )  # fmt: skip
    trainer.run()
    return trainer


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    unseen = pictures(60, classes=CLASSES, seed=1)
    output = net.eval()(torch.stack([p["image"] for p in unseen]))
    return float((output.argmax(1) == torch.stack([p["label"] for p in unseen])).float().mean())


@pytest.mark.parametrize("method", METHODS)
def test_a_small_network_learns_shapes_with_every_method(method: str) -> None:
    """Guessing is right in one of three. So do those methods that are made for classification by their papers."""
    trainer = train(method)
    assert accuracy(trainer.plain_network) > 0.7
    assert trainer.converter.form in ("bare_index", None)
    for name, player in trainer.method.players.items():
        assert player.optimizer.state, name  # every player has played


def test_labels_are_untouched_and_images_are_not() -> None:
    torch.manual_seed(0)
    image, label = torch.rand(2, 1, 12, 12), torch.eye(3)[:2]
    mask, extra = torch.ones(2, 1, 12, 12), torch.rand(2, 2, 12, 12)
    batch = Batch(image, label, margin=(2, 2), mask=mask, extra=extra, case=("a", "b"))
    shift = torch.eye(2, 3).repeat(2, 1, 1)
    shift[:, 0, 2] = 1.0
    moved = transform(batch, Transformation((12, 12), matrix=shift))
    assert moved.label is label
    assert torch.allclose(moved.image, image[:, :, 3:11, 2:10], atol=1e-6)
    assert moved.extra is not None
    assert torch.allclose(moved.extra, extra[:, :, 3:11, 2:10], atol=1e-6)
    assert batch.cropped().label is label
    assert batch.cropped().image.shape == (2, 1, 8, 8)
    assert torch.equal(batch.rows(slice(1, 2)).label, label[1:])
    outside = transform(batch, Transformation((12, 12), matrix=shift + torch.tensor([0.0, 0.0, 30.0])))
    assert float(outside.image.abs().max()) == 0  # beyond the mask


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 5.0])])
def test_the_loss_of_each_sample_is_its_cross_entropy(weight: Tensor | None) -> None:
    own = nn.CrossEntropyLoss(weight=weight)
    losses, logits = per_sample(own, "bare_index"), torch.randn(6, 3, requires_grad=True)
    index = torch.tensor([0, 1, 2, 2, 1, 0])
    one_hot = nn.functional.one_hot(index, 3).float()
    found = losses(logits, one_hot, None)
    assert found.shape == (6,)
    assert torch.allclose(found.mean(), own(logits, index), atol=1e-6)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found.mean(), own(logits, index))]
    assert torch.allclose(*gradients, atol=1e-6)
    if weight is None:
        assert torch.allclose(found, nn.functional.cross_entropy(logits, index, reduction="none"), atol=1e-6)


@pytest.mark.parametrize("form", ["index", "one_hot"])
def test_labels_may_be_indices_or_one_hot(form: str) -> None:
    def prepare(data: Any, device: Any = None, non_blocking: bool = False, **_: Any) -> Any:
        label = data["label"]
        return data["image"], label if form == "index" else nn.functional.one_hot(label, CLASSES).float()

    trainer = train("random", epochs=1, prepare_batch=prepare)
    batch = trainer.batches.current
    assert batch is not None
    assert batch.classification
    assert batch.label.shape == (16, CLASSES)
    assert torch.equal(batch.label.sum(1), torch.ones(16))


def test_what_is_not_a_classification_is_refused() -> None:
    with pytest.raises(ConfigError, match="set classification to True"):
        train("random", classification=False)
    with pytest.raises(ConfigError, match=r"must be \(B, K\), got"):
        AutoAugTrainer("cpu", 1, loader(), nn.Conv2d(1, 3, 1), torch.optim.SGD([torch.zeros(1)], 0.1),
                       nn.CrossEntropyLoss(), method="random", method_options={"mode": "affine"},
                       classification=True).run()  # fmt: skip
    with pytest.raises(ConfigError, match=r"labels of whole images must be \(B,\) class indices or \(B, 3\)"):
        train("random", prepare_batch=lambda data, *_, **__: (data["image"], data["label"][:, None]))
    with pytest.raises(ConfigError, match="'joint_policy' is made for segmentation"):
        train("joint_policy")
