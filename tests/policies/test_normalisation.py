# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Eqs. 10 and 11 against the official implementation of paper 002, and the whole way from a batch to the logits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_autoaug.networks import with_parameters
from monai_autoaug.optim import per_sample_hypergradient
from monai_autoaug.policies import Pool, Sampled, centre_by_class, per_operation
from monai_autoaug.reading import check_content

VECTORS = Path(__file__).parents[1] / "data" / "vectors" / "meta_gradient.npz"
SIZES = (6, 5, 5, 5, 2, 2, 2, 4, 4, 4, 4, 4, 7, 4, 4)  # operations of each cascade, with the identity


@pytest.fixture(scope="module")
def v() -> dict[str, Any]:
    with np.load(VECTORS) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def logit_gradient(h: Tensor, classes: Tensor, operations: Tensor, weights: Tensor, wanted: int) -> Tensor:
    """What reaches the 62 logits of one class's policy; ``weights`` (n, 62) are the weights' own derivatives."""
    share = per_operation(h, classes, operations)
    ends = list(accumulate(SIZES))
    parts = [
        (share[:, k, None] * weights[:, end - size : end])[classes == wanted].sum(0)
        for k, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("form", ["jvp", "fd"])
def test_class_centring_is_the_official_one(v: dict[str, Any], form: str) -> None:
    """Check 6 of joint_policy.md."""
    classes = v["hvp_cls"].long()
    expected = v["hvp_h" if form == "jvp" else "hvp_h_fd"].double()
    got = centre_by_class(v[f"hvp_g_{form}"].double(), classes)
    assert torch.allclose(got, expected, atol=1e-9, rtol=0)
    for c in (0, 1):
        assert float(got[classes == c].sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_gradient_of_all_logits_is_the_official_one(v: dict[str, Any], wanted: int) -> None:
    """Check 7: against the exact derivative, and against what the official code gave with its finite difference."""
    classes, operations = v["hvp_cls"].long(), v[f"hvp_aug{wanted}"].long()
    for h, expected, tolerance in (("hvp_h", "hvp_exp", 1e-5), ("hvp_h_fd", "hvp_out", 1e-3)):
        got = logit_gradient(v[h].double(), classes, operations, v["hvp_dW"].double(), wanted)
        reference = v[f"{expected}{wanted}"].double()
        assert float((got - reference).abs().max() / reference.abs().max()) < tolerance


@pytest.mark.parametrize(("mode", "tolerance"), [("jvp", 1e-10), ("double_backward", 1e-10)])
def test_from_the_batch_to_the_hypergradients(v: dict[str, Any], mode: str, tolerance: float) -> None:
    """The official network and batch: cross-entropy plus soft Dice of each sample, derived along ``hvp_vec``."""
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(), nn.Conv3d(4, 2, 1)
    )
    sizes = [p.numel() for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]

    def named(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.double().split(sizes)
        return {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}

    network.double()

    def losses(parameters: Any) -> Tensor:
        with with_parameters(network, parameters):
            output = network(v["hvp_x"].double())
        target = v["hvp_t"].long()
        entropy = nn.functional.cross_entropy(output, target, reduction="none").flatten(1).mean(1)
        p, t = output.softmax(1)[:, 1].flatten(1), target.double().flatten(1)
        return entropy - (2 * (p * t).sum(1) + 1e-5) / (p.sum(1) + t.sum(1) + 1e-5)

    u = {name: part / len(v["hvp_cls"]) for name, part in named(v["hvp_vec"]).items()}
    got = per_sample_hypergradient(losses, named(v["hvp_net_state"]), u, mode=mode)
    expected = v["hvp_g_jvp"].double()
    assert float((got - expected).abs().max() / expected.abs().max()) < tolerance


def batch(values: list[float], classes: list[int]) -> Sampled:
    n = len(values)
    return Sampled(torch.tensor(values), torch.tensor(classes), torch.arange(n).view(n, 1).expand(n, 15))


def test_a_pool_waits_until_a_class_can_be_compared() -> None:
    """Batch of two, one of each class: without pooling Eq. 10 leaves exactly nothing."""
    pool = Pool(4)
    assert not bool(centre_by_class(torch.tensor([1.0, 2.0]), torch.tensor([0, 1])).any())
    for i in range(3):
        assert pool.add(batch([float(i), 10.0 + i], [0, 1])) is None
    ready = pool.add(batch([3.0, 13.0], [0, 1]))
    assert ready is not None
    assert ready.values.tolist() == [0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0]
    centred = centre_by_class(ready.values, ready.classes)
    assert bool(centred.any())
    assert float(centred.sum()) == pytest.approx(0)
    assert pool.state_dict() == {}


def test_a_rare_class_waits_alone_and_survives_a_checkpoint() -> None:
    pool = Pool(4)
    ready = pool.add(batch([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 0, 1]))
    assert ready is not None
    assert ready.classes.tolist() == [0, 0, 0, 0]
    resumed = Pool(4)
    resumed.load_state_dict(pool.state_dict())
    for p in (pool, resumed):
        ready = p.add(batch([6.0, 7.0, 8.0], [1, 1, 1]))
        assert ready is not None
        assert ready.values.tolist() == [5.0, 6.0, 7.0, 8.0]
    fresh = Pool()
    fresh.load_state_dict({})
    assert fresh.state_dict() == {}


def test_samples_of_a_class_that_is_too_rare_are_forgotten() -> None:
    """What they were worth is out of date; a resumed run forgets them in the same update."""
    pool = Pool(2, age=3)
    assert pool.add(batch([1.0], [1])) is None
    resumed = Pool(2, age=3)
    resumed.load_state_dict(pool.state_dict())
    for p in (pool, resumed):
        for _ in range(2):
            p.add(batch([5.0], [0]))
        assert p.add(batch([9.0], [1])) is None  # the first one would have made two
        ready = p.add(batch([8.0], [1]))
        assert ready is not None
        assert ready.values.tolist() == [9.0, 8.0]


@pytest.mark.parametrize("plain", [[torch.nan] * 3, [0.5, torch.nan, torch.inf], [0.5, 1.5, 2.5]])
def test_the_state_of_samples_that_wait_is_finite_and_says_what_is_known(plain: list[float]) -> None:
    """Nothing that isn't finite is loaded from a file, and what was not compared is no 0."""
    waiting = replace(batch([1.0, 2.0, 3.0], [0, 0, 0]), plain=torch.tensor(plain))
    pool, resumed, older = Pool(4), Pool(4), Pool(4)
    assert pool.add(waiting) is None
    state = pool.state_dict()
    check_content(state)
    resumed.load_state_dict(state)
    older.load_state_dict({k: v for k, v in state.items() if k != "known"} | {"plain": torch.tensor(plain)})
    wanted = [p for p in plain if math.isfinite(p)]
    for p in (pool, resumed, older):
        ready = p.add(batch([4.0], [0]))
        assert ready is not None
        assert ready.values.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert ready.plain[torch.isfinite(ready.plain)].tolist() == wanted
