# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial method: gradients against separate optimisations, signs, ablations, resume."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import Fixed, build, freeze, losses, moved, unet
from torch import Tensor

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.adversarial import Adversarial
from monai_autoaug.methods.base import Task
from monai_autoaug.networks.discriminators import adversarial_loss, discriminate_frozen
from monai_autoaug.precision import Precision


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("saturating", [True, False])
def test_one_backward_equals_three_separate_optimisations(saturating: bool, everything: bool) -> None:
    """Float64, smooth network: gradients of T, G and D against those of their own objectives (Eqs. 2-5)."""
    weights = {"weight_discriminator": 0.7, "weight_magnitude": 0.3}
    network = unet(act="SWISH", channels=2 if everything else 1).double()
    method = moved(build(network, balance=False, weight_prior=0.0, saturating=saturating,
                         discriminator_resamples=False, **weights))  # fmt: skip
    assert isinstance(method, Adversarial)
    method.generators.double()
    assert method.discriminator is not None
    method.discriminator.double()
    batches, state = Fixed(dtype=torch.float64, everything=everything), method.generator.get_state()
    optimizers = freeze(method)
    method.step(batches)
    got = {name: optimizer.seen for name, optimizer in optimizers.items()}

    def objective() -> tuple[Tensor, Tensor, Tensor, list[Any]]:
        method.generator.set_state(state)
        parts = method.generate(batches.next("train"))
        fake = torch.cat([p.batch.image for p in parts if p.transformation is not None])
        task, _ = method.segment(parts)
        size = sum(p.transformation.regularization() for p in parts if p.transformation is not None)
        return task, fake, size, parts

    weights_of = list(method.task.network.parameters())
    generators = list(method.generators.parameters())
    discriminator = list(method.discriminator.parameters())
    method._turns.clear()
    task, fake, size, _ = objective()
    # for D alone: its own loss (times lambda where the saturating game shares it, as Algorithm 1 has it)
    share = 1.0
    patches = batches.next("real").image
    chosen = torch.randperm(len(patches), generator=method.generator)[: len(fake)]
    real = method.discriminator(patches[chosen])
    own = adversarial_loss(real, True) + share * adversarial_loss(method.discriminator(fake), False)
    if saturating:
        realism = -weights["weight_discriminator"] * adversarial_loss(
            discriminate_frozen(method.discriminator, fake), False
        )
    else:
        realism = weights["weight_discriminator"] * adversarial_loss(
            discriminate_frozen(method.discriminator, fake), True
        )
    generator_loss = -task + realism + weights["weight_magnitude"] * size
    expected = {
        "network": torch.autograd.grad(task, weights_of, retain_graph=True, allow_unused=True),
        "generators": torch.autograd.grad(generator_loss, generators, retain_graph=True, allow_unused=True),
        "discriminator": torch.autograd.grad(own, discriminator, allow_unused=True),
    }
    for name, wanted in expected.items():
        assert any(g is not None and float(g.abs().max()) > 0 for g in wanted), name
        for a, b in zip(got[name], wanted, strict=True):
            assert (a is None) == (b is None)
            assert a is None or float((a - b).abs().max()) <= 1e-10, name


