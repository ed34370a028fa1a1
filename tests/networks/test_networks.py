# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Gradient reversal, discriminator and auxiliary norms."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.networks import (
    add_auxiliary_norms,
    auxiliary_state,
    load_auxiliary_state,
    norm_groups,
    reverse_gradient,
)
from monai_autoaug.networks.discriminators import Discriminator, adversarial_loss, discriminate_frozen
from monai_autoaug.networks.gradient_reversal import meter_gradient


def unet(norm: object = "INSTANCE") -> nn.Module:
    return UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=1, norm=norm)


NETWORKS = {
    "unet_instance": unet,
    "unet_instance_affine": lambda: unet(("INSTANCE", {"affine": True})),
    "unet_batch": lambda: unet("BATCH"),
    "segresnet": lambda: SegResNet(3, 8, 1, 3),
}


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_reversal_is_the_identity_forwards_and_minus_scale_backwards(scale: float) -> None:
    x = torch.randn(5, requires_grad=True)
    y = reverse_gradient(x, scale)
    assert torch.equal(y, x)
    y.backward(torch.arange(5.0))
    assert torch.equal(x.grad, -scale * torch.arange(5.0))


def test_reversal_scales_samples_one_by_one() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    reverse_gradient(x, torch.tensor([[1.0], [3.0]])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[-1.0] * 3, [-3.0] * 3]))


def test_meters_add_in_quadrature() -> None:
    a, b, norm = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(())
    one = torch.ones(())
    (3 * meter_gradient(a, norm, one) + 4 * meter_gradient(b, norm, one)).sum().backward()
    assert float(norm) == pytest.approx(5)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("size", [17.0, 200.0, 1e4])
def test_the_adversarial_loss_never_overflows(real: bool, size: float) -> None:
    wrong = torch.tensor([-size if real else size], requires_grad=True)
    loss = adversarial_loss(wrong, real)
    loss.backward()
    assert float(loss) == pytest.approx(size, rel=1e-6)
    assert abs(float(wrong.grad)) == pytest.approx(1, abs=1e-6)
    right = torch.tensor([size if real else -size], requires_grad=True)
    loss = adversarial_loss(right, real)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert bool(torch.isfinite(right.grad).all())


def test_the_adversarial_loss_is_binary_cross_entropy() -> None:
    logits = torch.randn(20)
    for real in (True, False):
        target = torch.full((20,), float(real))
        expected = nn.functional.binary_cross_entropy_with_logits(logits, target)
        assert torch.allclose(adversarial_loss(logits, real), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 56, 40), (35, 50, 36), (16, 16, 16), (9, 30)])
@pytest.mark.parametrize("norm", ["instance", "batch", None])
def test_discriminator_sizes(shape: tuple[int, ...], norm: str | None) -> None:
    network = Discriminator(len(shape), 2, norm=norm, halve=True)
    assert network(torch.randn(1, 2, *shape)).shape == (1,)


def test_a_frozen_discriminator_gets_no_gradient_and_keeps_its_statistics() -> None:
    network = Discriminator(3, 1, norm="batch")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x = torch.randn(2, 1, 32, 32, 32, requires_grad=True)
    discriminate_frozen(network, x).sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_the_deployed_network_is_the_plain_one(make: object) -> None:
    torch.manual_seed(0)
    plain = make()  # type: ignore[operator]
    network = add_auxiliary_norms(copy.deepcopy(plain))
    x = torch.randn(4, 1, 16, 16, 16)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        with norm_groups(network, torch.tensor([0, 1, 2, 3])):
            network(x).square().mean().backward()
        optimizer.step()
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(x), plain.eval()(x))
    with torch.no_grad():  # the auxiliary groups have no say in what is deployed
        for tensor in _auxiliary(network).values():
            tensor.fill_(7.0)
    with norm_groups(network, torch.tensor([0, 1, 2, 3])):
        assert torch.equal(network(x), plain(x))
    network.load_state_dict(plain.state_dict())
    pickle.loads(pickle.dumps(network))  # noqa: S301  # our own object


