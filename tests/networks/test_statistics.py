# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Running statistics come back after a step that was a bad one, and only those that it has spoilt."""

from __future__ import annotations

import torch
from torch import nn

from monai_autoaug.networks import KeptStatistics


class Masked(nn.Module):
    """A buffer that is infinite on purpose, as masks of attention are."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2).double(), nn.InstanceNorm1d(2)])
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_only_what_was_spoilt_comes_back() -> None:
    network = Masked()
    kept = KeptStatistics(network)
    first, second = network.norms[0], network.norms[1]
    first(torch.randn(4, 2))
    wanted = first.running_mean.clone()
    kept.keep()
    second(torch.randn(4, 2).double())
    moved = second.running_mean.clone()
    kept.keep()  # of the same step: the beginning counts
    first(torch.full((4, 2), torch.nan))
    kept.restore()
    assert torch.equal(first.running_mean, wanted)
    assert torch.equal(second.running_mean, moved)
    assert second.running_mean.dtype == torch.float64
    assert network.mask.tolist() == [0.0, -torch.inf]


def test_each_step_begins_anew() -> None:
    norm = nn.BatchNorm1d(2)
    kept = KeptStatistics(norm)
    kept.keep()
    norm(torch.randn(4, 2))
    kept.forget()
    kept.keep()
    wanted = norm.running_mean.clone()
    norm(torch.full((4, 2), torch.inf))
    kept.restore()
    assert torch.equal(norm.running_mean, wanted)
    kept.restore()  # nothing is kept: nothing happens
    assert torch.equal(norm.running_mean, wanted)


def test_a_network_without_buffers_costs_nothing() -> None:
    linear = nn.Linear(1, 1)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    kept = KeptStatistics(linear)
    kept.keep()
    kept.restore()
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
