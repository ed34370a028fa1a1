# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A network with other parameters than its own is itself again afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import frozen, with_parameters


def nnunet_network() -> nn.Module:
    """It holds every convolution under two names, and the whole encoder under two more."""
    torch.manual_seed(0)
    return PlainConvUNet(
        1, 2, (4, 8), nn.Conv3d, 3, (1, 2), (1, 1), 2, (1,), conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, deep_supervision=False,
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_shared_layers_compute_with_the_given_parameters_and_get_their_own_back(fails: bool) -> None:
    network, other = nnunet_network(), nnunet_network()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    kept, own = copy.deepcopy(network.state_dict()), dict(network.named_parameters())
    x = torch.randn(2, 1, 8, 8, 8)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    try:
        with with_parameters(network, given):
            out = network(x)
            if fails:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert fails
    else:
        assert torch.equal(out, other(x))
        out.sum().backward()
        assert given["encoder.stages.0.0.convs.0.conv.weight"].grad is not None
    assert all(torch.equal(t, kept[k]) for k, t in network.state_dict().items())
    assert all(p is own[name] for name, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())


def test_what_does_not_fit_is_refused() -> None:
    network = nnunet_network()
    with pytest.raises(ConfigError, match="no such parameter"), with_parameters(network, {"head": torch.zeros(1)}):
        pass
    with (
        pytest.raises(ConfigError, match="its own is"),
        with_parameters(network, {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(1)}),
    ):
        pass


def test_a_frozen_network_is_deterministic_and_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.Dropout3d(0.5), nn.InstanceNorm3d(3, affine=True))
    net[1].eval()  # a user has frozen one of them for good
    x, kept = torch.randn(4, 1, 6, 6, 6), copy.deepcopy(net.state_dict())
    with frozen(net):
        whole, again = net(x), net(x)
        one = net(x[:1])
    assert torch.equal(whole, again)
    assert torch.allclose(whole[:1], one, atol=1e-6)  # samples don't depend on each other
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(t, kept[k]) for k, t in net.state_dict().items())
