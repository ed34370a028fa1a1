# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cost of one joint training step over a plain one: ``python benchmarks/joint_step.py --output joint_step.json``.

The plain step (method none), the random control and the adversarial method in its single and combined forms are timed
on the same batches of the same size in turn, in one process and one thread, by process CPU time (wall time on a GPU,
after synchronising). The ratio is the median over rounds of a step's time over the plain step's of the same round.
Augmentation is past its warm-up, in which the discriminator rests. ``--margin`` enlarges the patches that the
generators see and warp, as hosts do where volumes are larger than patches; the plain step has none.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

import monai_autoaug
from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Method, Task
from monai_autoaug.precision import Precision

WARM: dict[str, Any] = {"warm_up": 0}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "random_combined": ("random", WARM),
    "adversarial_affine": ("adversarial", WARM | {"mode": "affine"}),
    "adversarial_deformation": ("adversarial", WARM | {"mode": "deformation"}),
    "adversarial_appearance": ("adversarial", WARM | {"mode": "appearance"}),
    "adversarial_combined": ("adversarial", WARM),
    "adversarial_combined_without_discriminator": ("adversarial", WARM | {"discriminator": False}),
}
PAPER_FORM = {"adversarial_combined_paper_form": ("adversarial", {"fidelity": "paper"})}


def monai_unet() -> nn.Module:
    """MONAI UNet of 1.19 M parameters."""
    return UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)


def nnunet_network() -> nn.Module:
    """The network that nnU-Net plans for Task04_Hippocampus: PlainConvUNet, 4 stages, 5.6 M parameters."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    stages = 4
    return PlainConvUNet(
        1, stages, (32, 64, 128, 256), nn.Conv3d, 3, (1, 2, 2, 2), (2,) * stages, 3, (2,) * (stages - 1),
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"monai_unet": monai_unet, "nnunet": nnunet_network}


def losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    """Cross-entropy plus soft Dice, one value a sample."""
    log = output.float().log_softmax(1)
    cross_entropy = -(label * log).sum(1).flatten(1).mean(1)
    p, t = log.exp()[:, 1:].flatten(2), label[:, 1:].flatten(2)
    dice = (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)
    return cross_entropy + 1 - dice.mean(1)


class FixedBatches:
    """The same two batches for all arms, with a margin for those that augment."""

    def __init__(self, size: int, patch: tuple[int, ...], margin: tuple[int, ...], device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = {}
        patch = tuple(n + 2 * m for n, m in zip(patch, margin, strict=True))
        for stream in ("train", "real"):
            image = torch.randn(size, 1, *patch, generator=generator)
            label = nn.functional.one_hot(torch.randint(3, (size, *patch), generator=generator), 3)
            batch = Batch(
                image, label.movedim(-1, 1).float(), case=("",) * size, spacing=torch.ones(size, 3), margin=margin
            )
            self.batches[stream] = batch.to(device)

    def next(self, stream: str) -> Batch:
        """The batch of a stream."""
        return self.batches[stream]


def build(network: str, arm: str, device: str, precision: str) -> Method:
    """A method over a fresh network, as a host builds it."""
    name, options = (ARMS | PAPER_FORM)[arm]
    torch.manual_seed(0)
    module = methods.prepare(name, NETWORKS[network](), **options).to(device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.99, nesterov=True)
    return methods.build(name, Task(module, optimizer, losses, Precision(device, precision), clip=12.0), **options)


def clock(device: str) -> float:
    """Process CPU seconds, or synchronised wall seconds on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(network: str, arms: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of each arm, and ratios to the plain step of the same round."""
    size, patch = arguments.batch_size, tuple(arguments.patch)
    plain = FixedBatches(size, patch, (0, 0, 0), arguments.device)
    enlarged = FixedBatches(size, patch, tuple(arguments.margin), arguments.device)
    built = {arm: build(network, arm, arguments.device, arguments.precision) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(arguments.rounds + 1):
        for arm, method in built.items():
            start = clock(arguments.device)
            for _ in range(arguments.steps):
                method.step(plain if arm == "none" else enlarged)
            if number:  # the first round warms up caches and workspaces
                seconds[arm].append((clock(arguments.device) - start) / arguments.steps)
    parameters = sum(p.numel() for p in NETWORKS[network]().parameters())
    result: dict[str, Any] = {"parameters": parameters, "arms": {}}
    for arm in arms:
        ratios = [a / b for a, b in zip(seconds[arm], seconds["none"], strict=True)]
        result["arms"][arm] = {
            "seconds": round(statistics.median(seconds[arm]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return result


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--margin", type=int, nargs=3, default=[0, 0, 0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--paper", action="store_true", help="time the paper's full-resolution generators too")
    parser.add_argument("--output", type=Path, default=Path("joint_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = list(ARMS) + (list(PAPER_FORM) if arguments.paper else [])
    report: dict[str, Any] = {
        "benchmark": "joint_step",
        "clock": "process CPU seconds, one thread" if arguments.device == "cpu" else "synchronised wall seconds",
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        "batch_size": arguments.batch_size, "patch": arguments.patch, "margin": arguments.margin,
        "precision": arguments.precision, "rounds": arguments.rounds, "networks": {},
    }  # fmt: skip
    for network in arguments.networks:
        report["networks"][network] = measured = measure(network, arms, arguments)
        print(f"{network}, {measured['parameters'] / 1e6:.2f} M parameters")
        for arm, row in measured["arms"].items():
            print(f"  {arm:45s} {row['seconds']:8.3f} s  {row['ratio']:6.2f} x  {row['ratio_range']}")
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
