# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The derivative of a later loss with respect to sample weights: against autograd through the real update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.networks.nets import UNet
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn
from torch.autograd import forward_ad

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import with_parameters
from monai_autoaug.nnunet.losses import soft_losses
from monai_autoaug.optim import look_ahead, next_parameters, per_sample_hypergradient


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.SiLU(), nn.Conv3d(4, 2, 1)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv": conv_net,
    "monai_unet": lambda: UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, act="swish"),
    "nnunet": lambda: PlainConvUNet(
        1, 2, (4, 8), nn.Conv3d, 3, (1, 2), (1, 1), 2, (1,), conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.SiLU, deep_supervision=False,
    ),
}  # fmt: skip


class Problem:
    """A network, a training batch and a validation batch; losses as functions of parameters."""

    def __init__(self, make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.network = make().to(dtype)
        self.parameters = dict(self.network.named_parameters())
        self.x, self.x_val = torch.randn(4, 1, 8, 8, 8, dtype=dtype), torch.randn(2, 1, 8, 8, 8, dtype=dtype)
        self.y, self.y_val = torch.randint(2, (4, 8, 8, 8)), torch.randint(2, (2, 8, 8, 8))

    def losses(self, parameters: Any) -> Tensor:
        with with_parameters(self.network, parameters):
            output = self.network(self.x)
        return nn.functional.cross_entropy(output, self.y, reduction="none").flatten(1).mean(1)

    def validation(self, parameters: Any) -> Tensor:
        with with_parameters(self.network, parameters):
            return nn.functional.cross_entropy(self.network(self.x_val), self.y_val)

    def through_the_update(self, lr: float) -> Tensor:
        """Reference: differentiate L_val(theta - lr * grad sum_i w_i l_i / n) with respect to w by autograd."""
        weights = torch.ones(4, dtype=self.x.dtype, requires_grad=True)
        total = (weights * self.losses(self.parameters)).mean()
        names = list(self.parameters)
        g = torch.autograd.grad(total, list(self.parameters.values()), create_graph=True, allow_unused=True)
        moved = {
            n: self.parameters[n] if d is None else self.parameters[n] - lr * d for n, d in zip(names, g, strict=True)
        }
        return torch.autograd.grad(self.validation(moved), weights)[0]

    def direction(self, optimizer: torch.optim.Optimizer, n: int) -> dict[str, Tensor]:
        """U of the optimiser's next step, over the number of samples."""
        values = list(self.parameters.values())
        g = torch.autograd.grad(self.losses(self.parameters).mean(), values, allow_unused=True)
        g = tuple(torch.zeros_like(p) if d is None else d for d, p in zip(g, values, strict=True))
        ahead = {k: p.requires_grad_() for k, p in zip(self.parameters, next_parameters(optimizer, g), strict=True)}
        v = torch.autograd.grad(self.validation(ahead), list(ahead.values()), allow_unused=True)
        v = tuple(torch.zeros_like(p) if d is None else d for d, p in zip(v, values, strict=True))
        return {k: u / n for k, u in zip(self.parameters, look_ahead(optimizer, g, v), strict=True)}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    ("mode", "dtype", "tolerance"),
    [
        ("double_backward", torch.float64, 1e-10), ("jvp", torch.float64, 1e-10),
        ("finite_difference", torch.float64, 1e-4), ("double_backward", torch.float32, 1e-5),
        ("jvp", torch.float32, 1e-5), ("finite_difference", torch.float32, 2e-2),
    ],
)  # fmt: skip
def test_every_mode_is_the_derivative_through_the_update(
    make: Callable[[], nn.Module], mode: str, dtype: torch.dtype, tolerance: float
) -> None:
    expected = Problem(make).through_the_update(0.1)
    problem = Problem(make)
    if dtype is torch.float32:
        problem.network.float()
        problem.parameters = dict(problem.network.named_parameters())
        problem.x, problem.x_val = problem.x.float(), problem.x_val.float()
    optimizer = torch.optim.SGD(problem.parameters.values(), 0.1)
    before = copy.deepcopy(problem.network.state_dict())
    u = problem.direction(optimizer, 4)
    got = per_sample_hypergradient(problem.losses, problem.parameters, u, mode=mode)
    assert got.dtype == dtype
    assert not got.requires_grad
    assert float((got.double() - expected).norm() / expected.norm()) < tolerance
    assert all(torch.equal(t, before[k]) for k, t in problem.network.state_dict().items())
    assert not optimizer.state


def test_nesterov_scales_the_direction() -> None:
    """The same derivative times (1 + momentum), at the real theta* (joint_policy.md, check 9)."""
    problem = Problem(conv_net)
    plain = problem.direction(torch.optim.SGD(problem.parameters.values(), 0.1), 4)
    # from rest Nesterov's first step is that of a (1 + momentum) times larger rate
    nesterov = problem.direction(
        torch.optim.SGD(problem.parameters.values(), 0.1 / 1.9, momentum=0.9, nesterov=True), 4
    )
    for name, u in plain.items():
        assert torch.allclose(nesterov[name], u, rtol=1e-9, atol=1e-15)


