# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The hypergradient of a real training against replayed ones, and what the augmenter's updates leave untouched."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from bilevel_helpers import Still, Streams, build, same, smooth, theta, weights
from method_helpers import losses
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.methods.parts import transform

SHAPE = (8, 8, 8)
OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "heavy_ball": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2),
}


class Moment:
    """A method just before a step."""

    def __init__(self, method: Bilevel) -> None:
        assert method.augmenter is not None
        self.network = deepcopy(method.task.network)
        self.optimizer = deepcopy(method.task.optimizer.state_dict())
        self.augmenter = deepcopy(method.augmenter)
        self.noise = torch.Generator().manual_seed(0)
        self.noise.set_state(method.generator.get_state())


def replayed(moments: list[Moment], make: Any, streams: Streams, shift: Tensor, clip: float | None) -> float:
    """Loss on the validation batch after the real optimiser's real steps, with all augmenters shifted alike."""
    network = deepcopy(moments[0].network)
    optimizer = make(network.parameters())
    optimizer.load_state_dict(deepcopy(moments[0].optimizer))
    for moment in moments:
        augmenter, noise = deepcopy(moment.augmenter), torch.Generator()
        noise.set_state(moment.noise.get_state())
        batch: Batch = streams.batches["train"]
        with torch.no_grad():
            nn.utils.vector_to_parameters(
                nn.utils.parameters_to_vector(augmenter.parameters()) + shift, augmenter.parameters()
            )
            move = augmenter(batch.image, augmenter.sample_noise(len(batch.image), noise), spacing=batch.spacing)
            seen = transform(batch, move)
        optimizer.zero_grad()
        losses(network(inputs(seen)), seen.label, seen.valid).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip or torch.inf)
        optimizer.step()
    meta = streams.batches["meta"]
    return float(losses(network(inputs(meta)), meta.label, meta.valid).mean())


def inputs(batch: Batch) -> Tensor:
    return batch.image if batch.extra is None else torch.cat([batch.image, batch.extra], 1)


@pytest.mark.parametrize(
    ("unroll", "every", "optimiser", "clip", "derivative"),
    [
        (1, 1, "nesterov", None, "double_backward"), (1, 1, "nesterov", None, "jvp"),
        (1, 1, "nesterov", 0.05, "finite_difference"), (1, 2, "adamw", None, "double_backward"),
        (2, 2, "nesterov", None, "jvp"), (3, 4, "heavy_ball", 0.05, "double_backward"),
        (3, 1, "nesterov", None, "double_backward"), (2, 1, "adamw", None, "jvp"),
        (2, 1, "nesterov", None, "finite_difference"),
    ],
)  # fmt: skip
def test_the_gradient_is_that_of_the_loss_after_the_real_steps(
    unroll: int, every: int, optimiser: str, clip: float | None, derivative: str
) -> None:
    """Central differences of a training that is done again; with K > J through augmenters that have moved since."""
    _check_gradient(unroll, every, optimiser, clip, derivative)


@pytest.mark.parametrize(("unroll", "derivative"), [(1, "double_backward"), (1, "jvp"), (2, "double_backward")])
def test_a_partly_unknown_label_and_further_channels_count_in_the_gradient(unroll: int, derivative: str) -> None:
    """What is known, and a cascade's channels, move with the patch, and the loss depends on both."""
    _check_gradient(unroll, unroll, "nesterov", None, derivative, everything=True)


def _check_gradient(
    unroll: int, every: int, optimiser: str, clip: float | None, derivative: str, *, everything: bool = False
) -> None:
    make = OPTIMISERS[optimiser]
    method = build(
        smooth(channels=1 + everything).double(), optimizer=make, transformations="affine", start=0.5, unroll=unroll,
        update_every=every, derivative=derivative, task={"clip": clip},
    )  # fmt: skip
    assert method.augmenter is not None
    method.augmenter.double()
    optimizer = method.players["augmenter"].optimizer = Still(method.augmenter.parameters())
    streams, moments = Streams(shape=SHAPE, dtype=torch.float64, everything=everything), []
    for _ in range(6 if every < 4 else 8):
        moments.append(Moment(method))
        method.step(streams)
        if unroll > every and optimizer.seen:  # the augmenter moves, so that past ones differ
            with torch.no_grad():
                for p in method.augmenter.parameters():
                    p += 0.02 * torch.randn_like(p)
    gradient = optimizer.seen[-1]
    generator = torch.Generator().manual_seed(1)
    along = gradient / gradient.norm()
    for direction in (along, torch.randn(len(gradient), generator=generator, dtype=torch.float64)):
        h = 1e-5 / float(direction.norm())
        ends = [replayed(moments[-unroll:], make, streams, s * h * direction, clip) for s in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * h)
        tolerance = 3e-2 if derivative == "finite_difference" else 1e-4
        assert float(gradient @ direction) == pytest.approx(expected, rel=tolerance, abs=1e-3 * float(gradient.norm()))
    assert float(gradient.norm()) > 1e-6


