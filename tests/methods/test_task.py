# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a host owns: running its network with other parameters leaves it untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from method_helpers import losses, unet
from torch import nn

from monai_autoaug.methods import Task
from monai_autoaug.precision import Precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_forward_with_other_parameters_has_no_side_effects(precision: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(unet("BATCH"), nn.Dropout(0.5))

    def compiled(_: object) -> object:
        raise AssertionError("only the plain network runs with other parameters")

    task = Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu", precision), call=compiled)
    image, extra = torch.randn(2, 1, 8, 8, 8), None
    other = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in network.named_parameters()}
    kept, numbers = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    output = task.forward(image, extra, parameters=other)
    assert output.dtype == torch.float32
    assert torch.equal(output, task.forward(image, extra, parameters=other))
    assert all(torch.equal(t, kept[k]) for k, t in network.state_dict().items())
    assert torch.equal(numbers, torch.random.get_rng_state())
    reference = copy.deepcopy(network)
    reference.load_state_dict(other, strict=False)
    assert torch.allclose(reference.eval()(image), output, atol=1e-6)
