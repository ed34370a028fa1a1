# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""With the method off and the stock loader in one process a trainer is nnUNetTrainer, bit for bit."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainerCosAnneal import nnUNetTrainerCosAnneal

from monai_autoaug.nnunet import trainers
from monai_autoaug.nnunet.trainers import with_autoaug

STOCK = {"method": "none", "loader": "stock", "seed": None}


def train(trainer: Any, epochs: int = 2, iterations: int = 2) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Weights, logged figures and the optimiser's state after a short training from fixed global seeds."""
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    trainer.run_training()
    return trainer.network.state_dict(), trainer.logger.get_checkpoint(), trainer.optimizer.state_dict()


@pytest.mark.parametrize("base", [nnUNetTrainer, nnUNetTrainerCosAnneal])
def test_off_is_stock_bit_for_bit(tiny: Any, monkeypatch: pytest.MonkeyPatch, base: type) -> None:
    # nnU-Net times two ways to blur and takes the faster one; which one that is differs from run to run
    monkeypatch.setattr(
        GaussianBlurTransform, "_benchmark_wrapper", lambda self, image, sigma, axis: blur_dimension(image, sigma, axis)
    )
    plans = deepcopy(tiny.plans) | {"continue_training": False}
    stock = train(base(plans, "3d_fullres", 0, deepcopy(tiny.json), torch.device("cpu")))
    ours = train(tiny.trainer(with_autoaug(base, "none"), **STOCK))
    assert stock[0].keys() == ours[0].keys()
    for name, tensor in stock[0].items():
        assert torch.equal(tensor, ours[0][name]), name
    for name in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        assert stock[1][name] == ours[1][name], name
    for a, b in zip(stock[2]["state"].values(), ours[2]["state"].values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_the_comparison_can_fail(tiny: Any) -> None:
    """Another seed, or the seeded loader, gives other losses."""
    losses = []
    for options in (STOCK, {"method": "none", "seed": 0}, {"method": "none", "seed": 1}):
        trainer = tiny.trainer(trainers.nnUNetTrainerAutoAugNone, **options)
        losses.append(train(trainer, epochs=1)[1]["train_losses"])
    assert len({tuple(loss) for loss in losses}) == 3


def test_identity_at_the_start_is_the_plain_step(tiny: Any) -> None:
    """An augmenter of strength 0 leaves the loss of the plain step on the same patches."""
    figures = {}
    for method, options in (("none", {}), ("adversarial", {"warm_up": 10**9, "mode": "affine"})):
        trainer = tiny.trainer(trainers.nnUNetTrainerAutoAugAdversarial, method=method, method_options=options)
        figures[method] = train(trainer, epochs=1, iterations=1)[1]["train_losses"][0]
    assert figures["adversarial"] == pytest.approx(figures["none"], abs=2e-3)