def test_the_window_of_several_steps_ends_with_the_epoch() -> None:
    """So that a run which is resumed there goes on alike."""
    method = build(still=True, unroll=3, update_every=1)
    streams, seen = Streams(shape=SHAPE), []
    for _ in range(3):
        method.step(streams)
    assert method.learner is not None
    assert len(method.learner.steps) == 3
    method.on_epoch(0)
    assert len(method.learner.steps) == 0
    seen.append(method.step(streams))
    assert len(method.learner.steps) == 1


# --- what stays untouched -------------------------------------------------------------------------------------------


def dropping() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout3d(0.3), nn.ReLU(),
                         nn.InstanceNorm3d(4, track_running_stats=True), nn.Conv3d(4, 3, 1))  # fmt: skip


@pytest.mark.parametrize("unroll", [1, 2])
@pytest.mark.parametrize("derivative", ["double_backward", "finite_difference"])
def test_the_passes_for_the_augmenter_leave_everything_as_it_was(derivative: str, unroll: int) -> None:
    """Parameters, statistics, optimiser, and random numbers, of a training whose augmenter is looked at but stays."""
    ends = []
    for every in (1, 10_000):
        method = build(dropping(), still=True, update_every=every, derivative=derivative, unroll=unroll, steps=None)
        streams = Streams(shape=SHAPE)
        figures = [method.step(streams) for _ in range(3)]
        optimizer = method.task.optimizer.state_dict()["state"]
        moments = {str(n): s["momentum_buffer"] for n, s in optimizer.items()}
        drawn = {"torch": torch.get_rng_state(), "own": method.generator.get_state()}
        ends.append((weights(method), moments, drawn, [f["loss"] for f in figures], streams.asked))
        assert all(m.training for m in method.task.network.modules())
        assert method.task.network[1].track_running_stats
    (a, b) = ends
    assert same(a[0], b[0])
    assert same(a[1], b[1])
    assert same(a[2], b[2])
    assert a[3] == b[3]
    assert a[4].count("meta") == 3
    assert b[4].count("meta") == 0


def test_the_augmenter_moves_in_its_own_updates_only() -> None:
    method, streams, moved = build(update_every=3, warm_up=4, steps=None), Streams(shape=SHAPE), []
    for _ in range(12):
        before = theta(method)
        figures = method.step(streams)
        moved.append(not torch.equal(before, theta(method)))
        assert ("meta_loss" in figures) == moved[-1]
    assert moved == [False] * 5 + [True, False, False, True, False, False, True]
    assert method.updates == 3


def test_adams_first_step_teaches_nothing() -> None:
    """It is the gradient's sign."""
    method = build(optimizer=OPTIMISERS["adamw"])
    before, streams = theta(method), Streams(shape=SHAPE)
    method.step(streams)
    assert torch.equal(before, theta(method))
    method.step(streams)
    assert not torch.equal(before, theta(method))


def test_a_gradient_that_isnt_finite_teaches_nothing() -> None:
    method, streams = build(unroll=2), Streams(shape=SHAPE)
    method.step(streams)
    before, kept = theta(method), weights(method)
    streams.batches["train"].image[0] = torch.nan
    method.step(streams)
    assert torch.equal(before, theta(method))
    assert same({n: t for n, t in kept.items() if "running" not in n and "num" not in n},
                {n: t for n, t in weights(method).items() if "running" not in n and "num" not in n})  # fmt: skip
    assert method.learner is not None
    assert not method.learner.steps


def test_a_resumed_training_is_the_same() -> None:
    streams = Streams(shape=SHAPE)
    whole = build(update_every=2)
    for _ in range(8):
        whole.step(streams)
    first = build(update_every=2)
    for _ in range(3):
        first.step(streams)
    state, network, optimizer = deepcopy((first.state_dict(), weights(first), first.task.optimizer.state_dict()))
    second = build(update_every=2, seed=5)
    second.task.network.load_state_dict(network)
    second.task.optimizer.load_state_dict(optimizer)
    second.load_state_dict(state)
    for _ in range(5):
        second.step(streams)
    assert same(weights(whole), weights(second))
    assert torch.equal(theta(whole), theta(second))
    assert second.updates == whole.updates == 4
    assert torch.load(_written(state), weights_only=True)["name"] == "bilevel"


def _written(state: dict[str, Any]) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_micro_batches_add_up() -> None:
    """Two of one update, of the same patches under the same noise, are as one."""
    gradients = []
    for parts in (1, 2):
        method = build(smooth(norm="none"), still=True, unroll=2, update_every=2, transformations="affine",
                       task={"accumulation_steps": parts})  # fmt: skip
        assert method.augmenter is not None
        noise = method.augmenter.sample_noise(4, torch.Generator().manual_seed(0))
        method.augmenter.sample_noise = lambda *_, noise=noise: noise  # type: ignore[method-assign, misc]
        streams = Streams(shape=SHAPE)
        for _ in range(2):
            for part in range(parts):
                method.task.first_micro_batch, method.task.last_micro_batch = part == 0, part == parts - 1
                method.step(streams)
        optimizer = method.players["augmenter"].optimizer
        assert isinstance(optimizer, Still)
        assert len(optimizer.seen) == 1
        gradients.append(optimizer.seen[0])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_half_precision_of_the_training_changes_the_gradient_little() -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        method = build(still=True, precision=precision, transformations="affine", start=0.5)
        streams = Streams(shape=(8, 8, 8))
        for _ in range(2):
            method.step(streams)
        optimizer = method.players["augmenter"].optimizer
        assert isinstance(optimizer, Still)
        found.append(optimizer.seen[-1])
    assert float(torch.cosine_similarity(found[0], found[1], dim=0)) > 0.9


