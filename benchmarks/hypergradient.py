# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The ways to a hypergradient: time, memory, accuracy. ``python benchmarks/hypergradient.py DATA --output hyper.json``.

A network is trained for some steps on patches of DATA (Task04_Hippocampus, or any folder with imagesTr and labelsTr);
then the derivative of the validation loss after one more step is taken with respect to

- weights: of the samples, as joint_policy's training policy learns by (B numbers, compared less their mean, too,
  which the method takes away);
- augmenter: the parameters of bilevel's augmenter, which has transformed the batch.

Each way is compared with the exact double backward in float64 of the same network, batch and direction: relative L2
error and cosine. Finite differences are taken with several steps, in float64, too: where they don't come closer with
smaller steps there, it isn't rounding. Times are process CPU seconds of one thread, in turn, over a plain step
(forward, backward, update) of the same round; the validation gradient, which all ways need, is told apart. Memory is
what torch's allocator adds at most (see `policy_cost`).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from commands import code_version
from joint_step import NETWORKS, losses
from policy_parts import peak
from torch import Tensor, nn

import monai_autoaug
from monai_autoaug.augmenters import find
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.parts import transform
from monai_autoaug.networks import with_parameters
from monai_autoaug.optim import mixed_gradient, per_sample_hypergradient
from monai_autoaug.writing import write_text

RATE = 0.01
CHANGES = (1e-5, 1e-4, 3e-4, 1e-3, 1e-2)  # of the loss, for differences of losses
SHARES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of the weights' length, for differences of gradients
DEFAULT_CHANGE, DEFAULT_SHARE = 3e-4, 1e-3  # what the package takes
Way = Callable[["Case"], Tensor]


def load(data: Path, count: int, patch: tuple[int, ...], classes: int) -> Batch:
    """The centres of the first volumes, z-scored, zero-padded to the patch."""
    images, labels = [], []
    for file in sorted((data / "imagesTr").glob("[!.]*.nii.gz"))[:count]:
        image = np.asarray(nib.load(file).dataobj, dtype=np.float32)
        label = np.asarray(nib.load(data / "labelsTr" / file.name).dataobj).astype(np.int64)
        images.append(_fit(torch.from_numpy((image - image.mean()) / image.std()), patch))
        labels.append(_fit(torch.from_numpy(label), patch).clamp(0, classes - 1))
    hot = nn.functional.one_hot(torch.stack(labels), classes).movedim(-1, 1).float()
    return Batch(torch.stack(images)[:, None], hot, spacing=torch.ones(len(images), 3))


