# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Each option of the bilevel method changes what it says, and nothing else; what the paper compares with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bilevel_helpers import Still, Streams, build, same, theta, weights

from monai_autoaug import methods
from monai_autoaug.augmenters import ParametricAugmenter
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.bilevel import Bilevel
from monai_autoaug.methods.bilevel_arms import Predefined, flipped
from monai_autoaug.methods.bilevel_comparisons import COMPARISONS, MAGNITUDES, comparison
from monai_autoaug.networks import expect_spatial_transformer

SHAPE = (8, 8, 8)


def run(steps: int = 3, still: bool = True, **options: Any) -> tuple[Bilevel, Streams]:
    method, streams = build(still=still, steps=None, **options), Streams(shape=SHAPE)
    for _ in range(steps):
        method.step(streams)
    return method, streams


def gradients(method: Bilevel) -> list[torch.Tensor]:
    optimizer = method.players["augmenter"].optimizer
    assert isinstance(optimizer, Still)
    return optimizer.seen


def test_k_changes_the_gradient_and_not_the_training() -> None:
    one, two = (run(unroll=k, update_every=2, steps=4)[0] for k in (1, 2))
    assert same(weights(one), weights(two))
    assert [len(gradients(m)) for m in (one, two)] == [2, 2]
    assert not torch.allclose(gradients(one)[-1], gradients(two)[-1], rtol=1e-2)


def test_j_changes_how_often_and_not_the_training() -> None:
    often, seldom = (run(update_every=j, steps=4)[0] for j in (1, 2))
    assert same(weights(often), weights(seldom))
    assert [len(gradients(m)) for m in (often, seldom)] == [4, 2]
    assert torch.equal(gradients(often)[1], gradients(seldom)[0])


def test_the_way_to_the_derivative_changes_nothing_but_rounding() -> None:
    found = [gradients(run(derivative=d, transformations="affine")[0])[-1]
             for d in ("double_backward", "jvp", "finite_difference")]  # fmt: skip
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))
    assert float(torch.cosine_similarity(found[0], found[2], dim=0)) > 0.99


def test_warm_up_delays_the_augmenters_first_update() -> None:
    method, streams = build(warm_up=2, steps=None), Streams(shape=SHAPE)
    before = theta(method)
    for _ in range(2):
        method.step(streams)
    assert torch.equal(theta(method), before)
    method.step(streams)
    assert not torch.equal(theta(method), before)
    assert streams.asked.count("meta") == 1


def test_rate_and_decay_of_the_augmenter() -> None:
    """Its first step by Adam is the rate, whatever the gradient; decay pulls to 0; the network's step is the same."""
    plain, fast, decayed = (run(1, still=False, **o)[0] for o in ({}, {"learning_rate": 0.05}, {"weight_decay": 0.5}))
    fresh = theta(build(steps=None))
    moved = theta(plain) - fresh
    whole = (moved.abs() - 0.01).abs() < 1e-5  # but for neurons that rest, whose gradient is 0
    assert float(whole.float().mean()) > 0.3
    assert torch.allclose((theta(fast) - fresh)[whole], 5 * moved[whole], rtol=1e-2)
    assert torch.allclose(theta(decayed), theta(plain) - 0.01 * 0.5 * fresh, atol=1e-6)
    assert same(weights(plain), weights(fast))
    assert same(weights(plain), weights(decayed))


@pytest.mark.parametrize("arm", ["full", "affine", "translation", "intensity"])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_arms_and_sizes_are_those_of_the_augmenter(arm: str, size: str) -> None:
    method = build(transformations=arm, size=size, bounds={"rotation": 20.0}, start=0.2)
    expected = ParametricAugmenter(3, 1, transformations=arm, size=size, rotation=20.0, start=0.2)
    assert method.augmenter is not None
    assert method.augmenter.options() == expected.options()


def test_the_papers_form() -> None:
    method = build(fidelity="paper", update_every=None, steps=None)
    assert method.update_every == 1
    assert method.unroll == 1
    optimizer = method.players["augmenter"].optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert [group[n] for n in ("lr", "momentum", "weight_decay")] == [0.2, 0.9, 0.01]
    assert method.augmenter is not None
    assert method.augmenter.fidelity == "paper"
    before, streams = theta(method), Streams(shape=SHAPE)
    method.step(streams)
    assert not torch.equal(before, theta(method))
    assert build(update_every=None).update_every == 10


def test_seed_and_start() -> None:
    same_seed = [theta(build(seed=1)) for _ in range(2)]
    assert torch.equal(*same_seed)
    assert not torch.equal(same_seed[0], theta(build(seed=2)))


# --- flips ----------------------------------------------------------------------------------------------------------


