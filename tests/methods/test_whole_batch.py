# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two ranks with a part of the batch each learn what one rank learns from the whole: policies and augmenters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from method_helpers import Fixed, losses
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.methods.meta_losses import META_LOSSES, meta_loss
from monai_autoaug.policies import Sampled
from monai_autoaug.precision import Precision, sum_over_ranks

SHAPE, STEPS = (8, 8, 8), 3
EVERYTHING, PARTS = slice(0, 4), (slice(0, 2), slice(2, 4))


def rows(batch: Batch, part: slice) -> Batch:
    """Some samples of a batch."""
    given: dict[str, Any] = {
        f.name: getattr(batch, f.name)[part]
        for f in fields(batch)
        if isinstance(getattr(batch, f.name), Tensor) and f.name != "spacing" or f.name == "case"
    }
    return replace(batch, **given)


class Shared(Fixed):
    """This rank's part of batches that are the same everywhere; operations are as a host's workers have drawn them."""

    def __init__(self, part: slice, valid: bool) -> None:
        super().__init__(shape=SHAPE, dtype=torch.float64, everything=valid)
        draw = torch.Generator().manual_seed(5)
        whole = {n: replace(b, extra=None, classes=torch.tensor([0, 1, 1, 0])) for n, b in self.batches.items()}
        whole["train"] = replace(whole["train"], operations=torch.randint(0, 2, (4, 15), generator=draw))
        self.batches = {"train": rows(whole["train"], part), "meta": rows(whole["real"], part)}


class Worth(JointPolicy):
    """Keeps what its samples were worth."""

    def _improve(self, drawn: Sampled) -> None:
        self.worth = [*getattr(self, "worth", []), drawn.values.clone()]
        super()._improve(drawn)


class Still(torch.optim.SGD):
    """Keeps the gradients that it is given."""

    def step(self, closure: Any = None) -> None:
        self.seen = [*getattr(self, "seen", []), *(p.grad.clone() for g in self.param_groups for p in g["params"])]


def task() -> Task:
    torch.manual_seed(0)
    # without batch norm, by which samples see each other
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Tanh(), nn.Conv3d(4, 3, 1)).double()
    optimizer = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9, nesterov=True, weight_decay=1e-3)
    return Task(network, optimizer, losses, Precision("cpu"), steps=20)


def joint(part: slice, options: Mapping[str, Any]) -> dict[str, Any]:
    """What samples are worth, and what the policy and the network become."""
    given = {"warm_up": 0, "update_every": 1, "pool": 2, "test_time": False, "class_of": "sampled"}
    method, streams = Worth(task(), **(given | options)), Shared(part, valid=True)
    for _ in range(STEPS):
        method.step(streams)
    return {
        "worth": torch.cat([torch.cat(_everywhere(w)) for w in method.worth]),
        "logits": method.training.logits.detach(),
        "network": [p.detach() for p in method.task.network.parameters()],
    }


def bilevel(part: slice, options: Mapping[str, Any]) -> dict[str, Any]:
    """The augmenter's gradients."""
    method = methods.build("bilevel", task(), **({"update_every": 1} | options))
    assert isinstance(method, Bilevel)
    assert method.augmenter is not None
    method.augmenter.double()
    still = method.players["augmenter"].optimizer = Still(method.augmenter.parameters(), 1.0)
    draw, size = torch.Generator().manual_seed(7), method.augmenter.sample_noise(4).shape

    def noise(count: int, generator: Any = None) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)[part]

    method.augmenter.sample_noise = noise  # type: ignore[method-assign]
    streams = Shared(part, valid=False)
    for _ in range(STEPS):
        method.step(streams)
    return {"gradients": still.seen, "network": [p.detach() for p in method.task.network.parameters()]}


def _everywhere(x: Tensor) -> list[Tensor]:
    if not dist.is_initialized():
        return [x]
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x)
    return found


def loss_of_uneven_parts(part: slice) -> dict[str, Any]:
    """Three samples and one, the gradient of each rank's logits summed over ranks."""
    batch, found = Shared(EVERYTHING, valid=True).batches["meta"], {}
    batch = replace(batch, label=batch.label * torch.tensor([1.0, 1, 0, 1]).view(4, 1, 1, 1, 1))
    own = part if part == EVERYTHING else (slice(0, 3), slice(3, 4))[dist.get_rank()]
    for kind in META_LOSSES:
        for valid in (None, batch.valid):
            logits = torch.linspace(-2, 2, batch.label.numel()).view(batch.label.shape).double().sin().requires_grad_()
            given = None if valid is None else valid[own]
            loss = meta_loss(logits[own], batch.label[own], given, kind, over_ranks=dist.is_initialized())
            (slope,) = torch.autograd.grad(loss, logits)
            found[f"{kind}, {valid is None}"] = [loss.detach(), sum_over_ranks(slope)]
    return found


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"joint, {kind}": (joint, {"meta_loss": kind}) for kind in META_LOSSES},
    "joint, virtual": (joint, {"look_ahead": "virtual", "derivative": "double_backward"}),
    "bilevel": (bilevel, {}),
    "bilevel, unrolled": (bilevel, {"unroll": 2}),
    "bilevel, jvp": (bilevel, {"derivative": "jvp"}),
}


def everything(part: slice) -> dict[str, Any]:
    found = {name: function(part, options) for name, (function, options) in CASES.items()}
    return found | {"loss": loss_of_uneven_parts(part)}


def _rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    torch.save(everything(PARTS[number]), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one rank with everything, and of each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(folder),), nprocs=2)
    return [everything(EVERYTHING), *(torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2))]


@pytest.mark.parametrize("name", [*CASES, "loss"])
def test_two_ranks_with_a_part_each_are_one_with_the_whole(name: str, found: list[dict[str, Any]]) -> None:
    whole, first, second = (f[name] for f in found)
    assert whole.keys() == first.keys() == second.keys()
    for key, wanted in whole.items():
        tensors = wanted if isinstance(wanted, list) else [wanted]
        assert tensors
        assert any(bool(t.any()) for t in tensors)
        for rank in (first[key], second[key]):
            for got, t in zip(rank if isinstance(rank, list) else [rank], tensors, strict=True):
                scale = float(t.abs().max())
                torch.testing.assert_close(got, t, rtol=1e-4, atol=1e-5 * scale)
        if isinstance(first[key], Tensor):
            assert torch.equal(first[key], second[key])  # to the bit


def test_the_default_policy_has_learned(found: list[dict[str, Any]]) -> None:
    method = JointPolicy(task(), test_time=False)
    assert not torch.allclose(found[0]["joint, both"]["logits"], method.training.logits.detach(), atol=1e-3)