def _fit(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    for axis, n in enumerate(patch):
        beyond = max(0, x.shape[axis] - n)
        x = x.narrow(axis, beyond // 2, min(n, x.shape[axis]))
        missing = n - x.shape[axis]
        around = [0, 0] * (2 - axis) + [missing // 2, missing - missing // 2] + [0, 0] * axis
        x = nn.functional.pad(x, around)
    return x


class Case:
    """A trained network, a batch that an augmenter has transformed, and the direction u of the step ahead.

    Args:
        network: after some training.
        train: patches before the augmenter.
        validation: patches on which the step is judged.
        dtype: of everything.
    """

    def __init__(self, network: nn.Module, train: Batch, validation: Batch, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(network).to(dtype)
        self.parameters = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        torch.manual_seed(1)
        self.augmenter = find("parametric")(3, 1)
        with torch.no_grad():  # away from where it starts, at which most of its layers learn nothing
            for p in self.augmenter.parameters():
                p.add_(0.02 * torch.randn(p.shape))
        self.augmenter.strength.fill_(1.0)
        noise = self.augmenter.sample_noise(len(train.image), torch.Generator().manual_seed(2))
        self.augmenter.to(dtype)
        given = Batch(train.image.to(dtype), train.label.to(dtype), spacing=train.spacing)
        self.batch = transform(given, self.augmenter(given.image, noise.to(dtype), spacing=given.spacing))
        self.inputs = [t.to(dtype) for t in (self.batch.image, self.batch.label)]
        self.validation = Batch(validation.image.to(dtype), validation.label.to(dtype))
        self.direction = self.ahead()

    def sample_losses(self, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor] | None = None) -> Tensor:
        """The losses (B,) at parameters."""
        image, label = [x.detach() for x in self.inputs] if inputs is None else inputs
        with with_parameters(self.network, parameters) as network:
            return _losses(network(image), label)

    def loss(self, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The training loss."""
        return self.sample_losses(parameters, inputs).mean()

    def ahead(self) -> dict[str, Tensor]:
        """The direction: -rate times the gradient of the validation loss after a step of gradient descent."""
        leaves = {n: p.clone().requires_grad_() for n, p in self.parameters.items()}
        first = torch.autograd.grad(self.sample_losses(leaves).mean(), list(leaves.values()), allow_unused=True)
        moved = {n: (p if g is None else p - RATE * g).detach().requires_grad_()
                 for (n, p), g in zip(leaves.items(), first, strict=True)}  # fmt: skip
        with with_parameters(self.network, moved) as network:
            value = _losses(network(self.validation.image), self.validation.label).mean()
        found = torch.autograd.grad(value, list(moved.values()), allow_unused=True)
        return {n: -RATE * g for n, g in zip(moved, found, strict=True) if g is not None}

    def to_augmenter(self, slopes: Sequence[Tensor]) -> Tensor:
        """The gradient of the augmenter's parameters, flat."""
        parameters = list(self.augmenter.parameters())
        pairs = [(x, s) for x, s in zip(self.inputs, slopes, strict=True) if x.requires_grad]
        found = torch.autograd.grad(
            [x for x, _ in pairs], parameters, [s for _, s in pairs], retain_graph=True, allow_unused=True
        )
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                          for p, g in zip(parameters, found, strict=True)])  # fmt: skip


def _losses(output: Tensor, label: Tensor) -> Tensor:
    """`joint_step.losses` in the output's own precision."""
    if output.dtype != torch.float64:
        return losses(output, label, None)
    log = output.log_softmax(1)
    cross_entropy = -(label * log).sum(1).flatten(1).mean(1)
    p, t = log.exp()[:, 1:].flatten(2), label[:, 1:].flatten(2)
    dice = (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)
    return cross_entropy + 1 - dice.mean(1)


def _weights(mode: str, change: float = DEFAULT_CHANGE) -> Way:
    return lambda case: per_sample_hypergradient(
        case.sample_losses, case.parameters, case.direction, mode=mode, loss_change=change
    )


def _one_sided(change: float) -> Way:
    """Forward differences of the losses; those at the parameters themselves are the training step's."""

    def way(case: Case) -> Tensor:
        with torch.no_grad():
            here = case.sample_losses(case.parameters)
            trial = 1e-4 * _length(case.parameters) / _length(case.direction)

            def difference(step: float) -> Tensor:
                moved = {n: p + step * case.direction[n] if n in case.direction else p
                         for n, p in case.parameters.items()}  # fmt: skip
                return (case.sample_losses(moved) - here) / step

            slope = float(difference(trial).sum().abs())
            return difference(min(change / slope, 100 * trial) if slope > 0 else trial)

    return way


def _length(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([t.double().norm() for t in tensors.values()]).norm())


def _augmenter(mode: str, share: float = DEFAULT_SHARE) -> Way:
    def way(case: Case) -> Tensor:
        slopes, _ = mixed_gradient(
            case.loss, case.parameters, case.inputs, case.direction, mode=mode, relative_step=share
        )  # fmt: skip
        return case.to_augmenter(slopes)

    return way


WAYS: dict[str, dict[str, Way]] = {
    "weights": {
        "double_backward": _weights("double_backward"), "jvp": _weights("jvp"),
        **{f"finite_difference, {c:g}": _weights("finite_difference", c) for c in CHANGES},
        **{f"one-sided, {c:g}": _one_sided(c) for c in CHANGES[:4]},
    },
    "augmenter": {
        "double_backward": _augmenter("double_backward"), "jvp": _augmenter("jvp"),
        **{f"finite_difference, {s:g}": _augmenter("finite_difference", s) for s in SHARES},
    },
}  # fmt: skip
TIMED = {
    "weights": ["double_backward", "jvp", f"finite_difference, {DEFAULT_CHANGE:g}", f"one-sided, {DEFAULT_CHANGE:g}"],
    "augmenter": ["double_backward", "jvp", f"finite_difference, {DEFAULT_SHARE:g}"],
}


def trained(name: str, train: Batch, steps: int, size: int) -> nn.Module:
    """A network after some steps."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randperm(len(train.image), generator=generator)[:size]
        optimizer.zero_grad()
        losses(network(train.image[rows]), train.label[rows], None).mean().backward()
        optimizer.step()
    return network


def accuracy(found: Tensor, exact: Tensor, *, centred: bool) -> dict[str, float]:
    """Relative L2 error and cosine, of the numbers less their mean, too, where that is what counts."""
    found, exact = found.double(), exact.double()

    def row(a: Tensor, b: Tensor, name: str) -> dict[str, float]:
        error = float((a - b).norm() / b.norm())
        return {f"error{name}": float(f"{error:.2e}"),
                f"cosine{name}": round(float(nn.functional.cosine_similarity(a, b, dim=0)), 5)}  # fmt: skip

    rows = row(found, exact, "")
    return rows | row(found - found.mean(), exact - exact.mean(), ", centred") if centred else rows


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one network."""
    size, patch = arguments.batch_size, tuple(arguments.patch)
    volumes = load(arguments.data, 4 * size, patch, 3)
    network = trained(name, volumes.rows(slice(0, 3 * size)), arguments.steps, size)
    train, validation = volumes.rows(slice(0, size)), volumes.rows(slice(3 * size, 4 * size))
    cases = {t: Case(network, train, validation, t) for t in (torch.float32, torch.float64)}
    exact_direction = cases[torch.float64].direction
    cases[torch.float32].direction = {n: u.float() for n, u in exact_direction.items()}  # the ways are compared alone
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters()), "accuracy": {}}
    for kind, ways in WAYS.items():
        exact = ways["double_backward"](cases[torch.float64])
        centred = kind == "weights" and size > 2
        report["accuracy"][kind] = {
            str(t).removeprefix("torch."): {n: accuracy(way(case), exact, centred=centred) for n, way in ways.items()}
            for t, case in cases.items()
        }
    return report | costs(network, cases[torch.float32], arguments.rounds)