@pytest.mark.parametrize("seed", range(10))
def test_a_generator_step_raises_the_task_loss_and_a_network_step_lowers_it(seed: int) -> None:
    method = moved(build(discriminator=False, balance=False, weight_magnitude=0.0, weight_prior=0.0, seed=seed))
    assert isinstance(method, Adversarial)
    batches = Fixed()
    state = method.generator.get_state()

    def loss() -> Tensor:
        method.generator.set_state(state)
        method._turns.clear()
        return method.segment(method.generate(batches.next("train")))[0]

    before = loss()
    network, generators = list(method.task.network.parameters()), list(method.generators.parameters())
    gradient = torch.autograd.grad(before, generators, allow_unused=True)
    optimizers = freeze(method)
    method.generator.set_state(state)
    method._turns.clear()
    method.step(batches)
    given = optimizers["generators"].seen
    # the step's gradient is the task's, reversed
    assert all(a is None or torch.allclose(a, -b, atol=1e-6) for a, b in zip(given, gradient, strict=True))
    with torch.no_grad():
        for p, g in zip(generators, given, strict=True):
            if g is not None:
                p -= 1e-3 * g / sum(x.square().sum() for x in given if x is not None).sqrt()
    raised = loss()
    assert float(raised.detach()) > float(before.detach())
    gradient = torch.autograd.grad(raised, network, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(network, gradient, strict=True):
            if g is not None:
                p -= 1e-3 * g
    assert float(loss()) < float(raised.detach())


@pytest.mark.parametrize("mode", ["affine", "deformation", "appearance"])
def test_the_generator_gradient_through_image_and_label(mode: str) -> None:
    """Directional derivative of the soft loss against central differences: smooth network, float64."""
    method = moved(
        build(unet(act="SWISH").double(), mode=mode, discriminator=False, balance=False, width=4, noise_size=6)
    )
    assert isinstance(method, Adversarial)
    method.generators.double()
    batches, state = Fixed(size=2, dtype=torch.float64), method.generator.get_state()

    def loss() -> Tensor:
        method.generator.set_state(state)
        return method.segment(method.generate(batches.next("train")))[0]

    parameters = list(method.generators.parameters())
    gradient = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * 1e-6 * d
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_translations_are_equivariant() -> None:
    """A pointwise network: gradients through image and through label cancel for a translation, whatever the label."""
    from monai_autoaug.transforms import geometry

    shape = (32, 32, 32)

    def blob(*centre: float) -> Tensor:
        place = geometry.identity_grid(shape) - torch.tensor(centre)
        return torch.exp(-(place / torch.tensor([4.0, 5.0, 3.5])).square().sum(-1) / 2)[:, None]  # 0 near the border

    x, y = 2 * blob(1.0, -2.0, 0.5), blob(-2.0, 1.0, 2.0)
    y = torch.cat([1 - y, y], 1)
    shift = torch.full((1, 3), 0.4, requires_grad=True)
    zero = torch.zeros(1, 3)
    matrix = geometry.affine_matrix(zero, zero, zero, shift)
    image, label = geometry.resample(x, geometry.compose(matrix, None, shape, like=x), label=y)
    assert label is not None

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return -(label * torch.cat([-image, 0.5 * image], 1).log_softmax(1)).sum(1).mean()

    both = torch.autograd.grad(loss(image, label), shift, retain_graph=True)[0]
    image_alone = torch.autograd.grad(loss(image, label.detach()), shift)[0]
    assert float(both.norm()) <= 0.05 * float(image_alone.norm())


def test_switches_do_what_they_say() -> None:
    without = build(discriminator=False)
    batches = Fixed()
    without.step(batches)
    assert set(without.players) == {"generators"}
    assert batches.asked == ["train"]
    with_it = build(warm_up=2)
    batches = Fixed()
    with_it.step(batches)
    assert batches.asked == ["train"]  # the discriminator rests while all patches are nearly real
    with_it.step(batches)
    batches.asked.clear()
    with_it.step(batches)
    assert batches.asked == ["train", "real"]
    assert tuple(with_it.needs) == ("train", "real")
    blind = build(image_condition=False)
    assert not any("trunk.image." in n for n, _ in blind.players["generators"].module.named_parameters())
    paper = build(fidelity="paper")
    assert isinstance(paper, Adversarial)
    assert (paper.saturating, paper.balance, paper.weight_prior) == (True, False, 0.0)
    assert paper.generators["affine"].trunk is not paper.generators["deformation"].trunk
    assert build().generators["affine"].trunk is not None
    plain = build(unet(), auxiliary_norms=False)
    assert not any("auxiliary" in n for n, _ in plain.task.network.named_parameters())
    network = unet()
    with pytest.raises(ConfigError, match="prepare"):
        methods.build(
            "adversarial", Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"))
        )
    with pytest.raises(ConfigError, match="mode"):
        build(mode="all")
    with pytest.raises(ConfigError, match="no option 'lambda_'"):
        build(lambda_=1)


def test_state_round_trip_goes_on_exactly() -> None:
    options: dict[str, Any] = {"warm_up": 3}
    straight, batches = build(**options), Fixed(size=3)
    expected = [straight.step(batches) for _ in range(6)]
    first = build(**options)
    for _ in range(3):
        first.step(batches)
    buffer = io.BytesIO()
    torch.save({"method": first.state_dict(), "network": first.task.network.state_dict(),
                "optimizer": first.task.optimizer.state_dict()}, buffer)  # fmt: skip
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = build(**options, seed=99)
    second.task.network.load_state_dict(state["network"])
    second.task.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["method"])
    got = [second.step(batches) for _ in range(3)]
    assert got == expected[3:]
    with pytest.raises(CheckpointError, match="random"):
        second.load_state_dict(build(name="random").state_dict())


