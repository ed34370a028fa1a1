# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""torch.compile, which nnU-Net switches on for GPUs: the same numbers, and no compilation in the course of training."""

from __future__ import annotations

import functools
import os
import shutil
from copy import deepcopy
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import counters

from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm, add_auxiliary_norms, norm_groups
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial
from monai_autoaug.nnunet.trainers import with_autoaug

NO_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is None
# compiles C++ for minutes
INDUCTOR = pytest.param(
    "inductor", marks=[pytest.mark.long, pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")]
)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a GPU, but with this backend; what was compiled before is forgotten."""
    name = str(request.param)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=name))
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: os.environ.get("nnUNet_compile") != "0")
    torch.compiler.reset()
    counters.clear()
    return name


def graphs() -> int:
    """How many graphs have been made so far."""
    return int(counters["stats"]["unique_graphs"])


def small_network(dims: int) -> nn.Module:
    """Three convolutions and two norms whose groups differ."""
    convolution, norm = (nn.Conv3d, nn.InstanceNorm3d) if dims == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    layers = [convolution(1, 4, 3), norm(4, affine=True), nn.LeakyReLU(), convolution(4, 4, 3), norm(4, affine=True)]
    network = add_auxiliary_norms(nn.Sequential(*layers, nn.LeakyReLU(), convolution(4, 3, 1)))
    for layer in network:
        if isinstance(layer, AuxiliaryNorm):
            nn.init.uniform_(layer.auxiliary_weight, 0.5, 1.5)
            nn.init.uniform_(layer.auxiliary_bias, -0.5, 0.5)
    return network


def run(network: nn.Module, call: Any, image: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, gradient at the input (which generators get) and gradients of the parameters."""
    network.zero_grad()
    image = image.clone().requires_grad_(True)
    with norm_groups(network, group):
        output = call(image)
    output.square().mean().backward()
    assert image.grad is not None
    return output.detach(), image.grad, [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR], indirect=True)
def test_norm_groups_of_a_compiled_network(backend: str, dims: int) -> None:
    network = small_network(dims)
    plain = deepcopy(network)
    compiled = torch.compile(network)
    made = 0
    for step in range(6):
        image = torch.randn(4, 1, *[10] * dims)
        group = None if step == 2 else torch.randint(0, 4, (4,))
        for got, wanted in zip(run(network, compiled, image, group), run(plain, plain, image, group), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        if step == 3:
            made = graphs()
    assert graphs() == made == 2  # with groups and without, whatever the groups are
    assert not counters["graph_break"]


@pytest.mark.parametrize("backend", ["eager", INDUCTOR], indirect=True)
def test_a_compiled_trainer_takes_the_same_steps(tiny: Any, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    results = []
    for compiled in (True, False):
        monkeypatch.setenv("nnUNet_compile", str(int(compiled)))
        # three patches: each step has other parts; deep supervision, the batch's Dice and the discriminator play along
        trainer = tiny.trainer(Adversarial, batch_size=3, optimizer="adamw", method_options={"warm_up": 0})
        trainer.on_train_start()
        assert isinstance(trainer.network, OptimizedModule) == compiled
        assert isinstance(trainer.task.call, OptimizedModule) == compiled
        assert isinstance(trainer.loss.loss.dc, OptimizedModule) == compiled
        trainer.network.train()
        figures, made = [], 0
        for step in range(6):
            figures.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
            if step == 2:
                made = graphs()
        assert graphs() == made
        assert (made > 0) == compiled
        trainer.network.eval()
        with torch.no_grad():
            figures.append(float(trainer.validation_step(next(trainer.dataloader_val))["loss"]))
        trainer.set_deep_supervision_enabled(False)
        with torch.no_grad():
            assert isinstance(trainer.network(torch.zeros(1, 1, 24, 28, 24)), Tensor)
        trainer._close_streams()
        players = [p for player in trainer.method.players.values() for p in player.module.parameters()]
        weights = torch.cat([p.detach().flatten() for p in [*trainer.task.network.parameters(), *players]])
        results.append((torch.tensor(figures), weights))
        counters.clear()
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    if backend == "eager":  # rounding is the same; Adam's first steps would make much of any other
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager"], indirect=True)
def test_a_compiled_training_resumes(tiny: Any, backend: str) -> None:
    trainer = tiny.trainer(Adversarial, fold="all", iterations_per_epoch=1)
    trainer.run_training()
    again = tiny.trainer(Adversarial, fold="all", iterations_per_epoch=1, resume=True, epochs=2)
    again.load_checkpoint(f"{again.output_folder}/checkpoint_final.pth")
    assert isinstance(again.network, OptimizedModule)
    again.run_training()
    assert again.current_epoch == 2


@pytest.mark.parametrize("backend", ["eager"], indirect=True)
def test_batch_norms_with_groups_are_not_compiled(tiny: Any, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = with_autoaug(nnUNetTrainerBN)
    for options, compiled in (({}, False), ({"method_options": {"mode": "affine"}}, True), ({"method": "none"}, True)):
        trainer = tiny.trainer(cls, **options)
        trainer.initialize()
        assert isinstance(trainer.network, OptimizedModule) == compiled
        assert capsys.readouterr().out.count("torch.compile is off") == 1 - compiled