def test_everything_that_moves_has_a_gradient_with_a_margin() -> None:
    method = build(nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 1)), still=True)
    method.step(Streams(shape=(8, 8, 8), everything=True, margin=(1, 1, 1)))
    optimizer = method.players["augmenter"].optimizer
    assert isinstance(optimizer, Still)
    assert bool(torch.isfinite(optimizer.seen[0]).all())
    assert float(optimizer.seen[0].norm()) > 0


@pytest.mark.parametrize("parts", [1, 2])
def test_the_training_steps_own_graph_gives_the_same_gradient(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pass of its own would; and the network's gradient is that of a plain backward."""
    found, after = [], []
    for shared in (True, False):
        method = build(still=True, task={"accumulation_steps": parts})
        assert method.learner is not None
        assert method.learner.shares()
        if not shared:
            monkeypatch.setattr(method.learner, "shares", lambda: False)
        streams = Streams(shape=SHAPE)
        for number in range(3 * parts):
            method.task.first_micro_batch = number % parts == 0
            method.task.last_micro_batch = (number + 1) % parts == 0
            method.step(streams)
        optimizer = method.players["augmenter"].optimizer
        assert isinstance(optimizer, Still)
        assert len(optimizer.seen) == 3
        found.append(optimizer.seen[-1])
        after.append(weights(method))
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-4 * float(found[1].abs().max()))
    assert same(*after)


def test_the_training_steps_graph_is_taken_where_it_can_be() -> None:
    assert not _shares(unroll=2)
    assert not _shares(derivative="jvp")
    assert not _shares(precision="bfloat16")
    compiled = build()
    compiled.task.call = torch.compile(compiled.task.network, backend="eager")  # type: ignore[assignment]
    assert compiled.learner is not None
    assert not compiled.learner.shares()


def _shares(**options: Any) -> bool:
    learner = build(**options).learner
    assert learner is not None
    return learner.shares()


# --- other tasks ----------------------------------------------------------------------------------------------------


class Images:
    """2D images of two classes."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def next(self, stream: str) -> Batch:
        kinds = torch.arange(8) % 2
        image = 0.1 * torch.randn(8, 1, 8, 8, generator=self.generator) + (kinds - 0.5).view(-1, 1, 1, 1)
        return Batch(image, nn.functional.one_hot(kinds, 2).float(), margin=(0, 0))


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def of_images(output: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
    return -(label * output.log_softmax(1)).sum(1)


@pytest.mark.parametrize("arm", ["full", "translation", "intensity"])
def test_a_classification_keeps_its_labels(arm: str) -> None:
    seen: dict[str, Batch] = {}
    given = {"classification": True, "listener": lambda event, v: seen.update(v) if event == "forward" else None}
    method = build(classifier(), dims=2, transformations=arm, still=True, flip=[0, 1], task=given)
    method.task.losses = of_images
    method.step(Images())
    assert torch.equal(seen["batch"].label, nn.functional.one_hot(torch.arange(8) % 2, 2).float())
    optimizer = method.players["augmenter"].optimizer
    assert isinstance(optimizer, Still)
    assert float(optimizer.seen[0].norm()) > 0


class Distance(nn.Module):
    """How far images are from one number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W)."""
        return x - self.number


class Grey:
    """Training images are 0, those for validation 1."""

    def next(self, stream: str) -> Batch:
        image = torch.full((16, 1, 4, 4), 1.0 if stream == "meta" else 0.0)
        return Batch(image, torch.zeros_like(image), margin=(0, 0))


def test_it_finds_the_known_fixed_point() -> None:
    """The network comes to what it is trained on; so the augmenter makes training images as bright as the others."""
    method = build(
        Distance(), dims=2, transformations="intensity", learning_rate=0.02, steps=None,
        bounds={"brightness": 2.0, "contrast": 0.0, "gamma": 0.0, "noise": 0.0},
        optimizer=lambda p: torch.optim.SGD(p, 0.2, momentum=0.5),
    )  # fmt: skip
    method.task.losses = lambda output, label, valid: output.square().flatten(1).mean(1)
    losses = [method.step(Grey())["meta_loss"] for _ in range(250)]
    assert method.augmenter is not None
    with torch.no_grad():
        tone = method.augmenter(torch.zeros(200, 1, 4, 4)).tone
    assert tone is not None
    assert float(tone.amount[:, 0].mean()) == pytest.approx(1, abs=0.15)
    assert float(method.task.network.get_parameter("number")) == pytest.approx(1, abs=0.15)
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])
