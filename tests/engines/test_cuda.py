# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What only a GPU can show: float16 with one scaler, and random states of the device in a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from engine_helpers import SIZE, loader, loss, network, record
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism

from monai_autoaug import methods
from monai_autoaug.engines import AutoAugTrainer, TestTimePolicyInferer
from monai_autoaug.engines.random_states import random_states, restore_random_states
from monai_autoaug.policies import TestTimePolicy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_of(kind: type, **options: object) -> list[float]:
    set_determinism(seed=5)
    net = network().cuda()
    engine = kind("cuda", 3, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(), amp=True, **options)
    losses: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    engine.run()
    set_determinism(seed=None)
    return losses


def test_none_follows_supervised_trainer_in_float16() -> None:
    ours = losses_of(AutoAugTrainer, method="none")
    assert ours == pytest.approx(losses_of(SupervisedTrainer), rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adversarial_in_mixed_precision(dtype: torch.dtype) -> None:
    net = methods.prepare("adversarial", network().cuda())
    engine = AutoAugTrainer("cuda", 2, loader(batch_size=4), net, torch.optim.SGD(net.parameters(), 0.1), loss(),
                            amp=True, amp_kwargs={"dtype": dtype})  # fmt: skip
    rows = record(engine)
    engine.run()
    assert (engine.scaler is not None) == (dtype is torch.float16)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    engine.autoaug_state.load_state_dict(engine.autoaug_state.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_joint_policies_in_mixed_precision(dtype: torch.dtype) -> None:
    """Probes in float32 between backward and update of a scaled gradient."""
    net, data = network().cuda(), loader(batch_size=4)
    engine = AutoAugTrainer(
        "cuda", 2, data, net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), loss(), method="joint_policy",
        method_options={"warm_up": 0, "update_every": 1, "views": 20}, meta_data_loader=loader(batch_size=4),
        patch_size=SIZE, amp=True, amp_kwargs={"dtype": dtype},
    )  # fmt: skip
    rows = record(engine)
    engine.run()
    assert any("view_loss" in row for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    engine.autoaug_state.load_state_dict(engine.autoaug_state.state_dict())


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_views_of_a_volume_on_the_gpu(device: str) -> None:
    """All 84, also where the windows of one are put together in main memory."""
    net, policy = network().cuda().eval(), TestTimePolicy.preset("uniform", z=84)
    volume = torch.randn(1, 1, 20, 16, 24)
    windows = SlidingWindowInferer((16, 16, 16), 4, sw_device="cuda", device=device)
    with torch.no_grad():
        on_gpu = TestTimePolicyInferer(windows, policy, views_at_once=4)(volume.cuda(), net)
        on_cpu = TestTimePolicyInferer(SlidingWindowInferer((16, 16, 16), 4), policy)(volume, net.cpu())
    assert on_gpu.device.type == device
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_random_state_of_the_device_comes_back() -> None:
    states = random_states()
    first = torch.rand(3, device="cuda")
    restore_random_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), first)