def _auxiliary(network: nn.Module) -> dict[str, torch.Tensor]:
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    return {n: t for n, t in tensors.items() if "auxiliary_" in n}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_groups_do_not_touch_each_other(make: object) -> None:
    torch.manual_seed(0)
    network = add_auxiliary_norms(make())  # type: ignore[operator]
    clean_only = copy.deepcopy(network)
    x = torch.randn(4, 1, 16, 16, 16)
    group = torch.tensor([2, 0, 3, 0])
    with norm_groups(network, group):
        mixed = network(x)
    alone = clean_only(x[group == 0])
    assert torch.allclose(mixed[group == 0], alone, atol=1e-5)
    for (name, a), (_, b) in zip(network.named_buffers(), clean_only.named_buffers(), strict=True):
        if "auxiliary" not in name:
            assert torch.equal(a, b), name
        else:  # groups 2 and 3 have seen samples, group 1 has not
            assert torch.equal(a[0], b[0])
            assert not torch.equal(a[1], b[1])
    mixed[2].square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith(("auxiliary_weight", "auxiliary_bias")) and parameter.grad is not None:
            assert float(parameter.grad[:2].abs().sum()) == 0
    norms = [m for m in network.modules() if hasattr(m, "auxiliary_weight")]
    assert all(m.weight is None or m.weight.grad is None or float(m.weight.grad.abs().sum()) == 0 for m in norms)
    assert any(float(m.auxiliary_weight.grad[2].abs().sum()) > 0 for m in norms if m.auxiliary_weight.grad is not None)


def test_auxiliary_state_round_trip_and_refusals() -> None:
    network = add_auxiliary_norms(unet("BATCH"))
    with norm_groups(network, torch.tensor([1, 2, 3, 0])):
        network(torch.randn(4, 1, 16, 16, 16))
    state = auxiliary_state(network)
    other = add_auxiliary_norms(unet("BATCH"))
    load_auxiliary_state(other, state)
    assert all(torch.equal(v, auxiliary_state(other)[k]) for k, v in state.items())
    with pytest.raises(CheckpointError):
        load_auxiliary_state(unet("BATCH"), state)
    with pytest.raises(ConfigError, match="no batch, instance or group norm"):
        add_auxiliary_norms(nn.Sequential(nn.Conv3d(1, 1, 1)))
    with pytest.raises(ConfigError, match="running statistics"):
        add_auxiliary_norms(nn.InstanceNorm3d(2, track_running_stats=True))


def test_loading_weights_makes_every_group_start_from_them() -> None:
    net = add_auxiliary_norms(nn.Sequential(nn.BatchNorm3d(2), nn.InstanceNorm3d(2, affine=True)))
    state = {k: torch.rand_like(v.float()).to(v.dtype) + 1 for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    for layer, keys in ((net[0], ("weight", "bias", "mean", "variance")), (net[1], ("weight", "bias"))):
        for key in keys:
            main = {"mean": "running_mean", "variance": "running_var"}.get(key, key)
            groups = getattr(layer, f"auxiliary_{key}")
            assert torch.equal(groups, getattr(layer, main).expand(3, -1)), key


def test_groups_in_training_outlive_a_swap_of_weights() -> None:
    """An average of weights is loaded for a validation and taken back; and a checkpoint may restore groups first."""
    net = add_auxiliary_norms(nn.Sequential(nn.BatchNorm3d(2)))
    with norm_groups(net, torch.tensor([0, 1])):
        net(torch.randn(2, 2, 4, 4, 4))
    trained = auxiliary_state(net)
    net.load_state_dict({k: torch.zeros_like(v) for k, v in net.state_dict().items()})
    assert all(torch.equal(t, trained[k]) for k, t in auxiliary_state(net).items())
    other = add_auxiliary_norms(nn.Sequential(nn.BatchNorm3d(2)))
    load_auxiliary_state(other, trained)
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(t, trained[k]) for k, t in auxiliary_state(other).items())


def test_a_group_of_one_voxel_is_normalised_by_running_statistics() -> None:
    """A deep level may be one voxel large: alone in its group, a sample has no variance of its own."""
    net = add_auxiliary_norms(nn.Sequential(nn.BatchNorm3d(2)))
    x = torch.randn(4, 2, 1, 1, 1)
    with norm_groups(net, torch.arange(4)):
        out = net(x)
    assert torch.allclose(out, x, atol=1e-4)  # fresh statistics: mean 0, variance 1
    assert torch.equal(net[0].running_mean, torch.zeros(2))
    with norm_groups(net, torch.tensor([0, 0, 1, 1])):
        assert not torch.allclose(net(x), x, atol=1e-2)  # two samples have