def test_a_flip_moves_everything_alike_along_its_axes() -> None:
    x = torch.rand(64, 1, 4, 5, 6)
    batch = Batch(x, torch.cat([x, 1 - x], 1), valid=x > 0.5, extra=x * 2, mask=x + 1, target=x)
    out = flipped(batch, [0, 2], torch.Generator().manual_seed(0))
    assert torch.equal(out.label[:, :1], out.image)
    assert torch.equal(out.extra, out.image * 2)  # type: ignore[arg-type]
    assert torch.equal(out.mask, out.image + 1)  # type: ignore[arg-type]
    assert torch.equal(out.valid, out.image > 0.5)  # type: ignore[arg-type]
    assert out.target is None
    kinds = [[], [2], [4], [2, 4]]
    which = [[i for i, axes in enumerate(kinds) if torch.equal(o, a.flip([d - 1 for d in axes]) if axes else a)]
             for o, a in zip(out.image, x, strict=True)]  # fmt: skip
    counts = [sum(w == [i] for w in which) for i in range(4)]
    assert sum(counts) == 64
    assert min(counts) > 5


def test_flips_come_before_whatever_is_learned() -> None:
    seen: dict[str, Batch] = {}
    listening = {"listener": lambda event, v: seen.update(v) if event == "forward" else None}
    method = build(augmentation="none", flip=[1], task=listening)
    streams = Streams(shape=SHAPE)
    method.step(streams)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2))
               for a, b in zip(seen["batch"].image, streams.batches["train"].image, strict=True))  # fmt: skip
    flips = []
    for axes in ([], [1]):
        learned = build(flip=axes, transformations="translation", start=0.01, task=listening, seed=3)
        learned.step(streams)
        flips.append(seen["batch"].image)
    assert not torch.allclose(flips[0], flips[1], atol=0.1)


# --- what the paper compares with -----------------------------------------------------------------------------------


def test_without_augmentation_it_is_the_plain_step() -> None:
    plain, _ = run(augmentation="none", still=False)
    other = build(augmentation="none")
    none = methods.build("none", other.task)
    streams = Streams(shape=SHAPE)
    for _ in range(3):
        none.step(streams)
    assert same(weights(plain), weights(other))
    assert plain.augmenters() == {}
    assert plain.needs == ("train",)


def test_predefined_is_drawn_within_the_bounds_and_learns_nothing() -> None:
    method, streams = run(augmentation="predefined", still=False)
    assert set(streams.asked) == {"train"}
    assert method.players == {}
    batch = Batch(torch.zeros(400, 1, 32, 32), torch.zeros(400, 1, 32, 32))
    for arm in ("full", "affine", "translation", "intensity"):
        for magnitude in (1.0, 0.25):
            move = Predefined(2, 1, arm, {}, magnitude, paper=False)(batch, torch.Generator().manual_seed(0))
            if move.matrix is not None:
                shift = move.matrix[:, :, 2].abs().amax(0)
                assert bool((shift <= magnitude * 2).all())  # a 16th of 32
                assert bool((shift > magnitude * 1.9).all())
            if move.tone is not None:
                most = move.tone.amount.abs().amax(0) / magnitude
                assert torch.allclose(most, torch.tensor([0.3, 0.25, 0.35, 0.2]), rtol=0.05)
    paper = Predefined(2, 1, "affine", {}, 1.0, paper=True)(batch, torch.Generator().manual_seed(0))
    assert paper.matrix is not None
    assert float(paper.matrix[:, :, 2].abs().max()) == pytest.approx(4, rel=0.02)
    assert float(paper.magnitude()["rotation"].max()) == pytest.approx(10, rel=0.05)
    assert float(paper.magnitude()["log_volume"].abs().max()) == pytest.approx(2 * math.log(2), rel=0.1)


def test_held_out_cases_change_which_are_asked_for_and_no_step() -> None:
    plain, _ = run(augmentation="predefined", still=False)
    held, streams = run(augmentation="predefined", hold_out=True, still=False)
    assert held.needs == ("train", "meta")
    assert set(streams.asked) == {"train"}
    assert same(weights(plain), weights(held))
    assert methods.streams("bilevel") == ("train", "meta")
    assert methods.streams("bilevel", augmentation="invariant") == ("train",)
    assert methods.streams("bilevel", augmentation="none", hold_out=True) == ("train", "meta")


