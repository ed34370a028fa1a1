# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A gradient scaler, as float16 needs one, changes nothing of what any player learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bilevel_helpers
import general_helpers
import pytest
import task_driven_helpers
import torch
from general_helpers import changed, weights
from method_helpers import Fixed

from monai_autoaug.methods import Method

SHAPE = (8, 12)
MADE: dict[str, tuple[Callable[[], Method], Callable[[], Any]]] = {
    "bilevel": (
        lambda: bilevel_helpers.build(dims=2, transformations="affine", unroll=2, update_every=2, steps=None),
        lambda: bilevel_helpers.Streams(shape=SHAPE),
    ),
    "general_adversarial": (
        lambda: general_helpers.moved(general_helpers.make(spatial_dims=2)), lambda: Fixed(shape=SHAPE),
    ),
    "task_driven": (
        lambda: task_driven_helpers.moved(task_driven_helpers.make()),
        lambda: task_driven_helpers.Streams(shape=SHAPE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_gradients_come_out_as_large_as_without(name: str) -> None:
    """Plain gradient descent, whose step is as large as the gradient."""
    make, streams = MADE[name]
    ends = []
    for scale in (None, 2.0**10):
        method, batches = make(), streams()
        for player in method.players.values():
            player.optimizer = torch.optim.SGD(player.module.parameters(), 1.0)
        if scale is not None:
            method.task.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        modules = [method.task.network, *(p.module for p in method.players.values())]
        before = [weights(m) for m in modules]
        for _ in range(4):
            method.step(batches)
        assert not method.task.precision.skipped
        assert all(changed(b, m) for b, m in zip(before, modules, strict=True))
        ends.append(weights(*modules))
    for key, value in ends[0].items():
        assert torch.allclose(value, ends[1][key], rtol=1e-4, atol=1e-5), key
