# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Augmentation alone, and hypergradients in half precision beside float32 (see `gpu`)."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_trainings import features
from joint_step import losses
from policy_parts import FixedBatches, stock_augmentation
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.augmenters import find
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.parts import transform
from monai_autoaug.optim.hypergradient import MODES
from monai_autoaug.policies import Sampled, TrainingPolicy
from monai_autoaug.policies.drawing import Drawing
from monai_autoaug.precision import Precision, without_tf32

__all__ = ["measure_augmentation", "measure_hypergradients"]

KINDS = ("affine", "deformation", "appearance", "parametric", "general")
EXACT = "float32, exact"  # without TF32, which a GPU takes for float32 by default
_TRIES = 30  # of a step in float16, whose scaler looks for its scale first


def measure_augmentation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a batch: ours on the device, nnU-Net's on one core of a worker."""
    device, size = arguments.device, arguments.batch_size
    patch = (arguments.patch,) * 3
    found = {}
    for margin in (8, 4):  # hosts enlarge patches by an eighth, those of policies by a quarter
        batch = FixedBatches(size, size, patch, tuple(n // margin for n in patch), device).next("train")
        generator = torch.Generator(device).manual_seed(0)
        if margin == 4:
            drawing = Drawing(TrainingPolicy.preset("nnunet").to(device))
            found["training policy, nnU-Net's preset"] = _time(lambda: drawing(batch, generator), arguments)  # noqa: B023
            continue
        for kind in KINDS:
            augmenter = find(kind)(3, 1).to(device)
            augmenter.strength.fill_(1.0)

            def augment(augmenter: Any = augmenter, batch: Any = batch, generator: Any = generator) -> None:
                with torch.no_grad(), Precision(device, arguments.precisions[-1]).autocast():
                    noise = augmenter.sample_noise(size, generator)
                    transform(batch, augmenter(batch.image, noise, spacing=batch.spacing))

            found[f"augmenter, {kind}"] = _time(augment, arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        given = argparse.Namespace(patch=list(patch), batch_size=size)
        found["nnU-Net's own, one core"] = _time(stock_augmentation(given), arguments, device="cpu")
    return found


def _time(what: Callable[[], object], arguments: argparse.Namespace, device: str | None = None) -> dict[str, float]:
    """Median and range of milliseconds."""
    gpu, spent = (device or arguments.device) != "cpu", []
    for number in range(arguments.rounds + 1):
        start = time.perf_counter()
        what()
        if gpu:
            torch.cuda.synchronize()
        if number:  # the first one warms up
            spent.append(1000 * (time.perf_counter() - start))
    return {"ms": round(statistics.median(spent), 3), "least": round(min(spent), 3), "most": round(max(spent), 3)}


class _Worth(JointPolicy):
    """Keeps what its samples were worth."""

    worth: Tensor

    def _improve(self, drawn: Sampled) -> None:
        self.worth = drawn.values.detach().double().cpu()
        super()._improve(drawn)


class _Kept(torch.optim.SGD):
    """Keeps the gradient that it was given, and changes nothing."""

    gradient: Tensor

    def step(self, closure: Any = None) -> None:
        """Instead of a step."""
        self.gradient = torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).double().cpu()


def _network(arguments: argparse.Namespace) -> nn.Module:
    """The network of the trainings, without deep supervision."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    channels = features(arguments)
    stages = len(channels)
    return PlainConvUNet(
        1, stages, channels, nn.Conv3d, 3, (1, *(2,) * (stages - 1)), (2,) * stages, 3, (2,) * (stages - 1),
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip


def _build(name: str, mode: str, dtype: str, arguments: argparse.Namespace) -> Method:
    torch.manual_seed(0)
    network = _network(arguments).to(arguments.device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    task = Task(
        network, optimizer, losses, Precision(arguments.device, dtype), clip=12.0, steps=1000,
        patch_size=(arguments.patch,) * 3,
    )  # fmt: skip
    if name == "joint_policy":
        return _Worth(task, warm_up=0, update_every=1, test_time=False, derivative=mode)
    method = methods.build("bilevel", task, update_every=1, derivative=mode)
    player = method.players["augmenter"]
    player.optimizer = _Kept(player.module.parameters(), 1.0)
    return method


def _learned(method: Any) -> Tensor | None:
    """What one update has found: the worth of the samples, or the augmenter's gradient; None: there was none yet."""
    if isinstance(method, _Worth):
        return getattr(method, "worth", None)
    found: Tensor | None = getattr(method.players["augmenter"].optimizer, "gradient", None)
    return found


def measure_hypergradients(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each way to the derivative in each precision beside the exact one: difference, cosine, seconds, memory."""
    found: dict[str, Any] = {}
    for name in ("joint_policy", "bilevel"):
        rows: dict[str, Any] = {}
        wanted: Tensor | None = None
        for dtype in (EXACT, *arguments.precisions):
            for mode in ("double_backward", *(m for m in MODES if m != "double_backward")):
                row, vector = _update(name, mode, dtype, arguments)
                wanted = vector if wanted is None else wanted
                difference = float((vector - wanted).norm() / wanted.norm())
                cosine = float(torch.nn.functional.cosine_similarity(vector, wanted, dim=0))
                rows[f"{dtype}, {mode}"] = {
                    "relative_difference": float(f"{difference:.3e}"), "cosine": round(cosine, 6), **row,
                }  # fmt: skip
        found[name] = rows
    return found


def _update(name: str, mode: str, dtype: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """The first update of a fresh method on the same patches with the same random numbers, and what others cost."""
    gpu, patch = arguments.device != "cpu", (arguments.patch,) * 3
    exact = dtype == EXACT
    with without_tf32() if exact else contextlib.nullcontext():
        method: Any = _build(name, mode, "float32" if exact else dtype, arguments)
        batches = FixedBatches(arguments.batch_size, method.meta_batch, patch, (0,) * 3, arguments.device)
        vector: Tensor | None = None
        for _ in range(_TRIES):
            method.generator.manual_seed(1)
            method.step(batches)
            vector = _learned(method)
            if vector is not None:
                break
        if vector is None:
            raise RuntimeError(
                f"{name} in {dtype}: no update in {_TRIES} steps, all of whose gradients were not finite"
            )
        spent = []
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            method.step(batches)
            if gpu:
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - start)
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if gpu else None
    return {"step_seconds": round(statistics.median(spent), 5), "peak_mib": peak}, vector