def costs(network: nn.Module, case: Case, rounds: int) -> dict[str, Any]:
    """Seconds and MiB of a plain step, and of each way over it."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9, nesterov=True)
    image, label = (x.detach() for x in case.inputs)

    def plain() -> None:
        optimizer.zero_grad()
        losses(network(image), label, None).mean().backward()
        optimizer.step()

    timed: dict[str, Callable[[], object]] = {"plain": plain, "validation gradient and train gradient": case.ahead}
    for kind, names in TIMED.items():
        timed |= {f"{kind}, {n}": (lambda kind=kind, n=n: WAYS[kind][n](case)) for n in names}
    seconds: dict[str, list[float]] = {n: [] for n in timed}
    for number in range(rounds + 1):
        for name, what in timed.items():
            start = time.process_time()
            what()
            if number:
                seconds[name].append(time.process_time() - start)
    memory = {name: peak(what, "cpu") for name, what in timed.items()}
    rows = {}
    for name, spent in seconds.items():
        over = [a / b for a, b in zip(spent, seconds["plain"], strict=True)]
        rows[name] = {
            "seconds": round(statistics.median(spent), 4), "over plain": round(statistics.median(over), 3),
            "range": [round(f(over), 3) for f in (min, max)], "mib": round(memory[name] / 2**20, 1),
            "mib over plain": round(memory[name] / memory["plain"], 2),
        }  # fmt: skip
    return {"costs": rows}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines: list[str] = []
    for network, row in report["networks"].items():
        lines += [f"{network}, {row['parameters'] / 1e6:.2f} M parameters", ""]
        lines += ["| | plain steps | memory, plain steps |", "|---|---|---|"]
        for name, c in row["costs"].items():
            low, high = c["range"]
            lines.append(f"| {name} | {c['over plain']:.2f} ({low:.2f} to {high:.2f}) | {c['mib over plain']:.2f} |")
        for kind, types in row["accuracy"].items():
            lines += ["", f"| {kind} | float32: error, cosine | float64: error, cosine |", "|---|---|---|"]
            for way in types["float32"]:
                cells = [f"{t[way]['error']:.1e}, {t[way]['cosine']:.4f}" for t in types.values()]
                lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--steps", type=int, default=60, help="of training before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("hypergradient.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "benchmark": "hypergradient", "clock": "process CPU seconds, one thread",
        "machine": f"{platform.machine()} {platform.processor()}".strip(), "code": code_version(),
        "versions": {"torch": torch.__version__, "monai_autoaug": monai_autoaug.__version__},
        **{n: getattr(arguments, n) for n in ("batch_size", "patch", "steps", "rounds")}, "networks": {},
    }  # fmt: skip
    for name in arguments.networks:
        report["networks"][name] = measure(name, arguments)
        write_text(arguments.output, json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
