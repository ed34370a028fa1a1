# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A problem whose best policy is known: bars that lie along another axis in the cases that the policy is judged by.

Foreground is a bar along the first axis in training and along the third in meta-validation; bars that look the same but
are background lie along the second and then along the first. So foreground patches need the quarter turn of the first
and third axis, and background patches that of the first and second: each class another operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.precision import Precision
from monai_autoaug.transforms import Cascade, Operation, training_cascades

SIZE, WIDTH = 24, 1


def _bar(
    image: Tensor, label: Tensor, foreground: bool, axis: int, centre: Sequence[int], generator: torch.Generator
) -> None:
    """A bar of random length and width through ``centre``."""
    length = 9 + int(torch.randint(3, (1,), generator=generator))
    window = []
    for a, c in enumerate(centre):
        half = length if a == axis else WIDTH
        window.append(slice(max(c - half, 0), c + half + 1))
    image[tuple(window)] = 1.5 + 0.3 * torch.rand((), generator=generator)
    label[tuple(window)] = foreground


def patch(foreground: bool, shifted: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Image and label (24, 24, 24) of a patch whose centre is foreground or not."""
    image, label = 0.15 * torch.randn(SIZE, SIZE, SIZE, generator=generator), torch.zeros(SIZE, SIZE, SIZE)
    target, distractor = (2, 0) if shifted else (0, 1)
    # a patch has bars of one kind, one of them at the centre, so that nothing but their direction tells what they are:
    # beside bars of the other kind, distractors are known by those, and turning them either way is an answer
    middle = [SIZE // 2] * 3
    axis = target if foreground else distractor
    for k in range(3):
        centre = [int(v) for v in torch.randint(3, SIZE - 3, (3,), generator=generator)]
        centre[axis] = SIZE // 2
        _bar(image, label, foreground, axis, middle if k == 2 else centre, generator)
    return image, label


def batch(count: int, shifted: bool, generator: torch.Generator) -> Batch:
    """As many patches of each class, foreground last."""
    wanted = [k >= count // 2 for k in range(count)]
    parts = [patch(foreground, shifted, generator) for foreground in wanted]
    label = torch.stack([y for _, y in parts])[:, None]
    return Batch(
        torch.stack([x for x, _ in parts])[:, None], torch.cat([1 - label, label], 1),
        classes=label[:, 0, SIZE // 2, SIZE // 2, SIZE // 2].long(), case=tuple(map(str, range(count))),
    )  # fmt: skip


class Problem:
    """Streams of training and meta-validation patches."""

    def __init__(self, seed: int, train: int, meta: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.train, self.meta = train, meta

    def next(self, stream: str) -> Batch:
        shifted = stream == "meta"
        return batch(self.meta if shifted else self.train, shifted, self.generator)


def losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    """Cross-entropy and soft Dice of each sample."""
    logits = output.float()
    entropy = -(label * logits.log_softmax(1)).sum(1).flatten(1).mean(1)
    p, y = logits.softmax(1)[:, 1].flatten(1), label[:, 1].flatten(1)
    return entropy + 1 - (2 * (p * y).sum(1) + 1e-5) / ((p + y).sum(1) + 1e-5)


def operations() -> list[Cascade]:
    """One cascade: identity, the three quarter turns, noise and gain."""
    rows = {o.name: o for c in training_cascades() for o in c.operations}
    names = ["rotate_dw_90", "rotate_dh_90", "rotate_hw_90"]
    turns = [rows[n] for n in names]
    others = [next(o for n, o in rows.items() if n.startswith(p)) for p in ("noise", "brightness_multiply")]
    return [Cascade("choice", (Operation("identity"), *turns, *others))]


FOREGROUND, BACKGROUND = 1, 2  # the right operations' places


def make(
    seed: int, steps: int, rate: float, *, train: int = 10, meta: int = 10, policy: TrainingPolicy | None = None,
    method: type[JointPolicy] = JointPolicy, lr: float = 0.02, adam: bool = False, **options: Any,
) -> tuple[JointPolicy, Problem]:  # fmt: skip
    """The method on the problem."""
    torch.manual_seed(seed)
    network = UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, norm=("INSTANCE", {"affine": True}))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, nesterov=True)
    if adam:
        optimizer = torch.optim.AdamW(network.parameters(), lr)
    task = Task(network, optimizer, losses, Precision("cpu"), steps=steps)
    policy = TrainingPolicy(operations()) if policy is None else policy
    settings: dict[str, Any] = {"test_time": False, "update_every": 1, "warm_up": 0, "pool": 2} | options
    return method(task, seed=seed, policy=policy, learning_rate=rate, **settings), Problem(seed, train, meta)


def run(seed: int, steps: int = 100, rate: float = 0.2, lr: float = 0.02, **options: Any) -> JointPolicy:
    """Train to the end."""
    method, problem = make(seed, steps, rate, lr=lr, **options)
    for step in range(steps):
        for group in method.task.optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps) ** 0.9
        method.step(problem)
    return method


@torch.no_grad()
def unseen_dice(method: JointPolicy, count: int = 40) -> float:
    """Dice of the foreground over patches that neither the network nor the policy has seen."""
    patches = batch(count, True, torch.Generator().manual_seed(10_000))
    p = method.task.probabilities(method.task.forward(patches.image, parameters={})).argmax(1)
    y = patches.label[:, 1]
    return float(2 * (p * y).sum() / (p.sum() + y.sum()))
