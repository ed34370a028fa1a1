# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The checked update of every player, and the mean over ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from monai_autoaug.errors import AutoAugError, ConfigError
from monai_autoaug.precision import (
    Precision,
    average_gradients,
    average_over_ranks,
    float32_region,
    rank,
    without_tf32,
    world_size,
)


def linear(value: float = 1.0) -> tuple[nn.Module, torch.optim.SGD]:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network, torch.optim.SGD(network.parameters(), lr=1.0)


def test_a_finite_gradient_is_clipped_and_applied() -> None:
    precision, (network, optimizer) = Precision("cpu"), linear()
    precision.backward(3 * network(torch.ones(1, 1)).sum())
    assert precision.step("network", optimizer, clip=0.5)
    assert float(network.weight) == pytest.approx(0.5)


def test_without_a_clip_the_gradient_is_untouched_to_the_bit() -> None:
    precision, (network, optimizer) = Precision("cpu"), linear()
    x = torch.randn(1, 1)
    precision.backward(network(x).sum())
    before = network.weight.grad.clone()
    precision.step("network", optimizer)
    assert torch.equal(network.weight.grad, before)
    assert torch.equal(network.weight, 1 - before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_is_skipped_counted_and_in_the_end_explained(bad: float) -> None:
    precision, (network, optimizer) = Precision("cpu", max_skipped=3), linear()
    for number in range(1, 4):
        precision.backward(bad * network(torch.ones(1, 1)).sum())
        assert not precision.step("network", optimizer)
        assert precision.skipped["network"] == number
    assert float(network.weight) == 1.0
    precision.backward(bad * network(torch.ones(1, 1)).sum())
    with pytest.raises(AutoAugError, match="gradient of network was not finite in 4 updates in a row"):
        precision.step("network", optimizer)
    again = Precision("cpu")
    again.load_state_dict(precision.state_dict())
    assert again.skipped == precision.skipped


def test_one_good_update_ends_the_row() -> None:
    precision, (network, optimizer) = Precision("cpu", max_skipped=1), linear()
    for _ in range(4):
        for value in (float("nan"), 1.0):
            optimizer.zero_grad()
            precision.backward(value * network(torch.ones(1, 1)).sum())
            precision.step("network", optimizer)
    assert precision.skipped["network"] == 4


def test_one_scaler_serves_all_players_and_each_is_skipped_on_its_own() -> None:
    precision = Precision("cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    (good, good_optimizer), (bad, bad_optimizer), (idle, idle_optimizer) = linear(), linear(), linear()
    x = torch.ones(1, 1)
    assert precision.scale == 1024.0
    precision.backward(0.25 * good(x).sum() + float("inf") * bad(x).sum())
    assert float(good.weight.grad) == 256.0  # scaled
    assert precision.step("good", good_optimizer)
    assert not precision.step("bad", bad_optimizer)
    assert precision.step("idle", idle_optimizer)
    precision.update()
    assert float(good.weight) == 0.75
    assert float(bad.weight) == float(idle.weight) == 1.0
    assert dict(precision.skipped) == {"bad": 1}
    assert precision.scale == 512.0
    again = Precision("cpu", scaler=torch.amp.GradScaler("cpu"))
    again.load_state_dict(precision.state_dict())
    assert again.scale == 512.0


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="precision must be one of"):
        Precision("cpu", "half")
    with pytest.raises(ConfigError, match="float16 training needs a GPU"):
        Precision("cpu", "float16")


def test_autocast_and_its_opposite() -> None:
    a = torch.ones(2, 2)
    with Precision("cpu", "bfloat16").autocast():
        assert (a @ a).dtype == torch.bfloat16
        with float32_region("cpu"):
            assert (a @ a).dtype == torch.float32
    with Precision("cpu").autocast():
        assert (a @ a).dtype == torch.float32


def _two_ranks(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    used, unused, resting = (nn.Parameter(torch.ones(n)) for n in (2, 1, 3))
    used.grad = torch.full((2,), float(number + 1))
    if number == 1:
        unused.grad = torch.ones(1)
    average_gradients([used, resting, unused])
    assert resting.grad is None  # on no rank, so that no optimiser moves it
    mean = average_over_ranks(torch.tensor(float(number)))
    torch.save([rank(), world_size(), used.grad, unused.grad, mean], os.path.join(folder, f"{number}.pt"))
    dist.destroy_process_group()


def test_gradients_are_averaged_over_ranks(tmp_path: Path) -> None:
    mp.spawn(_two_ranks, (str(tmp_path),), nprocs=2)
    for number in range(2):
        mine, size, used, unused, mean = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert (mine, size) == (number, 2)
        assert torch.equal(used, torch.tensor([1.5, 1.5]))
        assert torch.equal(unused, torch.tensor([0.5]))  # rank 0 had none
        assert float(mean) == 0.5


def switches() -> list[object]:
    """Torch's older ones, and the newer ones behind them where there are any."""
    older = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
    newer = [torch.backends.cuda.matmul, torch.backends.cudnn.conv] if torch.__version__ >= "2.9" else []
    return older + [place.fp32_precision for place in newer]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_tf32_is_off_within_and_afterwards_as_before(
    matmul: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", fails)  # either
    torch.set_float32_matmul_precision(matmul)
    before = switches()
    try:
        with without_tf32():
            assert switches()[:2] == ["highest", False]
            assert not torch.backends.cuda.matmul.allow_tf32
            if fails:
                raise KeyError
    except KeyError:
        pass
    finally:
        after = switches()
        torch.set_float32_matmul_precision("highest")
    assert after == before


@pytest.mark.skipif(torch.__version__ < "2.9", reason="there are the older switches only")
def test_tf32_where_only_the_newer_switches_are_set() -> None:
    """Reading the older ones fails then."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    matmul.fp32_precision = convolution.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        with without_tf32():
            assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_skips_like_a_gradient(bad: float) -> None:
    precision, (network, optimizer) = Precision("cpu"), linear()
    loss = network(torch.ones(1, 1)).sum()
    precision.backward(loss)
    assert not precision.step("network", optimizer, loss=loss.detach() + bad)
    assert float(network.weight) == 1.0
    assert dict(precision.skipped) == {"network": 1}
    precision.backward(network(torch.ones(1, 1)).sum())
    assert precision.step("network", optimizer, loss=loss.detach())
    assert float(network.weight) == 0.0


def test_a_gradient_that_no_backward_found_is_checked_too() -> None:
    precision, (network, optimizer) = Precision("cpu", max_skipped=1), linear()
    parameter = next(network.parameters())
    assert not precision.descend("policy", optimizer, parameter, torch.full((1, 1), torch.nan))
    assert dict(precision.skipped) == {"policy": 1}
    assert precision.descend("policy", optimizer, parameter, torch.ones(1, 1))
    assert float(parameter) == 0.0
    assert parameter.grad is None
    assert not precision.descend("policy", optimizer, parameter, torch.full((1, 1), torch.inf))
    with pytest.raises(AutoAugError, match="gradient of policy was not finite in 2 updates in a row"):
        precision.descend("policy", optimizer, parameter, torch.full((1, 1), torch.inf))
