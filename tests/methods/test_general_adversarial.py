# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The general adversarial method: its four updates in turn, what each touches, resume, numerics, phases."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from general_helpers import SMALL, changed, make, moved, tiny, weights
from method_helpers import Fixed, losses
from torch import Tensor

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.methods import Task
from monai_autoaug.methods.general_adversarial import GeneralAdversarial
from monai_autoaug.methods.pairs import partners
from monai_autoaug.methods.parts import concatenate, transform
from monai_autoaug.precision import Precision

SHAPE = (12, 16, 12)
PLAIN: dict[str, Any] = {"balance": False, "discriminator_resamples": False, "doubled": True}


def _sgd(method: GeneralAdversarial, rate: float = 0.1) -> None:
    """Plain gradient descent for all, so that an update shows the gradient."""
    method.task.optimizer = torch.optim.SGD(method.task.network.parameters(), rate)
    for player in method.players.values():
        player.optimizer = torch.optim.SGD(player.module.parameters(), rate)


def _descend(module: torch.nn.Module, loss: Tensor, rate: float = 0.1) -> None:
    parameters = list(module.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if g is not None:
            p.data -= rate * g


@pytest.mark.parametrize("everything", [False, True])
def test_a_step_is_the_four_separate_optimisations_one_after_the_other(everything: bool) -> None:
    """Float64: against the losses of Eqs. 2-5 written down plainly, each at what the players before have become."""
    network = tiny(channels=2 if everything else 1).double()
    given = {"weight_class": 0.7, "weight_dissimilarity": 1.3, "weight_adversarial": 0.4}
    method = moved(make(network, **given, **PLAIN))
    for player in method.players.values():
        player.module.double()
    batches, state = Fixed(shape=SHAPE, dtype=torch.float64, everything=everything), method.generator.get_state()
    _sgd(method)
    g, c = (copy.deepcopy(m) for m in (method.generators["general"], method.task.network))
    dc, dd = (copy.deepcopy(method.discriminators[n]) for n in ("class", "dissimilarity"))
    method.step(batches)

    x, pool = batches.batches["train"], batches.batches["real"]
    method.generator.set_state(state)
    noise = torch.randn(4, 4, generator=method.generator).double()
    known = x.label if x.valid is None else x.label * x.valid

    def fake() -> tuple[Batch, Tensor]:
        made = transform(x, g(x.image, noise))
        return made, made.label if made.valid is None else made.label * made.valid

    made, maps = fake()
    seen = made.image if made.extra is None else torch.cat([made.image, made.extra], 1)
    p = c(seen).softmax(1)
    missed = -(made.label * (1 - p).log()).sum(1, keepdim=True)
    third = missed.mean() if made.valid is None else (missed * made.valid).sum() / made.valid.sum()
    _descend(g, -0.7 * dc(torch.cat([made.image, maps], 1)).sigmoid().log().mean()
             - 1.3 * dd(torch.cat([x.image, made.image], 1)).sigmoid().log().mean() + 0.4 * third)  # fmt: skip
    made, maps = fake()
    made, maps = replace(made, image=made.image.detach(), label=made.label.detach()), maps.detach()
    real = dc(torch.cat([x.image, known], 1)).sigmoid()
    false = dc(torch.cat([made.image, maps], 1)).sigmoid()
    _descend(dc, -real.log().mean() - (1 - false).log().mean())
    rows, others = partners(x, pool, method.generator)
    real = dd(torch.cat([x.image[rows], pool.image[others]], 1)).sigmoid()
    false = dd(torch.cat([x.image, made.image], 1)).sigmoid()
    _descend(dd, -real.log().mean() - (1 - false).log().mean())
    whole = concatenate([x, made])
    seen = whole.image if whole.extra is None else torch.cat([whole.image, whole.extra], 1)
    _descend(c, losses(c(seen), whole.label, None if whole.valid is None else whole.valid.detach()).mean())

    pairs = [(method.generators["general"], g), (method.discriminators["class"], dc),
             (method.discriminators["dissimilarity"], dd), (method.task.network, c)]  # fmt: skip
    for ours, theirs in pairs:
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert float((a - b).abs().max()) <= 1e-10, name


def test_players_are_updated_in_the_order_of_the_paper_and_no_gradient_is_left_to_others() -> None:
    method, order = moved(make()), []
    step = method.task.precision.step

    def watched(name: str, optimizer: torch.optim.Optimizer, **options: Any) -> bool:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        modules = [method.task.network, *(p.module for p in method.players.values())]
        touched = {id(p) for m in modules for p in m.parameters() if p.grad is not None}
        order.append((name, touched <= own))
        result = step(name, optimizer, **options)
        optimizer.zero_grad()
        return result

    method.task.precision.step = watched  # type: ignore[method-assign]
    batches = Fixed(shape=SHAPE)
    method.step(batches)
    names = ["generator", "class_discriminator", "dissimilarity_discriminator", "network"]
    assert order == [(name, True) for name in names]
    assert batches.asked == ["train", "real"]


def test_the_generator_is_judged_by_the_network_as_it_would_be_deployed() -> None:
    """Its step leaves running statistics alone and takes no dropout."""
    network = tiny(norm="batch")
    method = moved(make(network, weight_class=0.0, weight_dissimilarity=0.0))
    batch = Fixed(shape=SHAPE).batches["train"]
    before = weights(network)
    method._train_generator(batch, method._noise(4))
    assert not changed(before, network)
    assert network[1].training
    assert all(p.requires_grad for p in network.parameters())


def test_a_generator_step_lowers_each_of_its_terms() -> None:
    for name in ("class", "dissimilarity", "adversarial"):
        given = {f"weight_{n}": float(n == name) for n in ("class", "dissimilarity", "adversarial")}
        method = moved(make(**given))
        _sgd(method, 1e-2)
        batch = Fixed(shape=SHAPE).batches["train"]
        state = method.generator.get_state()
        values = []
        for _ in range(2):
            method.generator.set_state(state)
            values.append(float(method._train_generator(batch, method._noise(4))[f"generator_{name}"].detach()))
        assert values[1] < values[0], name


def test_the_adversarial_term_reaches_the_generator_through_image_and_label() -> None:
    method = moved(make(weight_class=0.0, weight_dissimilarity=0.0, appearance=False))
    batch = Fixed(shape=SHAPE).batches["train"]
    gradients = []
    for blocked in ("", "label", "image"):
        part = method._transformed(batch, torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
        if blocked:
            part = replace(part, **{blocked: getattr(part, blocked).detach()})
        term = method.judged.adversarial(part)
        found = torch.autograd.grad(term, list(method.generators.parameters()), allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    both, image, label = gradients
    assert torch.allclose(both, image + label, atol=1e-6)
    assert float(image.norm()) > 0
    assert float(label.norm()) > 0


def test_terms_are_balanced_by_their_gradients_at_the_patch() -> None:
    """The second and third term's gradient is its weight over the first one's, times the first one's gradient."""
    method = moved(make(weight_class=2.0, weight_dissimilarity=1.0, weight_adversarial=0.5))
    batch = Fixed(shape=SHAPE).batches["train"]
    state = method.generator.get_state()
    norms = []
    for player in method.players.values():
        player.optimizer = torch.optim.SGD(player.module.parameters(), 0.0)
    taps = method.judged.tap
    for _ in range(60):
        seen: dict[str, Tensor] = {}

        def tap(name: str, x: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            def keep(g: Tensor) -> None:
                seen[name] = g

            x = x.view_as(x)  # the patch is seen by others, too
            x.register_hook(keep)
            return taps(name, x)

        method.judged.tap = tap  # type: ignore[method-assign]
        method.generator.set_state(state)
        method._train_generator(batch, method._noise(4))
        norms = [float(seen[n].norm()) for n in ("class", "dissimilarity", "adversarial")]
    assert norms[1] / norms[0] == pytest.approx(0.5, rel=0.02)
    assert norms[2] / norms[0] == pytest.approx(0.25, rel=0.02)


def test_certain_players_leave_everything_finite() -> None:
    """Logits of hundreds, at which naive logarithms are infinite and their gradients no numbers."""
    method = moved(make(balance=False))
    with torch.no_grad():
        method.task.network[-1].weight.mul_(1e3)
        for module in method.discriminators.values():
            module.score.bias.fill_(-300.0)
    figures = method.step(Fixed(shape=SHAPE))
    assert all(abs(v) < 1e5 for v in figures.values())
    assert figures["generator_class"] == pytest.approx(300, rel=0.1)
    assert not method.task.precision.skipped


def test_non_finite_gradients_skip_one_player_only() -> None:
    method = moved(make(weight_adversarial=0.0, weight_class=0.0))
    discriminator = method.discriminators["dissimilarity"]
    with torch.no_grad():
        discriminator.score.weight.fill_(float("nan"))
    before, network = weights(method.generators), weights(method.task.network)
    method.step(Fixed(shape=SHAPE))
    assert dict(method.task.precision.skipped) == {"generator": 1, "dissimilarity_discriminator": 1}
    assert not changed(before, method.generators)
    assert changed(network, method.task.network)


@pytest.mark.parametrize("options", [{}, {"augmentation": "decoder", "weight_dissimilarity": 0.0}, {"spatial": False}],
                         ids=["learned", "decoder", "appearance"])  # fmt: skip
def test_state_round_trip_goes_on_exactly(options: dict[str, Any]) -> None:
    batches = Fixed(size=3, shape=SHAPE)
    straight = make(**options)
    expected = [straight.step(batches) for _ in range(4)]
    first = make(**options)
    for _ in range(2):
        first.step(batches)
    buffer = io.BytesIO()
    torch.save({"method": first.state_dict(), "network": first.task.network.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = make(**options, seed=99)
    second.task.network.load_state_dict(state["network"])
    second.load_state_dict(state["method"])
    assert [second.step(batches) for _ in range(2)] == expected[2:]


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_both_forms_train_in_both_dimensions_and_in_bfloat16(fidelity: str, spatial_dims: int) -> None:
    channels = 2 if spatial_dims == 2 else 1
    method = make(spatial_dims=spatial_dims, channels=channels, fidelity=fidelity, precision="bfloat16")
    assert (method.balance, method.doubled, method.resamples) == ((True, False, True) if fidelity == "default"
                                                                  else (False, True, False))  # fmt: skip
    before = weights(method.task.network, method.generators, *method.discriminators.values())
    for _ in range(2):
        figures = method.step(Fixed(shape=(16, 20, 16)[:spatial_dims], channels=channels))
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
    after = weights(method.task.network, method.generators, *method.discriminators.values())
    same = [k for k, v in after.items() if torch.equal(v, before[k]) and "strength" not in k and "num_batches" not in k]
    assert len(same) < len(after) / 2


@pytest.mark.parametrize(("size", "counts"), [(1, [(1, 1)] * 4), (2, [(1, 1)] * 4), (3, [(1, 2), (2, 1)] * 2)])
def test_half_of_each_batch_is_transformed(size: int, counts: list[tuple[int, int]]) -> None:
    method = make()
    batch = Fixed(size=size, shape=SHAPE).batches["train"]
    seen = [method._divided(batch) for _ in range(4)]
    assert [(len(s.image), len(c.image)) for s, c in seen] == counts
    for source, clean in seen:
        assert {*source.case, *clean.case} == set(batch.case)
        assert size == 1 or not {*source.case} & {*clean.case}
    whole = make(doubled=True)
    assert [len(part.image) for part in whole._divided(batch)] == [size, size]


def test_what_the_network_trains_on() -> None:
    """Patches as they are and transformed ones, with the label of each; the margin is gone."""
    heard: list[Batch] = []

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            heard.append(values["batch"])

    method = moved(make(listener=listen, doubled=True))
    batches = Fixed(shape=(16, 20, 16), margin=(2, 2, 2))
    method.step(batches)
    whole, plain = heard[0], batches.batches["train"].cropped()
    assert whole.image.shape == (8, 1, 12, 16, 12)
    assert torch.equal(whole.image[:4], plain.image)
    assert torch.equal(whole.label[:4], plain.label)
    assert not torch.allclose(whole.image[4:], plain.image, atol=1e-2)
    assert not torch.allclose(whole.label[4:], plain.label, atol=1e-2)
    assert not whole.image.requires_grad


def test_discriminators_see_all_patches_alike() -> None:
    """Resampled once and without the border, by default; as they are in the paper's form."""
    method = make()
    batch = replace(Fixed(size=8).batches["train"], image=torch.randn(8, 1, 16, 20, 16))
    real, maps = method.looks.seen(batch)
    with torch.no_grad():
        fake, _ = method.looks.seen(transform(batch, moved(make()).generators["general"](batch.image)), made=True)
    assert real.shape == fake.shape == (8, 1, 12, 16, 12)
    assert maps.shape == (8, 3, 12, 16, 12)
    assert float(fake.diff(dim=2).std() / real.diff(dim=2).std()) == pytest.approx(1, abs=0.2)
    assert batch.image.diff(dim=2).std() > 1.3 * real.diff(dim=2).std()
    alone = make(spatial=False)
    assert not alone.looks.resampled  # what the U-Net makes is sharp, and is resampled for the discriminator
    assert torch.equal(make(discriminator_resamples=False).looks.seen(batch)[0], batch.image)


def test_the_first_one_of_a_pair_is_the_same_for_generator_and_discriminator() -> None:
    """The patch itself, as sharp as it is."""
    method, batches, seen = moved(make(doubled=True)), Fixed(), list[Tensor]()
    discriminator = method.discriminators["dissimilarity"]
    discriminator.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    method.step(batches)
    first = batches.batches["train"].image[:, :, 2:-2, 2:-2, 2:-2]
    judged, compared = seen
    assert all(torch.equal(part[:, :1], first) for part in (judged, *compared.chunk(2)))


def test_micro_batches_add_up_to_one_update_of_each() -> None:
    method = moved(make(doubled=True))
    method.task.accumulation_steps = 2
    players = [p.module for p in method.players.values()]
    before = weights(method.task.network, *players)
    method.task.first_micro_batch, method.task.last_micro_batch = True, False
    method.step(Fixed(shape=SHAPE))
    assert not changed({k: v for k, v in before.items() if "running" not in k}, method.task.network, *players)
    assert method.steps == 0
    half = {n: p.grad.clone() for n, p in method.task.network.named_parameters() if p.grad is not None}
    method.task.first_micro_batch, method.task.last_micro_batch = False, True
    method.step(Fixed(shape=SHAPE))
    assert method.steps == 1
    for module in (method.task.network, *players):
        assert changed(weights_of(before, module, [method.task.network, *players]), module)
    total = {n: p.grad for n, p in method.task.network.named_parameters() if p.grad is not None}
    assert all(float(total[n].norm()) > float(half[n].norm()) for n in ("0.weight", "3.weight"))


def weights_of(before: dict[str, Tensor], module: torch.nn.Module, modules: list[torch.nn.Module]) -> dict[str, Tensor]:
    """The part of ``weights(*modules)`` that is one module's, as ``weights`` of it alone."""
    number = next(i for i, m in enumerate(modules) if m is module)
    return {f"0.{k.partition('.')[2]}": v for k, v in before.items() if k.partition(".")[0] == str(number)}


def test_figures_and_what_an_epoch_tells() -> None:
    method = moved(make())
    figures = method.step(Fixed(shape=SHAPE))
    assert set(figures) == {
        "loss", "loss_clean", "loss_general", "generator_loss", "generator_class", "generator_dissimilarity",
        "generator_adversarial", "class_discriminator_loss", "class_discriminator_accuracy",
        "dissimilarity_discriminator_loss", "dissimilarity_discriminator_accuracy",
    }  # fmt: skip
    state = method.generator.get_state()
    means = method.on_epoch(1)
    assert set(figures) <= set(means)
    assert {"affine_noise_share", "affine_rotation", "affine_saturation", "appearance_additive_mean",
            "appearance_noise_share", "appearance_saturation"} <= set(means)  # fmt: skip
    assert torch.equal(method.generator.get_state(), state)
    assert list(method.augmenters()) == ["general"]
    fresh = make()
    fresh.step(Fixed(shape=SHAPE))
    fresh.on_epoch(1)
    assert not fresh.warnings()
    fresh.steps = 200
    fresh.on_epoch(2)
    assert any("collapsed to the identity" in w for w in fresh.warnings())


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_in_separate_training_the_generator_comes_first_and_then_a_fresh_network_with_what_it_has_become(
    fidelity: str,
) -> None:
    given: dict[str, Any] = {"separate": 0.25, "weight_adversarial": 0.0, "fidelity": fidelity}
    method = moved(make(**given))
    assert [(p.name, p.share, p.fresh) for p in method.phases] == [("generator", 0.25, False), ("network", 0.75, True)]
    batches = Fixed(shape=SHAPE)
    network, generator = weights(method.task.network), weights(method.generators)
    figures = method.step(batches)
    assert figures["loss"] == figures["generator_loss"]
    assert not changed(network, method.task.network)
    assert changed(generator, method.generators)
    method.begin_phase(1)
    assert changed(network, method.task.network)  # a fresh one
    players = [p.module for p in method.players.values()]
    network, others = weights(method.task.network), weights(*players)
    batches.asked.clear()
    figures = method.step(batches)
    assert set(figures) == {"loss", "loss_clean", "loss_general"}
    assert batches.asked == ["train"]
    assert changed(network, method.task.network)
    assert not changed(others, *players)  # nor the paper's batch norms
    second = make(**given)
    second.task.network.load_state_dict(method.task.network.state_dict())
    second.load_state_dict(method.state_dict())
    second.task.optimizer.load_state_dict(method.task.optimizer.state_dict())
    assert second.phase.name == "network"
    assert second.step(batches) == method.step(batches)


@pytest.mark.parametrize(
    "options",
    [{}, {"augmentation": "decoder", "weight_dissimilarity": 0.0}, {"fidelity": "paper"}, {"augmentation": "strong"},
     {"augmentation": "stn"}],
    ids=str,
)  # fmt: skip
def test_images_of_a_class_are_transformed_and_their_label_stays(options: dict[str, Any]) -> None:
    """Classification: the whole image has one label, which no transformation changes."""
    heard: list[Batch] = []

    def cross_entropy(output: Tensor, label: Tensor, valid: Tensor | None) -> Tensor:
        return -(label * output.float().log_softmax(1)).sum(1)

    class Images:
        def next(self, stream: str) -> Batch:
            generator = torch.Generator().manual_seed(int(stream == "real"))
            label = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
            return Batch(torch.randn(4, 1, 16, 20, generator=generator), label, case=tuple("abcd"))

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            heard.append(values["batch"])

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    given = SMALL | {"doubled": True} | options
    methods.prepare("general_adversarial", network, **given)
    task = Task(
        network, torch.optim.SGD(network.parameters(), 0.1), cross_entropy, Precision("cpu"), spatial_dims=2,
        classification=True, listener=listen,
    )  # fmt: skip
    method = methods.build("general_adversarial", task, **given)
    before = weights(network, *(p.module for p in method.players.values()))
    for _ in range(2):
        figures = method.step(Images())
    method.on_epoch(1)
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
    assert changed(before, network, *(p.module for p in method.players.values()))
    plain = Images().next("train")
    assert torch.equal(heard[0].label, plain.label.repeat(len(heard[0].label) // 4, 1))