def test_non_finite_gradients_skip_one_player_only() -> None:
    method = build(warm_up=0)
    batches = Fixed()
    method.step(batches)
    weights = copy.deepcopy(method.task.network.state_dict())
    assert isinstance(method, Adversarial)
    assert method.discriminator is not None
    with torch.no_grad():
        method.discriminator.score.weight.fill_(float("nan"))
    before = copy.deepcopy(method.generators.state_dict())
    method.step(batches)
    assert dict(method.task.precision.skipped) == {"generators": 1, "discriminator": 1}
    after = method.generators.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert any(not torch.equal(v, weights[k]) for k, v in method.task.network.state_dict().items())


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_bfloat16(fidelity: str) -> None:
    method = build(precision="bfloat16", fidelity=fidelity, warm_up=0)
    batches = Fixed(shape=(16, 16, 16), size=4)
    figures = [method.step(batches) for _ in range(2)][-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())


def test_the_discriminator_sees_no_resampling_in_appearance() -> None:
    """Sharpness of transformed and real patches is alike, whatever the kind: white noise tells blur at once."""
    method = moved(build(warm_up=0, mode="appearance"))
    assert isinstance(method, Adversarial)
    batch = replace(Fixed(size=8).batches["train"], image=torch.randn(8, 1, 16, 20, 16))

    class Noise:
        def next(self, stream: str) -> Batch:
            return batch

    part = method.generate(batch)[0]
    real = method._real(Noise(), 8)
    fake = method._interior(method._resampled(part))
    assert part.batch.image.diff(dim=2).std() > 1.3 * real.diff(dim=2).std()
    assert float(fake.diff(dim=2).std() / real.diff(dim=2).std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "form", [{}, {"fidelity": "paper", "balance": True, "base": "random"}], ids=["default", "paper"]
)
@pytest.mark.parametrize("ramp", [0.2, 1.0])
def test_the_magnitude_penalty_is_a_ratio_of_gradients(form: dict[str, Any], ramp: float) -> None:
    """Whatever the units and however far the warm-up, what pulls back is ``weight_magnitude`` times what games push."""
    method = moved(build(weight_magnitude=0.5, weight_prior=0.0, discriminator=False, **form))
    assert isinstance(method, Adversarial)
    freeze(method)
    seen: dict[str, list[float]] = {}
    through = method.balancer.ratio

    def spied(name: str, reference: str, weight: float, **more: float) -> Callable[[Tensor], Tensor]:
        tap = through(name, reference, weight, **more)

        def measured(x: Tensor) -> Tensor:
            own = x.view_as(x)  # x itself gets the games' gradient too
            own.register_hook(lambda g: seen.setdefault(name, []).append(float(g.norm())))
            return tap(own)

        return measured

    method.balancer.ratio = spied  # type: ignore[method-assign]
    for step, strength in enumerate((1.0, 1.0, ramp, ramp)):  # the last two as within a warm-up
        method.warm_up, method.steps = 1000, round(1000 * strength) - 1
        method.generator.manual_seed(1)
        method._turns.clear()
        method.step(Fixed())
        assert method.steps == round(1000 * strength), step
    games = {n: float(method.balancer.means[i]) for n, i in method.balancer.names.items()}
    for kind in method.kinds:
        # games change a little with the strength: the ratio is to their mean over steps
        assert seen[f"{kind}_penalty"][-1] == pytest.approx(0.5 * games[f"{kind}_games"], rel=0.25), kind