def test_forward_mode_works_under_autocast() -> None:
    problem = Problem(conv_net, torch.float32)
    u = problem.direction(torch.optim.SGD(problem.parameters.values(), 0.1), 4)
    exact = per_sample_hypergradient(problem.losses, problem.parameters, u)

    def reduced(parameters: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem.losses(parameters).float()

    got = per_sample_hypergradient(reduced, problem.parameters, u)
    centred = [x - x.mean() for x in (got, exact)]
    assert float(nn.functional.cosine_similarity(*centred, dim=0)) > 0.9


@pytest.mark.parametrize("several", [False, True])
def test_a_loss_that_is_linearised_around_its_batch(several: bool) -> None:
    """Batch Dice: sums over the batch are constants, also to a finite difference; with deep supervision too."""
    problem = Problem(conv_net)
    host = MemoryEfficientSoftDiceLoss(apply_nonlin=softmax_helper_dim1, batch_dice=True, do_bg=True, ddp=False)
    batch_dice = soft_losses(DeepSupervisionWrapper(host, [0.7, 0.3]) if several else host)
    label = nn.functional.one_hot(problem.y, 2).movedim(-1, 1).to(problem.x)

    def network(parameters: Any) -> Any:
        with with_parameters(problem.network, parameters):
            output = problem.network(problem.x)
        return [output, nn.functional.avg_pool3d(output, 2)] if several else output

    def losses(output: Any) -> Tensor:
        return batch_dice(output, label, None)

    u = problem.direction(torch.optim.SGD(problem.parameters.values(), 0.1), 4)
    modes = ("jvp", "double_backward", "finite_difference")
    a, b, c = (per_sample_hypergradient(losses, problem.parameters, u, mode=m, network=network) for m in modes)
    assert torch.allclose(a, b, rtol=1e-5, atol=0)
    assert torch.allclose(a, c, rtol=1e-3, atol=0)
    naive = per_sample_hypergradient(lambda p: losses(network(p)), problem.parameters, u, mode="finite_difference")
    assert not torch.allclose(a, naive, rtol=1e-2, atol=0)


@pytest.mark.parametrize("apart", [False, True])
def test_differences_are_taken_in_full_float32(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 would leave their rounding; what is not subtracted runs as it always does."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[tuple[str, bool]] = []
    last = 5

    def output(parameters: Any) -> Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        if len(seen) > last:
            raise KeyError  # nothing stays switched off
        values: Tensor = parameters["w"].square()
        return values[:, None] if apart else values

    def differentiate() -> Tensor:
        given, direction = {"w": torch.tensor([2.0, 0.5])}, {"w": torch.ones(2)}
        if apart:
            return per_sample_hypergradient(
                lambda x: x[:, 0], given, direction, mode="finite_difference", network=output
            )
        return per_sample_hypergradient(output, given, direction, mode="finite_difference")

    torch.set_float32_matmul_precision("high")
    try:
        differentiate()
        last = len(seen) + 1
        with pytest.raises(KeyError):
            differentiate()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    here = [("high", True)] if apart else []
    assert seen == [*here, *[("highest", False)] * 4, *here, *[("highest", False)] * (1 if apart else 2)]


def test_no_direction_no_derivative() -> None:
    problem = Problem(conv_net)
    still = {n: torch.zeros_like(p) for n, p in problem.parameters.items()}
    for mode in ("jvp", "double_backward", "finite_difference"):
        got = per_sample_hypergradient(problem.losses, problem.parameters, still, mode=mode)
        assert torch.equal(got, torch.zeros_like(got))
        network = {"network": lambda p: p["0.weight"].sum((1, 2, 3, 4))}
        got = per_sample_hypergradient(lambda x: x, problem.parameters, still, mode=mode, **network)
        assert torch.equal(got, torch.zeros_like(got))
    with pytest.raises(ConfigError, match="no parameters"):
        per_sample_hypergradient(problem.losses, problem.parameters, {"stranger": torch.zeros(1)})
    with pytest.raises(ConfigError, match="mode"):
        per_sample_hypergradient(problem.losses, problem.parameters, still, mode="magic")


def test_no_mode_differentiates_a_forward_derivative_backwards() -> None:
    """Reverse over forward is silently wrong through norm layers: while duals are alive, no graph may be made."""
    problem = Problem(conv_net)
    u = problem.direction(torch.optim.SGD(problem.parameters.values(), 0.1), 4)

    seen: list[bool] = []

    def losses(parameters: Any) -> Tensor:
        duals = forward_ad._current_level >= 0
        assert not (duals and torch.is_grad_enabled())
        seen.append(duals)
        return problem.losses(parameters)

    for mode in ("jvp", "double_backward", "finite_difference"):
        per_sample_hypergradient(losses, problem.parameters, u, mode=mode)
    assert True in seen