@pytest.mark.parametrize(("arm", "fidelity", "bounded"), [
    ("affine", "default", True), ("full", "default", True), ("translation", "default", True),
    ("affine", "paper", False), ("translation", "paper", True),
])  # fmt: skip
def test_an_invariant_network_transforms_in_training_and_in_prediction(arm: str, fidelity: str, bounded: bool) -> None:
    method, streams = run(augmentation="invariant", transformations=arm, fidelity=fidelity, still=False, steps=4)
    network: Any = method.task.network
    transformer = network.spatial_transformer
    assert transformer.bounded == bounded
    assert bool(transformer.encoder.numbers.weight.any())  # it has learned, with the network
    x = streams.batches["meta"].image
    d = 3
    matrix = transformer.matrix(x)
    assert not torch.equal(matrix, torch.eye(3, 4).expand_as(matrix))
    if arm == "translation":
        assert torch.equal(matrix[:, :, :d], torch.eye(3).expand(len(x), 3, 3))
        assert transformer.bounds.tolist() == pytest.approx([0, 0, 0, 0.5 if fidelity == "paper" else 0.0625])
    network.eval()
    with_it = network(x)
    plain = build(augmentation="none").task.network
    plain.load_state_dict({n: t for n, t in network.state_dict().items() if "spatial_transformer" not in n})
    assert not torch.allclose(with_it, plain.eval()(x), atol=1e-4)
    again = build(augmentation="none").task.network
    expect_spatial_transformer(again, network.state_dict())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x), with_it)
    assert set(streams.asked) == {"train"}


def test_every_row_of_the_papers_tables_can_be_built_and_takes_a_step() -> None:
    for name in COMPARISONS:
        options = comparison(name)
        method = build(update_every=None, **{"transformations": "translation"} | options)
        method.step(Streams(shape=SHAPE))
    assert comparison("magnitude", magnitude=0.5)["magnitude"] == 0.5
    assert all(0 < m <= 1 for m in MAGNITUDES)
    with pytest.raises(ConfigError, match="no comparison"):
        comparison("best")


# --- words and refusals ---------------------------------------------------------------------------------------------


def test_what_it_says_before_and_after() -> None:
    method = build(update_every=10, unroll=2, steps=100, warm_up=10)
    assert method.announcement() == [
        "The augmenter is updated every 10 updates of the network, 9 times in all, through the last 2 of them"
    ]
    assert any("9 times only" in w for w in method.warnings())
    assert build(augmentation="none", steps=100).announcement() == []
    assert build(update_every=10, steps=1000).warnings() == []
    method, _ = run(2)
    state = method.generator.get_state()
    figures = method.on_epoch(0)
    assert torch.equal(method.generator.get_state(), state)  # looking changes nothing
    assert figures["augmenter_updates"] == 2
    assert {"loss", "meta_loss", "hypergradient", "parametric_noise_share", "parametric_rotation", "parametric_gamma",
            "parametric_deviation", "parametric_displacement_mean"} <= set(figures)  # fmt: skip
    assert set(method.augmenters()) == {"parametric"}


def test_one_transformation_for_all_is_warned_of() -> None:
    method, _ = run(2)
    assert method.augmenter is not None
    torch.nn.init.zeros_(method.augmenter.head.weight)
    torch.nn.init.constant_(method.augmenter.head.bias, 0.5)
    method.on_epoch(0)
    assert any("nearly alike" in w for w in method.warnings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "best"}, "augmentation must be"), ({"transformations": "colour"}, "transformations must be"),
        ({"size": "huge"}, "size must be"), ({"fidelity": "loose"}, "fidelity must be"),
        ({"derivative": "exact"}, "derivative must be"), ({"unroll": 0}, "unroll must be at least 1"),
        ({"update_every": 0}, "update_every"), ({"warm_up": -1}, "warm_up"), ({"meta_batch": 0}, "meta_batch"),
        ({"learning_rate": 0.0}, "learning_rate"), ({"weight_decay": -1.0}, "weight_decay"),
        ({"flip": [3]}, "flip must be different axes"), ({"flip": [0, 0]}, "flip must be different axes"),
        ({"bounds": {"colour": 1.0}}, "bounds are"), ({"bounds": {"rotation": 999.0}}, "rotation"),
        ({"bounds": {"rotation": 9.0}, "fidelity": "paper"}, "no use for bounds"),
        ({"bounds": {"rotation": 9.0}, "augmentation": "none"}, "no use for bounds"),
        ({"magnitude": 0.5}, "no use for magnitude"), ({"magnitude": 0.0, "augmentation": "predefined"}, "magnitude"),
        ({"start": 0.5, "augmentation": "none"}, "no use for start"),
        ({"augmentation": "invariant", "transformations": "intensity"}, "spatial transformer"),
        ({"augmentation": "invariant", "bounds": {"gamma": 0.1}}, "has the bounds"),
    ],
)  # fmt: skip
def test_what_cant_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_an_invariant_network_has_to_be_prepared() -> None:
    method = build(augmentation="none")
    with pytest.raises(ConfigError, match="prepare"):
        methods.build("bilevel", method.task, augmentation="invariant")