def test_every_loss_and_magnitude_is_logged() -> None:
    method = build(warm_up=1)
    batches = Fixed()
    figures = method.step(batches)
    penalties = {f"{kind}_penalty" for kind in ("affine", "deformation", "appearance")}
    losses_ = {"loss", "loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}
    assert set(figures) == penalties | losses_ | {"realism", "discriminator_accuracy"}
    means = method.on_epoch(1)
    assert set(figures) <= set(means)
    assert {"affine_loss_ratio", "affine_learned_share", "deformation_jacobian_minimum"} <= set(means)
    assert means["affine_learned_share"] < 1e-3  # fresh: the noise acts through the random policy's draw alone
    assert means["affine_noise_share"] > 0.9


@pytest.mark.parametrize("mode", ["affine", "appearance"])
def test_a_single_kind_is_compared_with_clean_samples_too(mode: str) -> None:
    network = unet("BATCH")
    method = moved(build(network, mode=mode), 0.5)
    method.step(Fixed(everything=False))
    before = copy.deepcopy(network.state_dict())
    figures = method.on_epoch(1)
    assert figures[f"{mode}_loss_ratio"] > 0.5
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())  # looking changes nothing


@pytest.mark.parametrize(
    "bounds",
    [{"afine": {}}, {"affine": {"rotatoin": 3.0}}, {"affine": None}, {"affine": {"rotation": -3.0}}],
    ids=["kind", "name", "nothing", "value"],
)
def test_bounds_are_checked(bounds: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="affine"):
        build(bounds=bounds)


def test_bounds_of_a_kind_that_is_not_trained_are_refused() -> None:
    with pytest.raises(ConfigError, match="no use for the bounds of deformation"):
        build(mode="affine", bounds={"deformation": {"control": 5}})


def test_one_scaler_for_all_players() -> None:
    """With a loss scale of 1024 every player takes the step that it takes without."""
    results = []
    for scale in (None, 1024.0):
        method = moved(build(warm_up=0))
        if scale is not None:
            method.task.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        batches = Fixed()
        for _ in range(2):
            method.step(batches)
        results.append({**method.task.network.state_dict(), **method.players["generators"].module.state_dict()})
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-5), name


def test_a_run_goes_on_on_another_kind_of_device() -> None:
    """A generator of a GPU has a state of another size; its numbers can't be had here, but the run can go on."""
    method = build()
    method.step(Fixed())
    state = method.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}
    first, second = build(), build()
    for resumed in (first, second):
        with pytest.warns(UserWarning, match="another kind of device"):
            resumed.load_state_dict(state)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())  # the same numbers every time
    assert not torch.equal(first.generator.get_state(), build().generator.get_state())


@pytest.mark.parametrize(
    "option", [{"warm_up": -1}, {"noise_size": 0}, {"width": 0}, {"weight_magnitude": -0.1}, {"weight_prior": -1.0}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_numbers_that_can_not_be_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} must be at least"):
        build(**option)


def test_real_patches_are_drawn_from_the_whole_batch() -> None:
    """Hosts put patches centred on foreground last: the first ones alone would tell real from transformed."""
    method = build(warm_up=0)
    assert isinstance(method, Adversarial)
    batch = Fixed(size=4).batches["real"]
    marked = replace(batch, image=torch.arange(4.0).view(4, 1, 1, 1, 1).expand_as(batch.image).clone())

    class Marked:
        def next(self, stream: str) -> Batch:
            return marked

    seen = {round(float(x)) for _ in range(20) for x in method._real(Marked(), 2).mean((1, 2, 3, 4))}
    assert seen == {0, 1, 2, 3}


def test_no_collapse_is_reported_while_the_augmentation_warms_up() -> None:
    method = build(warm_up=50, bounds={"affine": {"rotation": 0.0, "log_scale": 0.0, "shear": 0.0, "translation": 0.0}})
    method.step(Fixed())
    method.on_epoch(1)
    assert method.warnings() == []
    method.steps = 50
    method.step(Fixed())
    method.on_epoch(2)
    assert any("affine" in w for w in method.warnings())
