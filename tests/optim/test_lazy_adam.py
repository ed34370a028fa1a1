# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Adam for logits against torch's, and what it leaves alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from monai_autoaug.errors import ConfigError
from monai_autoaug.optim import LazyAdam


def test_it_is_torchs_adam_where_every_element_has_a_gradient() -> None:
    start = torch.randn(3, 7, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    pairs = [(ours, LazyAdam([ours], 0.05)), (theirs, torch.optim.Adam([theirs], 0.05))]
    for _ in range(20):
        gradient = torch.randn_like(start)
        for p, optimizer in pairs:
            p.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_an_element_goes_on_as_if_the_updates_without_it_had_not_been() -> None:
    """Its value, moments and bias correction are those of its own gradients alone."""
    p, alone = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    both, one = LazyAdam([p], 0.1), LazyAdam([alone], 0.1)
    for k, gradient in enumerate(torch.randn(9).tolist()):
        p.grad = torch.tensor([1.0, gradient if k % 3 == 0 else 0.0])
        before = p.detach().clone()
        both.step()
        if k % 3 == 0:
            alone.grad = torch.tensor([gradient])
            one.step()
        else:
            assert p[1] == before[1]
            assert p[0] != before[0]
    assert torch.equal(p[1:], alone)


def test_its_state_is_restored() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = LazyAdam([p], 0.1)
    p.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    again = torch.nn.Parameter(p.detach().clone())
    resumed = LazyAdam([again], 0.5)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for parameter, o in ((p, optimizer), (again, resumed)):
        parameter.grad = torch.ones(3)
        o.step()
    assert torch.equal(p, again)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1e-8}])
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="LazyAdam"):
        LazyAdam([torch.nn.Parameter(torch.zeros(1))], **options)  # type: ignore[arg-type]
